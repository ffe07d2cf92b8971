# SPDX-License-Identifier: GPL-2.0-only
"""Regions of a VFIO device: BARs and config space, by read and write or mapped."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Protocol

from pkernfs.errors import PkernfsError
from pkernfs.vfio import uapi
from pkernfs.vfio.closing import Closing


class Registers(Protocol):
    """Where a driver reads and writes its device: a mapped BAR, or a model in a test."""

    def read32(self, offset: int) -> int:
        """One 32-bit read at ``offset`` bytes."""

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write at ``offset`` bytes."""


@dataclass(frozen=True)
class MapArea:
    """A part of a region that may be mapped, bytes from its start."""

    offset: int
    size: int


@dataclass(frozen=True)
class RegionInfo:
    """What the kernel says of a region.

    :ivar index: ``VFIO_PCI_BAR0_REGION_INDEX``...
    :ivar flags: ``VFIO_REGION_INFO_FLAG_*``.
    :ivar size: bytes; 0 for one that the device doesn't have.
    :ivar offset: where it starts in the device's file.
    :ivar areas: the parts that may be mapped.
    """

    index: int
    flags: int
    size: int
    offset: int
    areas: tuple[MapArea, ...]

    @property
    def mappable(self) -> bool:
        """Whether any part of it can be mapped."""
        return bool(self.areas)


class Region:
    """A region through pread and pwrite. Works for every region, a call per access.

    The kernel splits an access into naturally aligned ones of at most 8 bytes
    (drivers/vfio/pci/vfio_pci_rdwr.c), so an aligned 32-bit access stays one.
    """

    def __init__(self, fd: int, info: RegionInfo) -> None:
        self._fd = fd
        self.info = info

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``.

        :raises PkernfsError: outside of the region, or the device refuses (memory disabled).
        """
        self._check(offset, size)
        try:
            data = os.pread(self._fd, size, self.info.offset + offset)
        except OSError as error:
            raise self._failed("read", offset, error) from error
        if len(data) != size:
            raise PkernfsError(f"short read of region {self.info.index} at {offset:#x}")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``; raises like :meth:`read`."""
        self._check(offset, len(data))
        try:
            done = os.pwrite(self._fd, data, self.info.offset + offset)
        except OSError as error:
            raise self._failed("write", offset, error) from error
        if done != len(data):
            raise PkernfsError(f"short write to region {self.info.index} at {offset:#x}")

    def read8(self, offset: int) -> int:
        """One 8-bit read."""
        return self.read(offset, 1)[0]

    def read16(self, offset: int) -> int:
        """One 16-bit read."""
        return int.from_bytes(self.read(offset, 2), "little")

    def read32(self, offset: int) -> int:
        """One 32-bit read."""
        return int.from_bytes(self.read(offset, 4), "little")

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit write."""
        self.write(offset, value.to_bytes(1, "little"))

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit write."""
        self.write(offset, value.to_bytes(2, "little"))

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write."""
        self.write(offset, value.to_bytes(4, "little"))

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.info.size:
            raise PkernfsError(
                f"{size} bytes at {offset:#x} are outside of region {self.info.index}"
                f" ({self.info.size:#x} bytes)"
            )

    def _failed(self, verb: str, offset: int, error: OSError) -> PkernfsError:
        return PkernfsError(
            f"can't {verb} region {self.info.index} at {offset:#x}: {error.strerror}",
            "the device may be powered down or have its memory disabled",
        )


class MappedRegion(Closing):
    """A BAR mapped into this process; a context manager.

    An index into a memoryview of format I or Q is one aligned load or store of 4 or 8 bytes
    in CPython (memcpy of a constant size), which is what a register needs.

    :raises PkernfsError: the region can't be mapped.
    """

    def __init__(self, fd: int, info: RegionInfo) -> None:
        if not info.mappable:
            raise PkernfsError(f"region {info.index} can't be mapped", "use read and write")
        area = info.areas[0]
        if area.offset:
            raise PkernfsError(f"region {info.index} can't be mapped from its start")
        self.info = info
        self._mapping = mmap.mmap(fd, area.size, mmap.MAP_SHARED, offset=info.offset)
        self._words = memoryview(self._mapping).cast("I")
        self._quads = memoryview(self._mapping).cast("Q")

    def read32(self, offset: int) -> int:
        """One 32-bit read at ``offset`` bytes."""
        return self._words[offset >> 2]

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write at ``offset`` bytes."""
        self._words[offset >> 2] = value

    def read64(self, offset: int) -> int:
        """One 64-bit read at ``offset`` bytes."""
        return self._quads[offset >> 3]

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit write at ``offset`` bytes."""
        self._quads[offset >> 3] = value

    def close(self) -> None:
        """Unmap. mmap keeps a copy of the descriptor: the device stays open until then."""
        self._words.release()
        self._quads.release()
        self._mapping.close()


def map_areas(info: uapi.vfio_region_info, sparse: tuple[MapArea, ...]) -> tuple[MapArea, ...]:
    """The parts of a region that may be mapped, from its flags and its sparse capability."""
    if not info.flags & uapi.VFIO_REGION_INFO_FLAG_MMAP or not info.size:
        return ()
    return sparse or (MapArea(0, info.size),)
