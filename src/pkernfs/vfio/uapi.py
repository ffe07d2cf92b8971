# SPDX-License-Identifier: GPL-2.0-only
"""Constants and structs of the VFIO user interface: the only place they are written.

Source: include/uapi/linux/vfio.h of Linux 6.12. tests/unit/vfio/test_uapi.py compiles a C
program against the installed header and compares every name below with it.
"""

from __future__ import annotations

from ctypes import Structure, c_uint16, c_uint32, c_uint64
from typing import Final

# ``_IO(';', 100 + n)``: VFIO's requests carry no size, argsz in the struct does
# (comment above VFIO_TYPE in the header).
_BASE: Final = (ord(";") << 8) + 100

VFIO_API_VERSION: Final = 0
VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_DMA_CC_IOMMU: Final = 4
VFIO_UNMAP_ALL: Final = 9
VFIO_UPDATE_VADDR: Final = 10

# Requests of /dev/vfio/vfio, of a group, of a device, of a type 1 container.
VFIO_GET_API_VERSION: Final = _BASE + 0
VFIO_CHECK_EXTENSION: Final = _BASE + 1
VFIO_SET_IOMMU: Final = _BASE + 2
VFIO_GROUP_GET_STATUS: Final = _BASE + 3
VFIO_GROUP_SET_CONTAINER: Final = _BASE + 4
VFIO_GROUP_UNSET_CONTAINER: Final = _BASE + 5
VFIO_GROUP_GET_DEVICE_FD: Final = _BASE + 6
VFIO_DEVICE_GET_INFO: Final = _BASE + 7
VFIO_DEVICE_GET_REGION_INFO: Final = _BASE + 8
VFIO_DEVICE_GET_IRQ_INFO: Final = _BASE + 9
VFIO_DEVICE_SET_IRQS: Final = _BASE + 10
VFIO_DEVICE_RESET: Final = _BASE + 11
VFIO_IOMMU_GET_INFO: Final = _BASE + 12
VFIO_IOMMU_MAP_DMA: Final = _BASE + 13
VFIO_IOMMU_UNMAP_DMA: Final = _BASE + 14

VFIO_GROUP_FLAGS_VIABLE: Final = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET: Final = 1 << 1

VFIO_DEVICE_FLAGS_RESET: Final = 1 << 0
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1

VFIO_REGION_INFO_FLAG_READ: Final = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE: Final = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP: Final = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS: Final = 1 << 3
VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final = 1
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: Final = 3

VFIO_PCI_BAR0_REGION_INDEX: Final = 0
VFIO_PCI_BAR5_REGION_INDEX: Final = 5
VFIO_PCI_ROM_REGION_INDEX: Final = 6
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_VGA_REGION_INDEX: Final = 8

VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSI_IRQ_INDEX: Final = 1
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_ERR_IRQ_INDEX: Final = 3
VFIO_PCI_REQ_IRQ_INDEX: Final = 4

VFIO_IRQ_INFO_EVENTFD: Final = 1 << 0
VFIO_IRQ_INFO_MASKABLE: Final = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED: Final = 1 << 2
VFIO_IRQ_INFO_NORESIZE: Final = 1 << 3

VFIO_IRQ_SET_DATA_NONE: Final = 1 << 0
VFIO_IRQ_SET_DATA_BOOL: Final = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD: Final = 1 << 2
VFIO_IRQ_SET_ACTION_MASK: Final = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK: Final = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER: Final = 1 << 5

VFIO_IOMMU_INFO_PGSIZES: Final = 1 << 0
VFIO_IOMMU_INFO_CAPS: Final = 1 << 1
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Final = 1
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Final = 3

VFIO_DMA_MAP_FLAG_READ: Final = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE: Final = 1 << 1
VFIO_DMA_MAP_FLAG_VADDR: Final = 1 << 2

VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: Final = 1 << 0
VFIO_DMA_UNMAP_FLAG_ALL: Final = 1 << 1
VFIO_DMA_UNMAP_FLAG_VADDR: Final = 1 << 2


class vfio_info_cap_header(Structure):
    """Head of a capability in the chain of an INFO answer."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


class vfio_group_status(Structure):
    """Answer of VFIO_GROUP_GET_STATUS."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class vfio_device_info(Structure):
    """Answer of VFIO_DEVICE_GET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
    )


class vfio_region_info(Structure):
    """Question and answer of VFIO_DEVICE_GET_REGION_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


class vfio_region_sparse_mmap_area(Structure):
    """One part of a region that may be mapped."""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))


class vfio_region_info_cap_sparse_mmap(Structure):
    """Fixed part of the sparse mmap capability; ``nr_areas`` areas follow."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_areas", c_uint32), ("reserved", c_uint32))


class vfio_irq_info(Structure):
    """Question and answer of VFIO_DEVICE_GET_IRQ_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )


class vfio_irq_set(Structure):
    """Fixed part of VFIO_DEVICE_SET_IRQS; the data follows."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class vfio_iommu_type1_info(Structure):
    """Fixed part of the answer of VFIO_IOMMU_GET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
    )


class vfio_iova_range(Structure):
    """A range of IOVAs that can be mapped; ``end`` is its last byte."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))


class vfio_iommu_type1_info_cap_iova_range(Structure):
    """Fixed part of the IOVA range capability; ``nr_iovas`` ranges follow."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_iovas", c_uint32), ("reserved", c_uint32))


class vfio_iommu_type1_info_dma_avail(Structure):
    """Capability: how many mappings can still be made."""

    _fields_ = (("header", vfio_info_cap_header), ("avail", c_uint32))


class vfio_iommu_type1_dma_map(Structure):
    """Argument of VFIO_IOMMU_MAP_DMA."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class vfio_iommu_type1_dma_unmap(Structure):
    """Fixed part of the argument of VFIO_IOMMU_UNMAP_DMA; ``size`` is also the answer."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


#: Every struct above, for the test that compares sizes and offsets with the header.
STRUCTS: Final[tuple[type[Structure], ...]] = (
    vfio_info_cap_header,
    vfio_group_status,
    vfio_device_info,
    vfio_region_info,
    vfio_region_sparse_mmap_area,
    vfio_region_info_cap_sparse_mmap,
    vfio_irq_info,
    vfio_irq_set,
    vfio_iommu_type1_info,
    vfio_iova_range,
    vfio_iommu_type1_info_cap_iova_range,
    vfio_iommu_type1_info_dma_avail,
    vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
)
