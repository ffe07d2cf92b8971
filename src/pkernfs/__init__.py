# SPDX-License-Identifier: GPL-2.0-only
"""Replace the kernel of a hypervisor under its running virtual machines."""

#: The one place that says it; pyproject.toml reads it here.
__version__ = "0.1.0"
