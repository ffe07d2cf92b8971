# SPDX-License-Identifier: GPL-2.0-only
"""This machine: its reserved ranges, boot line, kernels, kexec and clock."""
