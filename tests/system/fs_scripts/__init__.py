# SPDX-License-Identifier: GPL-2.0-only
"""Checks of the mounted filesystem, run inside a host: standard library only."""
