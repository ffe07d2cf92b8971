# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures."""

from tests.unit.update.fakes import jumper
from tests.unit.vmm.fakes import host

__all__ = ["host", "jumper"]
