# SPDX-License-Identifier: GPL-2.0-only
"""A VFIO container: the IOVA space that the devices of its groups see."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.vfio import uapi
from pkernfs.vfio.closing import Closing
from pkernfs.vfio.ioctl import call, sized
from pkernfs.vfio.memory import Memory

CONTAINER = Path("/dev/vfio/vfio")


@dataclass(frozen=True)
class IovaRange:
    """IOVAs that can be mapped, ``first`` to ``last`` inclusive."""

    first: int
    last: int

    def holds(self, iova: int, size: int) -> bool:
        """Whether ``size`` bytes at ``iova`` lie inside."""
        return self.first <= iova and iova + size - 1 <= self.last


@dataclass(frozen=True)
class IommuInfo:
    """What the IOMMU behind a container can do.

    :ivar page_sizes: bitmap of page sizes in bytes.
    :ivar ranges: IOVAs that can be mapped; empty when the kernel doesn't say.
    :ivar maps_left: how many more mappings the kernel allows; None when it doesn't say.
    """

    page_sizes: int
    ranges: tuple[IovaRange, ...]
    maps_left: int | None


def parse_iommu_info(data: bytes | bytearray) -> IommuInfo:
    """Read the answer of VFIO_IOMMU_GET_INFO, capability chain included."""
    info = uapi.vfio_iommu_type1_info.from_buffer_copy(data)
    ranges: list[IovaRange] = []
    maps_left = None
    for offset, kind in capabilities(data, info.cap_offset):
        if kind == uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            cap = uapi.vfio_iommu_type1_info_cap_iova_range.from_buffer_copy(data, offset)
            at = offset + ctypes.sizeof(cap)
            step = ctypes.sizeof(uapi.vfio_iova_range)
            for index in range(cap.nr_iovas):
                item = uapi.vfio_iova_range.from_buffer_copy(data, at + index * step)
                ranges.append(IovaRange(item.start, item.end))
        elif kind == uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
            maps_left = uapi.vfio_iommu_type1_info_dma_avail.from_buffer_copy(data, offset).avail
    return IommuInfo(info.iova_pgsizes, tuple(ranges), maps_left)


def capabilities(data: bytes | bytearray, offset: int) -> Iterator[tuple[int, int]]:
    """Walk a capability chain: offset and id of each, ends at offset 0.

    Offsets count from the start of the answer (comment on struct vfio_info_cap_header).
    """
    while offset:
        header = uapi.vfio_info_cap_header.from_buffer_copy(data, offset)
        yield offset, header.id
        offset = header.next


class Container(Closing):
    """An open /dev/vfio/vfio; a context manager.

    :raises PkernfsError: no VFIO in this kernel, or another version of it.
    """

    def __init__(self, path: Path = CONTAINER) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PkernfsError(
                f"can't open {path}: {error.strerror}", "load vfio-pci and vfio_iommu_type1"
            ) from error
        version = call(self.fd, uapi.VFIO_GET_API_VERSION, 0, "VFIO version")
        if version != uapi.VFIO_API_VERSION:
            os.close(self.fd)
            raise PkernfsError(f"VFIO has version {version}, not {uapi.VFIO_API_VERSION}")

    def supports(self, extension: int) -> bool:
        """Whether the kernel has an extension (``VFIO_TYPE1v2_IOMMU``, ``VFIO_UNMAP_ALL``...)."""
        return call(self.fd, uapi.VFIO_CHECK_EXTENSION, extension, "VFIO extension") > 0

    def set_iommu(self, kind: int = uapi.VFIO_TYPE1v2_IOMMU) -> None:
        """Choose the IOMMU interface; possible once a group has joined."""
        call(self.fd, uapi.VFIO_SET_IOMMU, kind, "set the IOMMU type of the container")

    def info(self) -> IommuInfo:
        """Page sizes and IOVA ranges of the IOMMU."""
        head = sized(uapi.vfio_iommu_type1_info)
        call(self.fd, uapi.VFIO_IOMMU_GET_INFO, head, "IOMMU info")
        # The first answer says how long the whole one is.
        data = bytearray(max(head.argsz, ctypes.sizeof(head)))
        data[:4] = len(data).to_bytes(4, "little")
        call(self.fd, uapi.VFIO_IOMMU_GET_INFO, data, "IOMMU info")
        return parse_iommu_info(data)

    def map_dma(
        self, address: int, iova: int, size: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Let devices reach memory of this process.

        :param address: virtual address of this process, page aligned.
        :param iova: where the devices see it, page aligned.
        :param size: bytes, whole pages.
        :param read: the device may read it.
        :param write: the device may write it.
        :raises VfioError: EEXIST for an IOVA in use, ENOSPC for too many maps, EINVAL for
            an IOVA that the IOMMU can't map.
        """
        flags = read * uapi.VFIO_DMA_MAP_FLAG_READ | write * uapi.VFIO_DMA_MAP_FLAG_WRITE
        argument = sized(
            uapi.vfio_iommu_type1_dma_map, flags=flags, vaddr=address, iova=iova, size=size
        )
        call(self.fd, uapi.VFIO_IOMMU_MAP_DMA, argument, f"map {size:#x} bytes at IOVA {iova:#x}")

    def unmap_dma(self, iova: int, size: int, *, flags: int = 0) -> int:
        """Take memory away from the devices.

        :param flags: ``VFIO_DMA_UNMAP_FLAG_VADDR`` to invalidate the addresses only.
        :returns: bytes that were unmapped.
        """
        argument = sized(uapi.vfio_iommu_type1_dma_unmap, flags=flags, iova=iova, size=size)
        call(self.fd, uapi.VFIO_IOMMU_UNMAP_DMA, argument, f"unmap IOVA {iova:#x}")
        return int(argument.size)

    def unmap_all(self) -> int:
        """Take everything away; returns bytes. Needs ``VFIO_UNMAP_ALL``."""
        return self.unmap_dma(0, 0, flags=uapi.VFIO_DMA_UNMAP_FLAG_ALL)

    @contextlib.contextmanager
    def map(
        self, memory: Memory, iova: int, *, read: bool = True, write: bool = True
    ) -> Iterator[int]:
        """``memory`` mapped at ``iova`` while the context lasts; yields the IOVA."""
        self.map_dma(memory.address, iova, memory.size, read=read, write=write)
        try:
            yield iova
        finally:
            # Unmapped by the user already: nothing to undo, the kernel then answers with 0.
            self.unmap_dma(iova, memory.size)

    def close(self) -> None:
        """Close the container; every mapping goes when its last group has left."""
        os.close(self.fd)
