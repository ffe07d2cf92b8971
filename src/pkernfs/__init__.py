# SPDX-License-Identifier: GPL-2.0-only
"""Replace the kernel of a hypervisor under its running virtual machines."""
