# SPDX-License-Identifier: GPL-2.0-only
"""Answers of the kernel taken apart, arguments put together, config space, binding."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.vfio import uapi
from pkernfs.vfio.bind import (
    bind,
    choose_reset,
    current_driver,
    find,
    iommu_group,
    parse_bdf,
    reset_methods,
    unbind,
)
from pkernfs.vfio.config import (
    PCI_CAP_ID_EXP,
    PCI_CAP_ID_MSI,
    PCI_CAP_ID_MSIX,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PciConfig,
)
from pkernfs.vfio.container import IovaRange, parse_iommu_info
from pkernfs.vfio.device import parse_region_info
from pkernfs.vfio.interrupts import eventfd_trigger
from pkernfs.vfio.memory import Memory
from pkernfs.vfio.region import MapArea, MappedRegion, Region, RegionInfo


def test_iommu_info_with_capabilities() -> None:
    ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1)]
    head = struct.pack("<IIQII", 104, 3, 0x4020_1000, 24, 0)
    iova = struct.pack("<HHIII", 1, 1, 24 + 16 + 32, len(ranges), 0)
    iova += b"".join(struct.pack("<QQ", *item) for item in ranges)
    avail = struct.pack("<HHII", 3, 1, 0, 65535)
    info = parse_iommu_info(head + iova + avail)
    assert info.page_sizes == 0x4020_1000
    assert info.ranges == tuple(IovaRange(*item) for item in ranges)
    assert info.maps_left == 65535
    assert info.ranges[0].holds(0xFEDF_F000, 0x1000)
    assert not info.ranges[0].holds(0xFEDF_F000, 0x1001)


def test_iommu_info_without_capabilities() -> None:
    info = parse_iommu_info(struct.pack("<IIQII", 24, 1, 0x1000, 0, 0))
    assert (info.ranges, info.maps_left) == ((), None)


def _region_info(flags: int, size: int, areas: list[tuple[int, int]]) -> bytes:
    head = struct.pack("<IIIIQQ", 64, flags, 0, 32 if areas else 0, size, 0)
    cap = struct.pack("<HHIII", 1, 1, 0, len(areas), 0)
    return head + (cap if areas else b"") + b"".join(struct.pack("<QQ", *area) for area in areas)


def test_region_info() -> None:
    flags = uapi.VFIO_REGION_INFO_FLAG_MMAP | uapi.VFIO_REGION_INFO_FLAG_READ
    assert parse_region_info(_region_info(flags, 0x20000, [])).areas == (MapArea(0, 0x20000),)
    sparse = parse_region_info(_region_info(flags, 0x4000, [(0, 0x1000), (0x3000, 0x1000)]))
    assert sparse.areas == (MapArea(0, 0x1000), MapArea(0x3000, 0x1000))
    assert not parse_region_info(_region_info(1, 0x20, [])).mappable
    assert not parse_region_info(_region_info(flags, 0, [])).mappable


def test_irq_set() -> None:
    assert eventfd_trigger(2, [7, -1]) == struct.pack("<5I2i", 28, 0x24, 2, 0, 2, 7, -1)


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """A file that stands for a device: config space of the 82574's shape at offset 4096."""
    path = tmp_path / "device"
    config = bytearray(256)
    config[0:8] = struct.pack("<4H", 0x8086, 0x10D3, PCI_COMMAND_MEMORY, 0x10)
    config[0x34] = 0xC8
    for offset, kind, following in ((0xC8, 1, 0xD0), (0xD0, 5, 0xE0), (0xE0, 0x10, 0)):
        config[offset], config[offset + 1] = kind, following
    path.write_bytes(bytes(4096) + bytes(config))
    return path


def test_config_space(backing: Path) -> None:
    fd = os.open(backing, os.O_RDWR)
    config = PciConfig(Region(fd, RegionInfo(7, 3, 256, 4096, ())))
    assert (config.vendor, config.device) == (0x8086, 0x10D3)
    assert config.capability(PCI_CAP_ID_MSI) == 0xD0
    assert config.capability(PCI_CAP_ID_EXP) == 0xE0
    assert config.capability(PCI_CAP_ID_MSIX) is None
    assert not config.bus_master
    config.enable()
    assert config.command == PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER
    config.disable(PCI_COMMAND_MASTER)
    assert not config.bus_master
    os.close(fd)


def test_capability_loop_ends(backing: Path) -> None:
    data = bytearray(backing.read_bytes())
    data[4096 + 0xE1] = 0xC8
    backing.write_bytes(data)
    fd = os.open(backing, os.O_RDWR)
    assert PciConfig(Region(fd, RegionInfo(7, 3, 256, 4096, ()))).capability(0x99) is None
    os.close(fd)


def test_region_bounds(backing: Path) -> None:
    fd = os.open(backing, os.O_RDWR)
    region = Region(fd, RegionInfo(0, 3, 256, 4096, ()))
    with pytest.raises(PkernfsError, match="outside of region"):
        region.read32(253)
    with pytest.raises(PkernfsError, match="can't be mapped"):
        MappedRegion(fd, region.info)
    os.close(fd)


def test_mapped_region(tmp_path: Path) -> None:
    path = tmp_path / "bar"
    path.write_bytes(bytes(8192))
    fd = os.open(path, os.O_RDWR)
    info = RegionInfo(0, 7, 4096, 4096, (MapArea(0, 4096),))
    with MappedRegion(fd, info) as bar:
        bar.write32(8, 0x12345678)
        bar.write64(16, 0x1122334455667788)
        assert (bar.read32(8), bar.read64(16)) == (0x12345678, 0x1122334455667788)
    assert path.read_bytes()[4096 + 8 :][:4] == bytes.fromhex("78563412")
    os.close(fd)


def test_memory_of_file(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with Memory.create_file(path, 8192) as memory:
        memory.view[4096:4100] = b"abcd"
        assert memory.address % 4096 == 0
    with Memory.of_file(path, offset=4096) as memory:
        assert (memory.size, bytes(memory.view[:4])) == (4096, b"abcd")
    with pytest.raises(PkernfsError, match="can't map"):
        Memory.of_file(tmp_path / "none")


def test_bdf() -> None:
    assert parse_bdf("01:00.0") == "0000:01:00.0"
    assert parse_bdf("0001:AB:1f.7") == "0001:ab:1f.7"
    for text in ("1:00.0", "01:00.8", "01:00", "", "0000:01:00.0/.."):
        with pytest.raises(UsageError):
            parse_bdf(text)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A tree with one device, bound to a host driver, and vfio-pci loaded."""
    device = tmp_path / "bus/pci/devices/0000:01:00.0"
    (tmp_path / "kernel/iommu_groups/7").mkdir(parents=True)
    for driver in ("e1000e", "vfio-pci"):
        (tmp_path / "bus/pci/drivers" / driver).mkdir(parents=True)
    (tmp_path / "bus/pci/drivers/e1000e/unbind").touch()
    device.mkdir(parents=True)
    (device / "iommu_group").symlink_to(tmp_path / "kernel/iommu_groups/7")
    (device / "driver").symlink_to(tmp_path / "bus/pci/drivers/e1000e")
    (device / "vendor").write_text("0x8086\n")
    (device / "device").write_text("0x10d3\n")
    return tmp_path


def test_bind_asks_for_the_driver(sysfs: Path) -> None:
    bdf = "0000:01:00.0"
    assert (iommu_group(bdf, sysfs), current_driver(bdf, sysfs)) == (7, "e1000e")
    assert find(0x8086, 0x10D3, sysfs) == [bdf]
    # Nothing reacts to what is written into this tree, so the driver stays the old one.
    with pytest.raises(PkernfsError, match="did not take"):
        bind(bdf, sysfs)
    assert (sysfs / "bus/pci/devices" / bdf / "driver_override").read_text() == "vfio-pci"
    assert (sysfs / "bus/pci/drivers/e1000e/unbind").read_text() == bdf
    assert (sysfs / "bus/pci/drivers_probe").read_text() == bdf


def test_bind_leaves_a_bound_device_alone(sysfs: Path) -> None:
    device = sysfs / "bus/pci/devices/0000:01:00.0"
    (device / "driver").unlink()
    (device / "driver").symlink_to(sysfs / "bus/pci/drivers/vfio-pci")
    assert bind("0000:01:00.0", sysfs) == "vfio-pci"
    assert not (device / "driver_override").exists()
    unbind("0000:01:00.0", "e1000e", sysfs)
    assert (device / "driver_override").read_text() == "\n"
    assert (sysfs / "bus/pci/drivers/vfio-pci/unbind").read_text() == "0000:01:00.0"


def test_reset_methods(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices/0000:01:00.0/reset_method").write_text("pm bus\n")
    assert reset_methods("0000:01:00.0", sysfs) == ["pm", "bus"]
    choose_reset("0000:01:00.0", "bus", sysfs)
    assert reset_methods("0000:01:00.0", sysfs) == ["bus"]


def test_bind_needs_an_iommu(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices/0000:01:00.0/iommu_group").unlink()
    with pytest.raises(PkernfsError, match="behind no IOMMU"):
        bind("0000:01:00.0", sysfs)
    with pytest.raises(PkernfsError, match="no PCI device"):
        bind("0000:02:00.0", sysfs)
