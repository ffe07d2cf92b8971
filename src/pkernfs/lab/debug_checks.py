# SPDX-License-Identifier: GPL-2.0-only
"""What a host with the debug kernel is asked at its end: memory that nobody frees, and lockdep.

All that the kernel says by itself is in its log (scan.py). It does not say that lockdep has
given up, for want of room: that message is below the console's level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pkernfs.errors import PkernfsError

if TYPE_CHECKING:
    from pkernfs.lab.machine import Machine

#: Only what is five seconds old counts, and what two scans in a row did not find.
_ASK = """
leaks=/sys/kernel/debug/kmemleak
[ -e $leaks ] || mount -t debugfs debugfs /sys/kernel/debug || exit
grep debug_locks: /proc/lockdep_stats
sleep 5
echo scan >$leaks && echo scan >$leaks && cat $leaks
"""
_ASK_S = 300.0
_LOCKDEP_WORKS = re.compile(r"debug_locks:\s+1$", re.MULTILINE)
#: A caller in one of the modules; of one that is unloaded only the address is left.
_OURS = re.compile(r"\[pkernfs(_dma)?\]$|^ +0x[0-9a-f]{8,}$", re.MULTILINE)
_START = "unreferenced object"


def reports(text: str) -> list[str]:
    """The reports in what /sys/kernel/debug/kmemleak says, each with its lines."""
    return [_START + rest for rest in text.split(_START)[1:]]


def ours(found: Sequence[str]) -> list[str]:
    """Those of the reports that have one of our modules among their callers."""
    return [report for report in found if _OURS.search(report)]


def check(host: Machine) -> None:
    """Have a host look for leaks, and ask whether its locks were checked until now.

    :param host: one that runs the debug kernel.
    :raises PkernfsError: there is a leak of pkernfs, or lockdep is off.
    """
    done = host.sh(_ASK, timeout=_ASK_S)
    if done.status is None:
        # The host reboots: that is how some tests end.
        return
    text = done.check().stdout
    if not _LOCKDEP_WORKS.search(text):
        raise PkernfsError("lockdep has given up in this host", "its dmesg says why")
    leaked = ours(reports(text))
    if leaked:
        raise PkernfsError(f"kmemleak: {len(leaked)} of pkernfs, the first:\n{leaked[0]}")
