# SPDX-License-Identifier: GPL-2.0-only
"""The drivers on models of their devices."""

from __future__ import annotations

import struct

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.vfio import e1000e_regs as regs
from pkernfs.vfio.e1000e import E1000e
from pkernfs.vfio.e1000e_ring import Geometry, RingMemory, RxDescriptor, TxDescriptor
from pkernfs.vfio.edu import Edu
from tests.unit.vfio.models import MAC, EduModel, NicModel

IOVA = 0x1_2000_0000
SMALL = Geometry(receive=16, buffer=256, transmit=8)


def test_edu() -> None:
    memory = bytearray(range(256)) * 16
    device = Edu(EduModel(memory, 0x100000))
    assert device.alive()
    assert device.factorial(13) == 6227020800 % 2**32
    device.from_ram(0x100000 + 16, 32, at=8)
    device.to_ram(0x100000 + 1024, 32, at=8)
    assert memory[1024:1056] == bytes(range(16, 48))
    assert memory[1056] == 32
    device.raise_interrupt(5)
    assert (device.acknowledge(), device.acknowledge()) == (5, 0)


def test_edu_refuses() -> None:
    model = EduModel(bytearray(4096), 0)
    with pytest.raises(PkernfsError, match="not within"):
        Edu(model).to_ram(0, 4097)
    with pytest.raises(PkernfsError, match="32-bit"):
        Edu(model).to_ram(1 << 32, 16)
    model.write32(0, 0xFFFFFFFF)
    with pytest.raises(PkernfsError, match="not QEMU's edu"):
        Edu(model)


def test_descriptors_are_laid_out_as_the_datasheet_says() -> None:
    rx = RxDescriptor(0x1122334455667788, 100, 3, 0x80)
    assert rx.pack() == struct.pack("<QHHBBH", 0x1122334455667788, 100, 0, 3, 0x80, 0)
    assert RxDescriptor.unpack(rx.pack()) == rx
    tx = TxDescriptor(0x1000, 64)
    # Legacy transmit command: EOP bit 0, IFCS bit 1, RS bit 3, in byte 11.
    assert tx.pack()[8:13] == bytes([64, 0, 0, 0x0B, 0])
    assert TxDescriptor.unpack(tx.pack()) == tx


def test_buffer_sizes_round_trip() -> None:
    assert [regs.buffer_size(bits) for bits in regs.BUFFER_SIZES.values()] == [*regs.BUFFER_SIZES]
    assert regs.buffer_size(regs.RCTL_BSEX) == 0
    assert regs.buffer_size(regs.RCTL_EN | regs.RCTL_UPE | 0x30000) == 256


def test_geometry_limits() -> None:
    assert Geometry(regs.RING_MAX, 256).size > regs.RING_MAX * (256 + 16)
    assert Geometry().receive * 0.005 > 160
    for wrong in ((65536, 256), (4, 256), (0, 256), (16, 300)):
        with pytest.raises(PkernfsError):
            Geometry(*wrong)


def test_areas_do_not_overlap() -> None:
    for geometry in (SMALL, Geometry(), Geometry(4096, 2048, 256)):
        ends = [
            (geometry.receive_ring, geometry.receive * 16),
            (geometry.transmit_ring, geometry.transmit * 16),
            (geometry.transmit_buffers, geometry.transmit * 2048),
            (geometry.receive_buffers, geometry.receive * geometry.buffer),
        ]
        at = 44
        for start, size in ends:
            assert start >= at
            assert start % 4096 == 0
            at = start + size
        assert at <= geometry.size


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(SMALL.size))


@pytest.fixture
def model(memory: memoryview) -> NicModel:
    return NicModel(memory, IOVA)


@pytest.fixture
def nic(memory: memoryview, model: NicModel) -> E1000e:
    return E1000e.start(model, RingMemory.format(memory, IOVA, SMALL))


def _frame(number: int) -> bytes:
    return bytes([number]) * (60 + number)


def test_receive_around_the_ring(nic: E1000e, model: NicModel) -> None:
    assert (nic.mac, nic.link_up) == (MAC, True)
    for number in range(50):
        assert model.arrive(_frame(number))
        received = nic.receive()
        assert [(item.slot, item.data, item.errors) for item in received] == [
            (number % 16, _frame(number), 0)
        ]
    assert nic.receive() == []
    assert nic.ring_state().waiting == 0


def test_ring_holds_all_but_one(nic: E1000e, model: NicModel) -> None:
    assert [model.arrive(_frame(number)) for number in range(16)] == [True] * 15 + [False]
    assert nic.ring_state().waiting == 15
    assert [item.data for item in nic.receive(100)] == [_frame(number) for number in range(15)]
    # All of them came back, not only some.
    assert [model.arrive(_frame(number)) for number in range(16)] == [True] * 15 + [False]


def test_poll_keeps_frames(nic: E1000e, model: NicModel) -> None:
    model.arrive(_frame(1))
    first = nic.poll()
    assert nic.poll() == first
    nic.give_back(first)
    assert nic.poll() == []


def test_receive_shows_errors(nic: E1000e, model: NicModel) -> None:
    model.arrive(_frame(1), errors=0x01)
    assert nic.receive()[0].errors == 1


def test_frame_longer_than_a_buffer(nic: E1000e, model: NicModel) -> None:
    model.arrive(bytes(257))
    with pytest.raises(PkernfsError, match="longer than a buffer"):
        nic.receive()


def test_transmit_around_the_ring(nic: E1000e, model: NicModel) -> None:
    for number in range(20):
        nic.transmit(_frame(number))
    assert model.sent == [_frame(number) for number in range(20)]
    with pytest.raises(PkernfsError, match="too long"):
        nic.transmit(bytes(2049))


@pytest.mark.parametrize("read_before", [0, 1, 15, 16, 37])
@pytest.mark.parametrize("missed", [0, 1, 14, 15])
def test_adopt(
    memory: memoryview, nic: E1000e, model: NicModel, read_before: int, missed: int
) -> None:
    for number in range(read_before):
        model.arrive(_frame(number))
        nic.receive()
    for number in range(missed):
        assert model.arrive(_frame(100 + number))
    model.writes.clear()
    adopted = E1000e.adopt(model, RingMemory.read(memory))
    assert model.writes == [], "adoption must not touch the device"
    assert adopted.ring_state().waiting == missed
    assert [item.data for item in adopted.receive()] == [
        _frame(100 + number) for number in range(missed)
    ]
    adopted.transmit(b"x" * 60)
    assert model.arrive(_frame(7))
    assert adopted.receive()[0].data == _frame(7)


def test_adopt_after_a_driver_died_giving_back(
    memory: memoryview, nic: E1000e, model: NicModel
) -> None:
    for number in range(5):
        model.arrive(_frame(number))
    # Two descriptors were cleared, but the tail was not written any more.
    nic.memory.recycle(0)
    nic.memory.recycle(1)
    adopted = E1000e.adopt(model, RingMemory.read(memory))
    assert [item.data for item in adopted.receive()] == [_frame(2), _frame(3), _frame(4)]


def test_adopt_refuses_another_state(memory: memoryview, nic: E1000e, model: NicModel) -> None:
    ring = RingMemory.read(memory)
    model.registers[regs.RDLEN] = 128
    with pytest.raises(PkernfsError, match="other rings"):
        E1000e.adopt(model, ring)
    model.reset()
    with pytest.raises(PkernfsError, match="was reset"):
        E1000e.adopt(model, ring)
    memory[8] = 9
    with pytest.raises(PkernfsError, match="no rings"):
        RingMemory.read(memory)


def test_no_link(memory: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkernfs.vfio.e1000e.LINK_TIMEOUT_S", 0.02)
    model = NicModel(memory, IOVA)
    monkeypatch.setattr(model, "reset", lambda: None)
    model.registers[regs.STATUS] = 0
    with pytest.raises(PkernfsError, match="no link"):
        E1000e.start(model, RingMemory.format(memory, IOVA, SMALL))
