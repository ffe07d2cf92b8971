# SPDX-License-Identifier: GPL-2.0-only
"""Allocations that fail, each in turn. Run inside a host with the debug kernel."""
