# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of physical memory: sizes as the kernel writes them, and regions of pkernfs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pkernfs.errors import PkernfsError

_UNITS = "KMGTPE"
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGTPEkmgtpe]?)")


def parse_size(text: str) -> int:
    """A number of bytes, the way the kernel's memparse() reads it (lib/cmdline.c).

    :param text: decimal, octal with a leading 0, or hexadecimal with 0x; suffix K to E.
    :returns: bytes.
    :raises PkernfsError: anything else than one such number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise PkernfsError(f"{text!r} is not a size", "write a number of bytes, or e.g. 512M, 4G")
    digits, suffix = match.groups()
    octal = digits.startswith("0") and len(digits) > 1 and digits[1] not in "xX"
    try:
        value = int(digits, 8 if octal else 0)
    except ValueError as error:
        raise PkernfsError(f"{text!r} is not a size") from error
    return value << (10 * (_UNITS.index(suffix.upper()) + 1) if suffix else 0)


def format_size(size: int) -> str:
    """The shortest exact form that memparse() reads back, e.g. ``4G``."""
    power = 0
    while power < len(_UNITS) and size and size % 1024 == 0:
        size //= 1024
        power += 1
    return f"{size}{_UNITS[power - 1]}" if power else str(size)


@dataclass(frozen=True, order=True)
class Range:
    """Physical memory from ``start`` (an address) on, ``size`` bytes long."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """Address of the first byte behind the range."""
        return self.start + self.size

    def contains(self, other: Range) -> bool:
        """Does all of ``other`` lie in this range?"""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Range) -> bool:
        """Have both ranges a byte in common?"""
        return self.start < other.end and other.start < self.end

    @classmethod
    def between(cls, start: int, end: int) -> Range:
        """The range from one address up to, and without, another."""
        return cls(start, end - start)

    def aligned(self, unit: int) -> Range | None:
        """The largest part that begins and ends on a multiple of ``unit``, if there is one."""
        start, end = -(-self.start // unit) * unit, self.end // unit * unit
        return Range.between(start, end) if start < end else None

    def __str__(self) -> str:
        return f"{format_size(self.size)} at {self.start:#x}"


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same memory in as few ranges as can be, by address."""
    found: list[Range] = []
    for item in sorted(item for item in ranges if item.size > 0):
        if found and item.start <= found[-1].end:
            last = found.pop()
            item = Range.between(last.start, max(last.end, item.end))
        found.append(item)
    return found


def common(some: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """The memory that lies in both, merged."""
    others = list(others)
    shared = (
        Range.between(max(a.start, b.start), min(a.end, b.end))
        for a in some
        for b in others
        if a.overlaps(b)
    )
    return merge(shared)


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """The memory of ``ranges`` that lies in none of ``holes``, merged."""
    found = []
    holes = merge(holes)
    for item in merge(ranges):
        start = item.start
        for hole in holes:
            if hole.overlaps(Range.between(start, item.end)):
                found.append(Range.between(start, max(start, hole.start)))
                start = max(start, hole.end)
        found.append(Range.between(start, max(start, item.end)))
    return merge(found)


@dataclass(frozen=True)
class Region:
    """A named range for one store, as the module parameter ``region`` names it."""

    name: str
    range: Range

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``SIZE!START`` or ``NAME:SIZE!START``.

        :raises PkernfsError: the text has another form.
        """
        name, colon, rest = text.rpartition(":")
        size, mark, start = rest.partition("!")
        if not mark or (colon and not name):
            raise PkernfsError(
                f"{text!r} is not a region",
                "write SIZE!START or NAME:SIZE!START, e.g. 4G!0x100000000",
            )
        return cls(name, Range(parse_size(start), parse_size(size)))

    def __str__(self) -> str:
        prefix = f"{self.name}:" if self.name else ""
        return f"{prefix}{format_size(self.range.size)}!{self.range.start:#x}"


def parse_regions(text: str) -> tuple[Region, ...]:
    """Read the value of the module parameter: regions, separated by commas."""
    return tuple(Region.parse(part) for part in text.strip().split(",") if part.strip())


def parse_iomem(text: str) -> list[tuple[Range, str]]:
    """Read /proc/iomem: every resource with its name, whatever its depth.

    Without CAP_SYS_ADMIN the kernel shows all addresses as zero.
    """
    found = []
    for line in text.splitlines():
        span, _, name = line.strip().partition(" : ")
        first, dash, last = span.partition("-")
        if dash and name:
            start = int(first, 16)
            found.append((Range(start, int(last, 16) - start + 1), name))
    return found
