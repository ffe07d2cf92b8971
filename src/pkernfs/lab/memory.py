# SPDX-License-Identifier: GPL-2.0-only
"""Where a virtual host's RAM and its range lie, inside and in the file that backs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import UsageError
from pkernfs.host.ranges import format_size

MIB = 1 << 20
GIB = 1 << 30
#: q35 (pc_q35_init in QEMU's hw/i386/pc_q35.c): from this much RAM on, 2 GiB lie below
#: 4 GiB and the rest from 4 GiB on; with less, all of it lies below.
_SPLIT_FROM = 0xB0000000
_LOW = 2 * GIB
HIGH_START = 4 * GIB
_BLOCK = 2 * MIB


@dataclass(frozen=True)
class Layout:
    """A host's memory.

    :ivar ram: bytes in all.
    :ivar region: bytes of the range that pkernfs gets; it begins at 4 GiB.
    """

    ram: int
    region: int

    @classmethod
    def of(cls, region: int | None = None, ram: int | None = None) -> Layout:
        """The layout for what the user asked for; what was not named is chosen to fit.

        :raises UsageError: it does not fit.
        """
        region = region or GIB
        ram = ram or _LOW + max(region, GIB)
        if region % _BLOCK or ram % _BLOCK:
            raise UsageError("region and RAM are multiples of 2 MiB", "for example --region 1G")
        if ram < _SPLIT_FROM or ram - _LOW < region:
            need = max(_LOW + region, 3 * GIB)
            raise UsageError(
                f"a region of {format_size(region)} does not fit into {format_size(ram)} of RAM",
                f"--ram {format_size(need)} is enough: the first 2 GiB are the kernel's",
            )
        return cls(ram, region)

    @property
    def offset(self) -> int:
        """Where the region begins in the file that backs the RAM, bytes."""
        return _LOW

    @property
    def boot_words(self) -> tuple[str, str]:
        """The words of the boot line that reserve the region and name it."""
        place = f"{format_size(self.region)}{{}}{format_size(HIGH_START)}"
        return f"memmap={place.format('$')}", f"pkernfs.region={place.format('!')}"


@dataclass(frozen=True)
class RangeFile:
    """The region as others see it from outside: part of a file.

    :ivar offset: bytes.
    :ivar size: bytes.
    """

    file: Path
    offset: int
    size: int
