# SPDX-License-Identifier: GPL-2.0-only
"""What the objects ask of the kernel, with a recorder in the kernel's place."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.vfio import uapi
from pkernfs.vfio.container import Container
from pkernfs.vfio.device import Device
from pkernfs.vfio.group import Group
from pkernfs.vfio.ioctl import VfioError
from pkernfs.vfio.memory import Memory


class Kernel:
    """Records requests and answers them."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, bytes | int]] = []
        self.refuse: dict[int, int] = {}
        self.viable = True

    def ioctl(
        self, _fd: int, request: int, argument: ctypes.Structure | bytearray | int, _m: bool = True
    ) -> int:
        """In place of fcntl.ioctl."""
        value = argument if isinstance(argument, int) else bytes(argument)
        self.requests.append((request, value))
        if request in self.refuse:
            raise OSError(self.refuse[request], "refused")
        if isinstance(argument, uapi.vfio_group_status):
            argument.flags = uapi.VFIO_GROUP_FLAGS_VIABLE * self.viable
        if request == uapi.VFIO_GROUP_GET_DEVICE_FD:
            return os.open("/dev/null", os.O_RDONLY)
        return request == uapi.VFIO_CHECK_EXTENSION and argument == uapi.VFIO_UNMAP_ALL

    def last(self, request: int) -> bytes | int:
        """Argument of the last such request."""
        return [value for asked, value in self.requests if asked == request][-1]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    recorder = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", recorder.ioctl)
    yield recorder


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    for name in ("vfio", "7"):
        (tmp_path / name).touch()
    return tmp_path


def test_maps_are_undone(kernel: Kernel, dev: Path) -> None:
    with (
        Container(dev / "vfio") as container,
        Memory.anonymous(8192) as memory,
        container.map(memory, 0x10000, write=False),
    ):
        mapped = uapi.vfio_iommu_type1_dma_map.from_buffer_copy(
            bytes(kernel.last(uapi.VFIO_IOMMU_MAP_DMA))
        )
        assert (mapped.argsz, mapped.flags) == (32, uapi.VFIO_DMA_MAP_FLAG_READ)
        assert (mapped.vaddr, mapped.iova, mapped.size) == (memory.address, 0x10000, 8192)
        assert uapi.VFIO_IOMMU_UNMAP_DMA not in dict(kernel.requests)
    unmapped = uapi.vfio_iommu_type1_dma_unmap.from_buffer_copy(
        bytes(kernel.last(uapi.VFIO_IOMMU_UNMAP_DMA))
    )
    assert (unmapped.flags, unmapped.iova, unmapped.size) == (0, 0x10000, 8192)


def test_unmap_all(kernel: Kernel, dev: Path) -> None:
    with Container(dev / "vfio") as container:
        assert container.supports(uapi.VFIO_UNMAP_ALL)
        assert not container.supports(uapi.VFIO_UPDATE_VADDR)
        container.unmap_all()
        argument = kernel.last(uapi.VFIO_IOMMU_UNMAP_DMA)
        assert argument == bytes([24, 0, 0, 0, 2, 0, 0, 0]) + bytes(16)


def test_group_joins_before_the_type_is_set(kernel: Kernel, dev: Path) -> None:
    with Container(dev / "vfio") as container, Group(7, dev) as group:
        group.join(container)
        with group.open_device("0000:01:00.0") as device:
            device.reset()
    joined = container.fd.to_bytes(4, "little")
    asked = [
        item
        for item in kernel.requests
        if item[0] not in (uapi.VFIO_GET_API_VERSION, uapi.VFIO_GROUP_GET_STATUS)
    ]
    assert asked == [
        (uapi.VFIO_GROUP_SET_CONTAINER, joined),
        (uapi.VFIO_SET_IOMMU, uapi.VFIO_TYPE1v2_IOMMU),
        (uapi.VFIO_GROUP_GET_DEVICE_FD, b"0000:01:00.0\0"),
        (uapi.VFIO_DEVICE_RESET, 0),
        (uapi.VFIO_GROUP_UNSET_CONTAINER, 0),
    ]


def test_group_that_is_not_viable(kernel: Kernel, dev: Path) -> None:
    kernel.viable = False
    with pytest.raises(PkernfsError, match="not viable"):
        Group(7, dev)
    with pytest.raises(PkernfsError, match="can't open IOMMU group 8"):
        Group(8, dev)


def test_refusals_carry_their_errno(kernel: Kernel, dev: Path) -> None:
    kernel.refuse[uapi.VFIO_IOMMU_MAP_DMA] = 17
    with Container(dev / "vfio") as container, pytest.raises(VfioError) as caught:
        container.map_dma(0x1000, 0x20000, 4096)
    assert caught.value.errno == 17
    assert "IOVA 0x20000" in caught.value.what


def test_interrupts_are_turned_off_again(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(
        fd: int, request: int, argument: ctypes.Structure | bytearray, mutate: bool = True
    ) -> int:
        if isinstance(argument, uapi.vfio_irq_info):
            argument.count = 1
            return 0
        return kernel.ioctl(fd, request, argument, mutate)

    monkeypatch.setattr(fcntl, "ioctl", answer)
    device = Device(0, "0000:01:00.0")
    with device.interrupts(uapi.VFIO_PCI_MSI_IRQ_INDEX) as interrupts:
        os.eventfd_write(interrupts.eventfds[0], 2)
        assert (interrupts.wait(1), interrupts.wait(0)) == (2, 0)
    off = kernel.last(uapi.VFIO_DEVICE_SET_IRQS)
    flags = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
    assert off == bytes([20, 0, 0, 0, flags, 0, 0, 0, 1, 0, 0, 0]) + bytes(8)
    with pytest.raises(PkernfsError, match="has 1 vectors"):
        device.interrupts(uapi.VFIO_PCI_MSI_IRQ_INDEX, 2)
