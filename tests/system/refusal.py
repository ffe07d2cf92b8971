# SPDX-License-Identifier: GPL-2.0-only
"""An update that fails, and what must be so afterwards."""

from __future__ import annotations

from pkernfs.lab.machine import Machine

from .tick import Tick


def lines(host: Machine, script: str) -> list[str]:
    """What a shell script prints in the host."""
    return host.sh(script).check().stdout.splitlines()


def refused(guest: Tick, command: str, says: str) -> None:
    """An update fails with these words, nothing is left of it, and the guest counts on."""
    boot_id = lines(guest.host, "cat /proc/sys/kernel/random/boot_id")
    result = guest.host.sh(command)
    assert result.status == 1, result
    assert says in result.stderr, result
    guest.counts_on()
    assert lines(guest.host, "cat /proc/sys/kernel/random/boot_id") == boot_id
    assert lines(guest.host, "cat /sys/kernel/kexec_loaded") == ["0"]
    left = "state", "saved.json"
    paths = [f"{guest.directory}/{name}" for name in left] + ["/run/pkernfs/update.journal"]
    assert lines(guest.host, f"ls {' '.join(paths)} 2>/dev/null || :") == []


# Runs "pkernfs update" with something changed in this program.
_CHANGED = r"""
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, "/usr/lib/pkernfs")
from pkernfs.update import plan, quiesce
from pkernfs.update.timeline import Timeline
{change}
sys.argv = ["pkernfs", "update"]
from pkernfs.cli import main
main()
"""


def changed(host: Machine, change: str) -> str:
    """The command of an update with a change in it."""
    (host.share / "changed.py").write_text(_CHANGED.format(change=change))
    return "python3 /mnt/share/changed.py"
