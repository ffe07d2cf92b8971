# SPDX-License-Identifier: GPL-2.0-only
"""Tap interfaces that a guest's QEMU has opened."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host import ports
from pkernfs.host.machine import Machine
from pkernfs.host.ports import Port
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest

_TUN = "/dev/net/tun"


def by_descriptor(pid: int) -> dict[int, str]:
    """Interfaces, by the descriptor of each queue.

    tun_chr_show_fdinfo() in drivers/net/tun.c prints "iff:".

    :raises OSError: the process is gone, or not ours to look at.
    """
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(entry.readlink()) == _TUN:
                text = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text(encoding="utf-8")
                match = re.search(r"^iff:\s*(\S+)$", text, re.MULTILINE)
                if match:
                    found[int(entry.name)] = match[1]
    return found


def ports_of(guest: Guest, machine: Machine | None = None) -> tuple[Port, ...]:
    """The interfaces of a guest's QEMU as they are set now; none if it does not run.

    :raises PkernfsError: what is set on one can't be found out.
    """
    child = process.running(guest)
    try:
        names = set(by_descriptor(child.pid).values()) if child is not None else set()
    except OSError as error:
        raise PkernfsError(f"guest {guest.name}: its interfaces can't be found: {error}") from error
    found = (ports.read(machine or Machine(), name) for name in sorted(names))
    return tuple(port for port in found if port is not None)
