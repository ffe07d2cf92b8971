# SPDX-License-Identifier: GPL-2.0-only
"""Numbers in words that people read."""

from __future__ import annotations


def size(count: int) -> str:
    """A number of bytes, four digits of it, e.g. ``16 GiB`` or ``278.5 KiB``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} B"


def count(number: int, what: str) -> str:
    """A number of things, e.g. ``1 guest`` or ``2 guests``."""
    return f"{number} {what}" + ("" if number == 1 else "s")
