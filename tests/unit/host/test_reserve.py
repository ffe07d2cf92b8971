# SPDX-License-Identifier: GPL-2.0-only
"""Where regions are placed, and the words that the boot line gets for them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import BootLine, is_reserved
from pkernfs.host.machine import Machine
from pkernfs.host.numa import Node
from pkernfs.host.ranges import Range, Region, common, merge, without
from pkernfs.host.reserve import (
    HOST_LEAST,
    KASLR_RANGES,
    LOWEST,
    UNIT,
    Terrain,
    add,
    boot_words,
    check_line,
    new_name,
    remove,
    terrain,
)
from tests.answers import answers
from tests.unit.host.test_numa import RECORDED

MIB, GIB = 1 << 20, 1 << 30

# Ranges, and sets of them

_range = st.builds(Range, st.integers(0, 200), st.integers(0, 60))
_ranges = st.lists(_range, max_size=8)


def _bytes(ranges: list[Range]) -> set[int]:
    return {byte for span in ranges for byte in range(span.start, span.end)}


@given(_ranges, _ranges)
def test_ranges_are_sets_of_bytes(some: list[Range], others: list[Range]) -> None:
    assert _bytes(merge(some)) == _bytes(some)
    assert _bytes(common(some, others)) == _bytes(some) & _bytes(others)
    assert _bytes(without(some, others)) == _bytes(some) - _bytes(others)
    for result in (merge(some), common(some, others), without(some, others)):
        gaps = itertools.pairwise(result)
        assert all(one.end < other.start for one, other in gaps)
        assert all(span.size for span in result)


# Placing

#: Parts of a machine of up to 64 GiB, in units of 256 MiB, so that few borders are whole GiB.
_part = st.builds(
    lambda start, size: Range(start * 256 * MIB, size * 256 * MIB),
    st.integers(0, 256),
    st.integers(1, 96),
)


@st.composite
def _terrains(draw: st.DrawFn) -> Terrain:
    ram = merge(draw(st.lists(_part, min_size=1, max_size=5)))
    borders = sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=4)))
    ends = [border * 256 * MIB for border in [0, *borders, 400]]
    nodes = tuple(
        Node(number, (Range.between(start, end),))
        for number, (start, end) in enumerate(itertools.pairwise(ends))
    )
    taken = draw(st.lists(_part, max_size=5))
    small = (Range(span.start, max(4096, span.size // 64)) for span in taken)
    return Terrain(tuple(ram), tuple((span, "Reserved") for span in small), nodes)


@given(_terrains(), st.lists(st.tuples(st.integers(1, 8), st.none() | st.integers(0, 5))))
def test_a_region_lies_where_it_may(map_: Terrain, wishes: list[tuple[int, int | None]]) -> None:
    regions: tuple[Region, ...] = ()
    for number, (size, node) in enumerate(wishes):
        before = regions
        try:
            regions = add(map_, before, size * GIB, node, f"r{number}")
        except PkernfsError as error:
            assert error.hint
            continue
        (*same, new) = regions
        assert tuple(same) == before
        span = new.range
        assert span.size == size * GIB
        assert span.start % UNIT == 0
        assert span.start >= LOWEST
        assert without([span], map_.ram) == []
        assert not any(span.overlaps(taken) for taken, _ in map_.taken)
        assert not any(span.overlaps(other.range) for other in before)
        lies_on = map_.node_of(span)
        assert lies_on is not None
        assert node in (None, lies_on)
        held = [*(taken for taken, _ in map_.taken), *(region.range for region in regions)]
        assert sum(left.size for left in without(map_.ram, held)) >= HOST_LEAST


@given(_terrains(), st.integers(1, 8), st.integers(0, 3))
def test_what_fits_is_not_refused(map_: Terrain, size: int, node: int) -> None:
    """Against a search that tries every border."""
    if node >= len(map_.nodes):
        return
    free = without(common(map_.ram, map_.nodes[node].memory), [span for span, _ in map_.taken])
    fits = any(
        piece.contains(Range(start * GIB, size * GIB))
        for piece in free
        for start in range(LOWEST // GIB, 100)
    )
    left = sum(span.size for span in without(map_.ram, [span for span, _ in map_.taken]))
    if fits and left - size * GIB >= HOST_LEAST:
        assert map_.place(size * GIB, node, ()).size == size * GIB
    else:
        with pytest.raises(PkernfsError):
            map_.place(size * GIB, node, ())


FLAT = Terrain((Range(0, 2 * GIB), Range(4 * GIB, 12 * GIB)), (), (Node(0, (Range(0, 1 << 60),)),))


@answers(
    phase="input",
    failure="a region of a size that does not fit, or on a node that is not there",
    outcome="refused, nothing written; the message says what would fit",
)
@pytest.mark.parametrize(
    ("size", "node", "says"),
    [
        (0, None, "can't have 0 of memory"),
        (-GIB, None, "can't have"),
        (512 * MIB, None, "can't have 512M"),
        (GIB + 2 * MIB, None, "can't have 1026M"),
        (13 * GIB, None, "no 13G in one piece"),
        (GIB, 1, "no NUMA node 1"),
    ],
)
def test_what_can_not_be_placed(size: int, node: int | None, says: str) -> None:
    with pytest.raises(PkernfsError, match=says) as caught:
        FLAT.place(size, node, ())
    assert caught.value.hint


def test_an_error_says_what_fits() -> None:
    with pytest.raises(PkernfsError) as caught:
        FLAT.place(40 * GIB, 0, ())
    assert caught.value.hint == "the largest that fits: --size 12G"
    with pytest.raises(PkernfsError) as caught:
        FLAT.place(GIB + 1, 0, ())
    assert caught.value.hint.endswith("--size 2G")


def test_the_host_keeps_something() -> None:
    small = replace(FLAT, ram=(Range(0, 512 * MIB), Range(4 * GIB, 4 * GIB)))
    assert small.place(3 * GIB, None, ()).start == 4 * GIB
    with pytest.raises(PkernfsError, match="leaves 512 MiB of memory for the host"):
        small.place(4 * GIB, None, ())


# Reading a machine

#: The two-node machine of test_numa.py, as it boots without a region.
_IOMEM = """\
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
00100000-7ffd6fff : System RAM
  2a600000-2b5fffff : Kernel code
7ffd7000-7fffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
100000000-1bfffffff : System RAM
1c0000000-9bfffffff : PCI Bus 0000:00
fd00000000-ffffffffff : Reserved
"""
_FIRMWARE = [
    (0x0, 0x9FBFF, "System RAM"),
    (0x9FC00, 0x9FFFF, "Reserved"),
    (0x100000, 0x7FFD6FFF, "System RAM"),
    (0x7FFD7000, 0x7FFFFFFF, "Reserved"),
    (0x100000000, 0x1BFFFFFFF, "System RAM"),
    (0xFD00000000, 0xFFFFFFFFFF, "Reserved"),
]
#: What its kernel shows with a region on either node, which lie side by side.
_RESERVED = _IOMEM.replace(
    "100000000-1bfffffff : System RAM\n",
    "100000000-17fffffff : Reserved\n"
    "  100000000-13fffffff : pkernfs\n"
    "  140000000-17fffffff : pkernfs\n"
    "180000000-1bfffffff : System RAM\n",
)
NODE0 = Region("node0", Range(4 * GIB, GIB))
NODE1 = Region("node1", Range(5 * GIB, GIB))


def machine_of_two(
    root: Path, iomem: str = _IOMEM, line: str = "quiet", nodes: str = "0-1"
) -> Machine:
    files = {
        "proc/iomem": iomem,
        "proc/cmdline": line,
        "sys/devices/system/node/online": nodes,
    }
    for number, (start, end, kind) in enumerate(_FIRMWARE):
        home = f"sys/firmware/memmap/{number}"
        values = {"start": f"{start:#x}", "end": f"{end:#x}", "type": kind}
        files |= {f"{home}/{name}": value for name, value in values.items()}
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    table = root / "sys/firmware/acpi/tables/SRAT"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_bytes(RECORDED)
    return Machine(root)


def _room(map_: Terrain, regions: tuple[Region, ...] = ()) -> list[list[Range]]:
    return [map_.room(node.number, regions) for node in map_.nodes]


def test_a_machine_without_a_region(tmp_path: Path) -> None:
    map_ = terrain(machine_of_two(tmp_path))
    assert _room(map_) == [[Range(4 * GIB, GIB)], [Range(5 * GIB, 2 * GIB)]]
    regions = add(map_, add(map_, (), GIB, 0, None), GIB, 1, None)
    assert regions == (NODE0, NODE1)


def test_memory_that_is_reserved_already_is_still_known(tmp_path: Path) -> None:
    line = " ".join(boot_words([NODE0, NODE1]))
    map_ = terrain(machine_of_two(tmp_path, _RESERVED, line))
    assert map_.node_of(NODE1.range) == 1
    assert _room(map_, (NODE0, NODE1)) == [[], [Range(6 * GIB, GIB)]]
    # Given up, its memory can be reserved anew, in another size.
    assert add(map_, (NODE0,), 2 * GIB, 1, None)[1] == Region("node1", Range(5 * GIB, 2 * GIB))


@pytest.mark.parametrize(
    ("iomem", "line"),
    [
        (_IOMEM, "crashkernel=256M@0x140000000"),
        (_IOMEM.replace("1c00", "  150000000-15fffffff : Crash kernel\n1c00"), "crashkernel=256M"),
        (_IOMEM.replace("1c00", "  150000000-150000fff : Reserved\n1c00"), "quiet"),
        (_IOMEM.replace("1c00", "  150000000-150000fff : dax0.0\n1c00"), "quiet"),
        (_IOMEM, "memmap=4K!0x150000000"),
        (_IOMEM, "memmap=16M$0x150000000,1M$1M"),
    ],
)
def test_what_somebody_else_holds_is_left_alone(tmp_path: Path, iomem: str, line: str) -> None:
    map_ = terrain(machine_of_two(tmp_path, iomem, line))
    assert _room(map_)[1] == [Range(6 * GIB, GIB)]


def test_where_the_kernel_happens_to_lie_is_no_hindrance(tmp_path: Path) -> None:
    iomem = _IOMEM.replace("1c00", "  150000000-151ffffff : Kernel code\n1c00")
    assert _room(terrain(machine_of_two(tmp_path, iomem)))[1] == [Range(5 * GIB, 2 * GIB)]


def test_a_kernel_without_the_firmware_map_shows_what_is_free(tmp_path: Path) -> None:
    machine = machine_of_two(tmp_path, _RESERVED, " ".join(boot_words([NODE0, NODE1])))
    (tmp_path / "sys/firmware/memmap").rename(tmp_path / "sys/firmware/gone")
    assert _room(terrain(machine), (NODE0, NODE1)) == [[], [Range(6 * GIB, GIB)]]


def test_addresses_that_are_hidden_are_an_error(tmp_path: Path) -> None:
    hidden = "00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n"
    with pytest.raises(PkernfsError, match="memory map can't be read"):
        terrain(machine_of_two(tmp_path, hidden))


# Names and words


def test_a_region_is_called_after_its_node() -> None:
    assert new_name((), None) == ""
    assert new_name((), 1) == "node1"
    assert new_name((NODE1,), 1) == "node1-2"
    with pytest.raises(PkernfsError, match="needs a name"):
        new_name((NODE0,), None)
    with pytest.raises(PkernfsError, match="there is a region node0 already"):
        add(FLAT, (NODE0,), GIB, None, "node0")
    with pytest.raises(PkernfsError, match="there is a region pkernfs already"):
        add(FLAT, (Region("", Range(4 * GIB, GIB)),), GIB, None, "pkernfs")


def test_removing() -> None:
    assert remove((NODE0, NODE1), "node0") == (NODE1,)
    assert remove((Region("", Range(4 * GIB, GIB)),), "pkernfs") == ()
    with pytest.raises(PkernfsError, match="no region is named node2") as caught:
        remove((NODE0, NODE1), "node2")
    assert caught.value.hint == "reserved are: node0, node1"


@given(
    st.lists(
        st.builds(
            lambda n, size: Region(f"n{n}", Range((4 + n) * GIB, size * GIB)),
            st.integers(0, 30),
            st.integers(1, 4),
        ),
        unique_by=lambda region: region.name,
        max_size=8,
    )
)
def test_the_words_reserve_and_name_every_region(regions: list[Region]) -> None:
    line = BootLine(boot_words(regions))
    assert line.regions() == tuple(regions)
    assert all(is_reserved(line, region) for region in regions)
    spans = [span for span, _ in line.reservations()]
    assert _bytes([Range(span.start // GIB, span.size // GIB) for span in spans]) == _bytes(
        [Range(region.range.start // GIB, region.range.size // GIB) for region in regions]
    )


def test_regions_side_by_side_share_a_word() -> None:
    assert boot_words((NODE0, NODE1)) == (
        "memmap=2G$0x100000000",
        "pkernfs.region=node0:1G!0x100000000,node1:1G!0x140000000",
    )
    assert boot_words(()) == ()


def _apart(count: int) -> list[Region]:
    return [Region(f"r{n}", Range((4 + 2 * n) * GIB, GIB)) for n in range(count)]


def test_kaslr_reads_only_so_many_ranges() -> None:
    check_line(BootLine(("quiet",)), (), _apart(KASLR_RANGES))
    with pytest.raises(PkernfsError, match="would reserve 5 ranges; KASLR reads 4"):
        check_line(BootLine(("quiet",)), (), _apart(KASLR_RANGES + 1))
    foreign = BootLine(("memmap=1M$1M,2M#2M", "memmap=1G@8G", "memmap=4M%4M-1+2"))
    check_line(foreign, (), _apart(2))
    with pytest.raises(PkernfsError, match="would reserve 5 ranges"):
        check_line(foreign, (), _apart(3))
    # What the running line has for its own regions does not come on top.
    check_line(BootLine(boot_words(_apart(4))), _apart(4), _apart(4))


def test_a_boot_line_that_becomes_too_long_is_refused() -> None:
    check_line(BootLine(("x" * 1700,)), (), [NODE0])
    with pytest.raises(PkernfsError, match="a kernel reads 2048"):
        check_line(BootLine(("x" * 1800,)), (), [NODE0])
