# SPDX-License-Identifier: GPL-2.0-only
"""Numbers and tables that people read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def size(count: int) -> str:
    """A number of bytes, four digits of it, e.g. ``16 GiB`` or ``278.5 KiB``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} B"


def count(number: int, what: str) -> str:
    """A number of things, e.g. ``1 guest`` or ``2 guests``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def table(rows: Iterable[Sequence[str]], left: Sequence[int] = (0, -1)) -> Iterator[str]:
    """Lines of a table; every column as wide as its widest entry.

    :param rows: the first one is the head.
    :param left: which columns are set to the left; the others are numbers.
    """
    rows = list(rows)
    columns = len(rows[0])
    to_left = {number % columns for number in left}
    widths = [max(len(row[number]) for row in rows) for number in range(columns)]
    for row in rows:
        cells = [
            text.ljust(width) if number in to_left else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
