# SPDX-License-Identifier: GPL-2.0-only
"""Which kernels of the lab the system tests run on: Debian's two, unless told otherwise."""

from __future__ import annotations

import os

#: Other kernels than those: ``debug`` (make test-debug).
SETTING = "PKERNFS_TEST_KERNELS"
KERNELS = tuple(os.environ.get(SETTING, "6.12,7.3").split(","))
#: The one of those that run on one of them only, and the one that an update leads to there.
FIRST, NEXT = KERNELS[0], KERNELS[-1]


def successor(kernel: str) -> str:
    """The kernel that an update leads to from ``kernel``: the same if there is only one."""
    return FIRST if kernel == NEXT else NEXT
