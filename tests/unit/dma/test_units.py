# SPDX-License-Identifier: GPL-2.0-only
"""What is kept of several IOMMUs, on tables made here: QEMU emulates only one.

Each test is the path of a device through an update: its entry is found behind its IOMMU, its
tables are copied, record and sections are made, and the next kernel checks all of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .harness import PAGE, READ, WRITE, Leaf, Tables, build, copy, span, validate
from .units import (
    BASE,
    BLOCK,
    SIZE,
    Entry,
    Record,
    Unit,
    Where,
    entry_fault,
    header,
    header_fault,
    layout,
)

NIC, EDU, OTHER = Where(0, 1, 0x00), Where(0, 0, 0x80), Where(0, 0, 0x88)
#: Where guest memory lies.
FILE = BASE + (64 << 20)


@dataclass
class Device:
    """A device behind one of the IOMMUs, with tables that its VFIO user made."""

    where: Where
    unit: Unit
    tables: Tables
    entry: Entry

    @classmethod
    def new(
        cls, where: Where, unit: Unit, domain: int, leaves: list[Leaf], levels: int = 4
    ) -> Device:
        """Attach one: its entry is in the tables of ``unit``."""
        tables = build(levels, leaves, base=0x8_0000_0000)
        entry = Entry(tables.root, levels, domain)
        unit.put(where.bus, where.devfn, entry.words)
        return cls(where, unit, tables, entry)


def find(units: list[Unit], where: Where) -> tuple[Unit, Entry] | None:
    """The IOMMU that a device is behind, as dma_live_context() looks for it."""
    found = ((unit, unit.owned(where)) for unit in units)
    return next(((unit, entry) for unit, entry in found if entry), None)


def hand_over(units: list[Unit], preserved: Iterable[Device]) -> tuple[Record, dict[Where, Tables]]:
    """What handover.c does: the record, and the copied tables of each device."""
    record = Record()
    for unit in units:
        assert record.add_unit(unit) == 0
    files = {}
    for device in preserved:
        found = find(units, device.where)
        assert found is not None
        unit, entry = found
        assert (unit, entry) == (device.unit, device.entry)
        copied = copy(device.tables, 64, window=(FILE, BASE + SIZE))
        assert copied.result == 0
        new = Entry(copied.tables.root, entry.levels, entry.domain)
        counts = {"leaves": copied.counts.leaves, "pages": copied.counts.pages}
        assert record.add_device(device.where, unit, new, **counts) == 0
        files[device.where] = copied.tables
    record.seal()
    return record, files


def two_units() -> tuple[list[Unit], list[Device]]:
    """A network device behind a bridge and one IOMMU, two devices behind the other.

    Domain ids count for each IOMMU apart, so both may use the same.
    """
    units = [Unit(0xFED9_0000, 0, remaps=True), Unit(0xFED9_1000, 1)]
    nic = Device.new(NIC, units[0], 5, [Leaf(0, FILE, span(2), READ | WRITE)])
    edu = Device.new(EDU, units[1], 5, [Leaf(1 << 30, FILE + span(2), PAGE, READ)], levels=3)
    other = Device.new(OTHER, units[1], 6, [Leaf(0, FILE, span(2), READ | WRITE)])
    return units, [nic, edu, other]


def test_each_device_is_found_behind_its_own_iommu() -> None:
    units, (nic, edu, _) = two_units()
    assert find(units, NIC) == (units[0], nic.entry)
    assert find(units, EDU) == (units[1], edu.entry)
    assert find(units, Where(0, 1, 8)) is None
    assert find(units, Where(0, 7, 0)) is None


def test_the_same_name_in_two_segments() -> None:
    units = [Unit(0xFED9_0000, 0, segment=0), Unit(0xFED9_1000, 1, segment=1)]
    first = Device.new(Where(0, 1, 0), units[0], 1, [])
    second = Device.new(Where(1, 1, 0), units[1], 1, [])
    assert find(units, first.where) == (units[0], first.entry)
    assert find(units, second.where) == (units[1], second.entry)


def test_scalable_mode_is_not_looked_into() -> None:
    units, _ = two_units()
    assert units[0].owned(NIC, rtaddr_bits=0x400) is None


def test_two_iommus_with_a_preserved_device_each() -> None:
    units, (nic, edu, other) = two_units()
    record, files = hand_over(units, [nic, edu])
    assert record.fault() == ""
    parsed = record.parsed
    assert [unit.registers for unit in parsed.units[:3]] == [0xFED9_0000, 0xFED9_1000, 0]
    assert [unit.section for unit in parsed.units[:2]] == [BASE + BLOCK, BASE + 2 * BLOCK]
    assert [unit.flags for unit in parsed.units[:2]] == [1, 0]

    # The next kernel: each IOMMU knows its own preserved device and nobody else.
    assert units[0].all_inherited().keys() == {NIC}
    assert units[1].all_inherited().keys() == {EDU}
    assert other.where not in units[1].all_inherited()
    # It may count them in another order: registers tell them apart.
    by_registers = {unit.registers: unit for unit in reversed(units)}
    for kept, device in zip(parsed.devices, (nic, edu), strict=False):
        registers = record.registers_of(kept)
        assert registers is not None
        unit = by_registers[registers]
        assert unit is device.unit
        entry = unit.inherited(kept.bus, kept.devfn)
        assert entry_fault(kept, entry) == ""
        inherited = Entry.of(entry.contents)
        assert (inherited.levels, inherited.domain) == (device.entry.levels, 5)
        tables = files[device.where]
        assert inherited.root == tables.root
        assert tables.walk() == device.tables.walk()
        assert validate(tables, (FILE, BASE + SIZE), kept.pages)[0] == 0


def test_an_iommu_that_has_the_tables_of_another() -> None:
    """The registers of the two mixed up: neither device is trusted."""
    units, (nic, edu, _) = two_units()
    record, _ = hand_over(units, [nic, edu])
    kept_nic, kept_edu = record.parsed.devices[:2]
    assert entry_fault(kept_nic, units[1].inherited(NIC.bus, NIC.devfn)) != ""
    assert entry_fault(kept_edu, units[0].inherited(EDU.bus, EDU.devfn)) != ""


@pytest.mark.parametrize(
    "words",
    [
        lambda e: (0, 0),
        lambda e: (e.words[0] & ~1, e.words[1]),
        lambda e: (e.words[0] | 8, e.words[1]),
        lambda e: (e.words[0] + PAGE, e.words[1]),
        lambda e: (e.words[0], e.words[1] ^ 1),
        lambda e: (e.words[0], e.words[1] + 256),
    ],
    ids=["nothing", "not present", "pass-through", "other root", "other width", "other domain"],
)
def test_an_entry_that_is_not_the_recorded_one(words: object) -> None:
    units, (nic, edu, _) = two_units()
    record, _ = hand_over(units, [nic, edu])
    (kept, _) = record.parsed.devices[:2]
    entry = units[0].inherited(NIC.bus, NIC.devfn)
    assert entry_fault(kept, entry) == ""
    assert callable(words)
    entry.contents.lo, entry.contents.hi = words(Entry.of(entry.contents))
    assert entry_fault(kept, entry) in (
        "its IOMMU has no tables for it",
        "its IOMMU uses other tables",
    )


def test_a_device_behind_an_iommu_that_the_record_does_not_have() -> None:
    units, (nic, edu, _) = two_units()
    record, _ = hand_over(units, [nic, edu])
    kept = record.parsed.devices[1]
    kept.unit = 2
    assert record.registers_of(kept) is None


wheres = st.builds(Where, st.integers(0, 1), st.integers(0, 255), st.integers(0, 255))


@given(
    st.dictionaries(wheres, st.tuples(st.integers(0, 2), st.booleans()), max_size=40),
    st.integers(1, 0xFFFF),
)
@settings(max_examples=40)
def test_exactly_the_preserved_devices_are_known(
    devices: dict[Where, tuple[int, bool]], domain: int
) -> None:
    """Any devices behind three IOMMUs of each of two segments, some of them preserved."""
    units = [Unit(0xFED9_0000 + i * PAGE, i, segment=i // 3) for i in range(6)]
    made = []
    for where, (number, preserved) in devices.items():
        unit = units[where.segment * 3 + number]
        made.append((Device.new(where, unit, domain, []), preserved))
    kept = [device for device, preserved in made if preserved][:64]
    record, files = hand_over(units, kept)
    assert record.fault() == ""
    assert record.parsed.nr_devices == len(kept)
    for unit in units:
        expected = {
            device.where: Entry(files[device.where].root, 4, domain)
            for device in kept
            if device.unit is unit
        }
        assert unit.all_inherited() == expected


def test_more_buses_than_a_section_has_room_for() -> None:
    """The device that does not fit is refused; those before it stay."""
    unit = Unit(0xFED9_0000, 0)
    last = int(layout().PKERNFS_DMA_SECTION_CONTEXTS)
    for first in range(0, last, 64):
        record = Record()
        if not first:
            assert record.add_unit(unit) == 0
        for bus in range(first, min(first + 64, last)):
            assert record.add_device(Where(0, bus, 8), unit, Entry(bus * PAGE, 4, 1)) == 0
    record = Record()
    assert record.add_device(Where(0, last, 8), unit, Entry(0, 4, 1)) == -errno.ENOSPC
    assert record.parsed.nr_devices == 0
    assert {where.bus for where in unit.all_inherited()} == set(range(last))
    # Another device of a bus that has a table needs no room.
    assert record.add_device(Where(0, last - 1, 9), unit, Entry(0, 4, 1)) == 0


def test_more_devices_and_iommus_than_the_record_has_room_for() -> None:
    record = Record()
    unit = Unit(0xFED9_0000, 0)
    for _ in range(int(layout().PKERNFS_DMA_MAX_UNITS)):
        assert record.add_unit(unit) == 0
    assert record.add_unit(unit) == -errno.ENOSPC
    for devfn in range(int(layout().PKERNFS_DMA_MAX_DEVICES)):
        assert record.add_device(Where(0, 0, devfn), unit, Entry(0, 4, 1)) == 0
    assert record.add_device(Where(0, 0, 99), unit, Entry(0, 4, 1)) == -errno.ENOSPC
    record.seal()
    assert record.fault() == ""


@given(st.integers(0, len(layout().pkernfs_dma_record) - 1), st.integers(1, 255))
def test_a_changed_byte_of_the_record(at: int, change: int) -> None:
    units, (nic, edu, _) = two_units()
    record, _ = hand_over(units, [nic, edu])
    record.data[at] = bytes([record.data.raw[at] ^ change])
    assert record.fault() != ""


def test_records_that_are_not_for_this_kernel() -> None:
    record = Record()
    assert record.fault() == "its checksum is wrong"
    record.seal()
    assert record.fault() == ""
    assert record.fault(base=BASE + BLOCK) == "it is for another range"
    assert record.fault(size=SIZE * 2) == "it is for another range"
    for field, value, reason in (
        ("magic", 0, "there is none"),
        ("version", 2, "it has another version"),
        ("bytes", 8, "it has another version"),
        ("nr_units", 33, "its counts are wrong"),
        ("nr_devices", 65, "its counts are wrong"),
    ):
        other = Record()
        parsed = other.parsed
        setattr(parsed, field, value)
        other.data.raw = parsed.dumps()
        other.seal()
        assert other.fault() == reason


def test_headers_of_a_devices_file() -> None:
    good = header([FILE, FILE + 4 * BLOCK])
    assert header_fault(good) == ""
    assert "damaged" in header_fault(good[:-1] + b"\1")
    assert "damaged" in header_fault(bytes(len(good)))
    assert "wrong size" in header_fault(header([]))
    assert "wrong size" in header_fault(header([FILE], count=501))
    for block in (FILE + PAGE, BASE - BLOCK, BASE + SIZE, 0):
        assert "outside" in header_fault(header([FILE, block]))
