# SPDX-License-Identifier: GPL-2.0-only
"""In which kernel a guest was let run: the store outlives a reset, and its guests do not.

A warm reboot leaves memory as it was. What a guest that ran had in it then is stale: nobody
saved its processors, and its disks may have been written since. It must not pass for a guest
that was switched off, nor for one that waits.
"""

from __future__ import annotations

from pkernfs.files import write_atomic
from pkernfs.host.machine import Machine
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest

#: What to do about it.
HINT = "pkernfs vm start {name} boots it from its disks, as after a power failure"


def runs_here(guest: Guest, machine: Machine) -> None:
    """Note that a guest runs in this kernel, or is about to.

    :raises OSError: it can't be written.
    """
    write_atomic(guest.boot_file, f"{machine.boot_id}\n")


def cut_off(guest: Guest, machine: Machine) -> bool:
    """Did a guest's kernel end without saving it, so that its memory is of no use?

    True also of one that had switched itself off before and that nobody stopped: from outside
    of that kernel they look the same.
    """
    try:
        boot = guest.boot_file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return False
    if boot == machine.boot_id or not guest.ram.exists() or process.running(guest) is not None:
        return False
    return not guest.saved_file.exists() and not guest.started_file.exists()


def what_happened(guest: Guest) -> str:
    """In words, of a guest that was cut off."""
    return (
        f"guest {guest.name} was on when its kernel ended without an update (a reset, a panic);"
        " what its memory holds can't be gone on with"
    )
