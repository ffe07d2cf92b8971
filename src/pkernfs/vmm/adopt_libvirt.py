# SPDX-License-Identifier: GPL-2.0-only
"""Taking over a guest of libvirt's.

libvirt keeps the only connection to its guest's monitor. But it passes commands on (virsh
qemu-monitor-command), and QEMU 11.1 can be given a second monitor while it runs: a listening
socket by chardev-add, and on it an object of the type monitor-qmp (qapi/qom.json).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.vmm import adopt as adopting
from pkernfs.vmm.adopt import Adopted
from pkernfs.vmm.config import Places

_CHARDEV = "pkernfs-adopt-socket"
_MONITOR = "pkernfs-adopt"

#: libvirt's directory of a domain that runs; its QEMU may make sockets there.
_DOMAINS = Path("/var/lib/libvirt/qemu")

_AUTOSTART = Path("/etc/libvirt/qemu/autostart")


def _virsh(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", "qemu:///system", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PkernfsError(f"virsh does not run: {error}", "apt install libvirt-clients") from error
    if done.returncode:
        raise PkernfsError(f"libvirt refuses: {done.stderr.strip()}", "virsh list names domains")
    return done.stdout.strip()


def _tell(domain: str, command: str, arguments: dict[str, Any]) -> None:
    """Have libvirt pass a command on.

    :raises PkernfsError: QEMU refuses.
    """
    request = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(_virsh("qemu-monitor-command", domain, request))
    if "error" in answer:
        raise PkernfsError(
            f"QEMU refuses {command}: {answer['error'].get('desc')}",
            "a QEMU older than 11.1 has to be started with a second monitor: "
            "<qemu:commandline> with -qmp unix:PATH,server=on,wait=off",
        )


def adopt(places: Places, domain: str, name: str | None, machine: Machine) -> Adopted:
    """Register a guest that libvirt started.

    :param domain: its name or id.
    :param name: what it is called; None: as libvirt calls it.
    :raises PkernfsError: it can't be; it has no second monitor then, and runs on.
    """
    title = _virsh("domname", _virsh("domuuid", domain))
    home = _domain_directory(_virsh("domid", domain), title)
    with _second_monitor(domain, home / "pkernfs.sock") as socket:
        adopted = adopting.adopt(places, socket, name, machine)
    notes = [*adopted.notes, *_notes(title, name or title)]
    return Adopted(adopted.name, adopted.pid, adopted.ram_bytes, tuple(notes))


def _domain_directory(number: str, title: str) -> Path:
    """domain-ID-NAME, the name cut by libvirt where it is long (virDomainDefGetShortName())."""
    found = sorted(_DOMAINS.glob(f"domain-{number}-*")) if number.isdigit() else []
    if not found:
        raise PkernfsError(f"domain {title} does not run", f"virsh start {title}")
    return found[0]


@contextlib.contextmanager
def _second_monitor(domain: str, socket: Path) -> Iterator[Path]:
    """A monitor beside libvirt's. It stays, unless the block fails."""
    address = {"type": "unix", "data": {"path": str(socket)}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    _tell(domain, "chardev-add", {"id": _CHARDEV, "backend": backend})
    with contextlib.ExitStack() as undo:
        undo.callback(_tell_quietly, domain, "chardev-remove", {"id": _CHARDEV})
        _tell(
            domain, "object-add", {"qom-type": "monitor-qmp", "id": _MONITOR, "chardev": _CHARDEV}
        )
        undo.callback(_tell_quietly, domain, "object-del", {"id": _MONITOR})
        yield socket
        undo.pop_all()


def _tell_quietly(domain: str, command: str, arguments: dict[str, Any]) -> None:
    with contextlib.suppress(PkernfsError):
        _tell(domain, command, arguments)


def _notes(title: str, name: str) -> Sequence[str]:
    yours = f"pkernfs vm list, vm stop {name}"
    notes = [
        f"libvirt does not know that domain {title} runs (virsh list has it as shut off): {yours}",
        f"don't let libvirt start {title} a second time: virsh autostart --disable {title}",
    ]
    return notes if (_AUTOSTART / f"{title}.xml").exists() else notes[:1]
