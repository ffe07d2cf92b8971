# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU is told to save and to load a guest, whoever tells it.

``x-ignore-shared`` leaves memory that is a shared file where it is (migrate_ram_is_ignored()
in migration/ram.c); ``cpr-reboot`` stops the guest before anything else and permits devices
that can't move to another host (docs/devel/migration/CPR.rst). Both are taken back afterwards:
with them, a migration to another host, which somebody may ask for later, would leave the memory
behind.

A guest with passed-through devices is saved as if another QEMU took it over at once:
``cpr-transfer``, which leaves all memory where it is, with a return path on which QEMU waits
(:mod:`pkernfs.vmm.cpr_record`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pkernfs.vmm import launch
from pkernfs.vmm.command import start_arguments
from pkernfs.vmm.config import Guest

#: A QMP command and its arguments.
Request = tuple[str, dict[str, object]]


def settings(*, update: bool, devices: bool = False) -> tuple[Request, ...]:
    """How state is saved and loaded.

    :param update: True for an update, False for QEMU's own way.
    :param devices: the guest has passed-through devices.
    """
    mode = "cpr-transfer" if devices else "cpr-reboot"
    capabilities = [
        {"capability": "x-ignore-shared", "state": update and not devices},
        {"capability": "return-path", "state": update and devices},
        {"capability": "events", "state": True},
    ]
    return (
        ("migrate-set-capabilities", {"capabilities": capabilities}),
        ("migrate-set-parameters", {"mode": mode if update else "normal"}),
    )


def load_requests(state: Path) -> tuple[Request, ...]:
    """All that a QEMU that waits for a saved state is told, from the first word on."""
    load = ("migrate-incoming", {"uri": f"file:{state}", "exit-on-error": False})
    return (("qmp_capabilities", {}), *settings(update=True), load)


def encode(requests: Iterable[Request], mark: str = "") -> str:
    """As QMP text, one request on each line.

    :param mark: QEMU repeats it in its answers.
    """
    lines = []
    for command, arguments in requests:
        line: dict[str, object] = {"execute": command}
        if arguments:
            line["arguments"] = arguments
        if mark:
            line["id"] = mark
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def launch_of(guest: Guest) -> launch.Launch:
    """How a guest is started again once it is saved.

    :raises PkernfsError: there is no such guest, or its configuration can't be used.
    """
    config = guest.config()
    return launch.Launch(
        name=guest.name,
        files=str(guest.directory),
        ram=str(guest.ram),
        ram_bytes=config.ram_bytes,
        runtime=str(guest.runtime),
        directory=config.directory,
        node="" if config.node is None else str(config.node),
        requests=encode(load_requests(guest.state)),
        argv=tuple(start_arguments(config, launch.MONITOR_FD, incoming=True)),
    )
