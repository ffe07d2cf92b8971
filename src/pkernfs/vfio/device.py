# SPDX-License-Identifier: GPL-2.0-only
"""An open VFIO device: its regions, interrupts, config space and reset."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from pkernfs.vfio import uapi
from pkernfs.vfio.closing import Closing
from pkernfs.vfio.config import PciConfig
from pkernfs.vfio.container import capabilities
from pkernfs.vfio.interrupts import Interrupts, IrqInfo
from pkernfs.vfio.ioctl import call, sized
from pkernfs.vfio.region import MapArea, MappedRegion, Region, RegionInfo, map_areas


@dataclass(frozen=True)
class DeviceInfo:
    """What the kernel says of a device.

    :ivar resettable: whether VFIO_DEVICE_RESET works.
    :ivar regions: highest region index + 1.
    :ivar irqs: highest interrupt index + 1.
    """

    resettable: bool
    regions: int
    irqs: int


def parse_region_info(data: bytes | bytearray) -> RegionInfo:
    """Read the answer of VFIO_DEVICE_GET_REGION_INFO, capability chain included."""
    info = uapi.vfio_region_info.from_buffer_copy(data)
    sparse: list[MapArea] = []
    for offset, kind in capabilities(data, info.cap_offset):
        if kind == uapi.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            cap = uapi.vfio_region_info_cap_sparse_mmap.from_buffer_copy(data, offset)
            at = offset + ctypes.sizeof(cap)
            step = ctypes.sizeof(uapi.vfio_region_sparse_mmap_area)
            for index in range(cap.nr_areas):
                area = uapi.vfio_region_sparse_mmap_area.from_buffer_copy(data, at + index * step)
                sparse.append(MapArea(area.offset, area.size))
    areas = map_areas(info, tuple(sparse))
    return RegionInfo(info.index, info.flags, info.size, info.offset, areas)


class Device(Closing):
    """An open device; a context manager. Made by :meth:`Group.open_device`.

    Closing the last descriptor makes the kernel stop bus master and reset the device
    (vfio_pci_core_disable in drivers/vfio/pci/vfio_pci_core.c).
    """

    def __init__(self, fd: int, bdf: str) -> None:
        self.fd = fd
        self.bdf = bdf

    def info(self) -> DeviceInfo:
        """Numbers of regions and interrupts, and whether it can be reset."""
        data = sized(uapi.vfio_device_info)
        call(self.fd, uapi.VFIO_DEVICE_GET_INFO, data, f"info of {self.bdf}")
        resettable = bool(data.flags & uapi.VFIO_DEVICE_FLAGS_RESET)
        return DeviceInfo(resettable, data.num_regions, data.num_irqs)

    def region_info(self, index: int) -> RegionInfo:
        """What the kernel says of region ``index``."""
        head = sized(uapi.vfio_region_info, index=index)
        call(self.fd, uapi.VFIO_DEVICE_GET_REGION_INFO, head, f"region {index} of {self.bdf}")
        # The first answer says how long the one with capabilities is.
        data = bytearray(max(head.argsz, ctypes.sizeof(head)))
        data[: ctypes.sizeof(head)] = bytes(sized(uapi.vfio_region_info, index=index))
        data[:4] = len(data).to_bytes(4, "little")
        call(self.fd, uapi.VFIO_DEVICE_GET_REGION_INFO, data, f"region {index} of {self.bdf}")
        return parse_region_info(data)

    def region(self, index: int) -> Region:
        """Region ``index`` through read and write."""
        return Region(self.fd, self.region_info(index))

    def map_bar(self, bar: int) -> MappedRegion:
        """BAR ``bar`` (0 to 5) mapped.

        :raises PkernfsError: it can't be mapped (an I/O port BAR, smaller than a page).
        """
        return MappedRegion(self.fd, self.region_info(uapi.VFIO_PCI_BAR0_REGION_INDEX + bar))

    @property
    def config(self) -> PciConfig:
        """PCI config space. Parts of it are virtual: the kernel filters what is written."""
        return PciConfig(self.region(uapi.VFIO_PCI_CONFIG_REGION_INDEX))

    def irq_info(self, index: int) -> IrqInfo:
        """What the kernel says of interrupt ``index`` (``VFIO_PCI_MSI_IRQ_INDEX``...)."""
        data = sized(uapi.vfio_irq_info, index=index)
        call(self.fd, uapi.VFIO_DEVICE_GET_IRQ_INFO, data, f"interrupt {index} of {self.bdf}")
        return IrqInfo(data.index, data.count, data.flags)

    def interrupts(self, index: int, count: int = 1) -> Interrupts:
        """Turn interrupts on: ``count`` vectors of ``index``, each an eventfd.

        :raises PkernfsError: the device has fewer.
        """
        return Interrupts(self.fd, self.irq_info(index), count)

    def reset(self) -> None:
        """Reset the function (VFIO_DEVICE_RESET). Mappings stay."""
        call(self.fd, uapi.VFIO_DEVICE_RESET, 0, f"reset {self.bdf}")

    def close(self) -> None:
        """Close this descriptor."""
        os.close(self.fd)
