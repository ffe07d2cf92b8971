# SPDX-License-Identifier: GPL-2.0-only
"""Virtual machine monitors: stock QEMU, spoken to by QMP."""
