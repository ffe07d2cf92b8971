# SPDX-License-Identifier: GPL-2.0-only
"""NUMA nodes as the firmware's table has them, and as the kernel numbers them."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.host import numa
from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Range
from pkernfs.host.srat import memory_of_nodes

MIB, GIB = 1 << 20, 1 << 30

#: /sys/firmware/acpi/tables/SRAT of a q35 machine of QEMU 7.2 with two nodes, one processor.
#: Its kernel says: Node 0 PXM 0 [mem 0x00000000-0x0009ffff], [mem 0x00100000-0x7fffffff],
#: [mem 0x100000000-0x13fffffff], Node 1 PXM 1 [mem 0x140000000-0x1bfffffff].
RECORDED = base64.b64decode(
    "U1JBVOAAAAABNEJPQ0hTIEJYUEMgICAgAQAAAEJYUEMBAAAAAQAAAAAAAAAAAAAAABAAAAEAAAAA"
    "AAAAAAAAAAEoAAAAAAAAAAAAAAAAAAAAAAoAAAAAAAAAAAABAAAAAAAAAAAAAAABKAAAAAAAAAAA"
    "EAAAAAAAAADwfwAAAAAAAAAAAQAAAAAAAAAAAAAAASgAAAAAAAAAAAAAAQAAAAAAAEAAAAAAAAAA"
    "AAEAAAAAAAAAAAAAAAEoAQAAAAAAAAAAQAEAAAAAAACAAAAAAAAAAAABAAAAAAAAAAAAAAA="
)


def _processor(domain: int, apic: int, enabled: bool = True) -> bytes:
    high = (domain >> 8).to_bytes(3, "little")
    return struct.pack("<BBBBIB3sI", 0, 16, domain & 255, apic, enabled, 0, high, 0)


def _x2apic(domain: int, apic: int, enabled: bool = True) -> bytes:
    return struct.pack("<BBHIIIII", 2, 24, 0, domain, apic, enabled, 0, 0)


def _memory(domain: int, span: Range, enabled: bool = True) -> bytes:
    where = (span.start, span.size)
    return struct.pack("<BBIHQQIIQ", 1, 40, domain, 0, *where, 0, enabled, 0)


def srat(*entries: bytes, revision: int = 3) -> bytes:
    """A table of these entries."""
    body = b"".join(entries)
    head = struct.pack("<4sIBB26xIQ", b"SRAT", 48 + len(body), revision, 0, 1, 0)
    return head + body


def test_a_recorded_table() -> None:
    assert memory_of_nodes(RECORDED) == {
        0: [Range(0, 0xA0000), Range(MIB, 2 * GIB - MIB), Range(4 * GIB, GIB)],
        1: [Range(5 * GIB, 2 * GIB)],
    }


def test_nodes_are_numbered_as_domains_appear_processors_first() -> None:
    a, b, c = Range(0, GIB), Range(GIB, GIB), Range(2 * GIB, GIB)
    table = srat(
        *(_memory(9, a), _memory(5, b), _memory(300, c)),
        *(_processor(77, 3, enabled=False), _x2apic(300, 256), _processor(5, 0)),
        _memory(88, Range(8 * GIB, GIB), enabled=False),
    )
    assert memory_of_nodes(table) == {0: [c], 1: [b], 2: [a]}


def test_an_old_table_has_eight_bits_of_a_domain() -> None:
    table = srat(_processor(0x0102, 0), _memory(0xFFFFFF02, Range(0, GIB)), revision=1)
    assert memory_of_nodes(table) == {0: [Range(0, GIB)]}


@given(st.binary(max_size=200) | st.integers(0, len(RECORDED)).map(lambda n: RECORDED[:n]))
def test_a_damaged_table_is_an_error_or_read_in_part(data: bytes) -> None:
    try:
        memory_of_nodes(b"SRAT" + data[4:])
    except PkernfsError as error:
        assert "SRAT is damaged" in error.what


def _host(root: Path, online: str = "0-1", table: bytes | None = RECORDED) -> Machine:
    files = {
        "sys/devices/system/node/online": online,
        "sys/devices/system/node/node0/cpulist": "0-2,6",
        "sys/devices/system/node/node1/cpulist": "",
        "sys/devices/system/memory/block_size_bytes": "8000000",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    if table is not None:
        file = root / "sys/firmware/acpi/tables/SRAT"
        file.parent.mkdir(parents=True)
        file.write_bytes(table)
    return Machine(root)


def test_nodes_of_a_machine(tmp_path: Path) -> None:
    machine = _host(tmp_path)
    # A block of node 1 that the kernel uses; the rest of the node is reserved.
    (tmp_path / "sys/devices/system/node/node1/memory48").mkdir()
    first, second = numa.nodes(machine)
    assert (first.number, second.number) == (0, 1)
    assert second.contains(Range(5 * GIB, 2 * GIB))
    assert not first.contains(Range(4 * GIB, 2 * GIB))
    assert numa.cpus(machine, 0) == [0, 1, 2, 6]
    assert numa.cpus(machine, 1) == numa.cpus(machine, 7) == []


def test_a_kernel_that_sees_it_differently_is_an_error(tmp_path: Path) -> None:
    machine = _host(tmp_path)
    (tmp_path / "sys/devices/system/node/node1/memory32").mkdir()
    with pytest.raises(PkernfsError, match="the kernel has 128M at 0x100000000 on node 1"):
        numa.nodes(machine)


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PkernfsError, match="can't be read"):
        numa.nodes(_host(tmp_path, table=None))


@pytest.mark.parametrize("online", ["0", ""])
def test_a_machine_of_one_node_needs_no_table(tmp_path: Path, online: str) -> None:
    (node,) = numa.nodes(_host(tmp_path, online, table=None))
    assert (node.number, node.contains(Range(1 << 40, 1 << 40))) == (0, True)


def test_a_node_that_is_all_reserved_is_known_all_the_same(tmp_path: Path) -> None:
    machine = _host(tmp_path, "0")
    (tmp_path / "sys/devices/system/node/node0/memory0").mkdir()
    assert [node.number for node in numa.nodes(machine)] == [0, 1]


def test_a_table_that_the_kernel_does_not_use_is_not_used(tmp_path: Path) -> None:
    machine = _host(tmp_path, "0")
    (tmp_path / "sys/devices/system/node/node0/memory48").mkdir()
    assert [node.number for node in numa.nodes(machine)] == [0]


def test_a_kernel_that_was_told_to_has_one_node(tmp_path: Path) -> None:
    machine = _host(tmp_path, "0")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet numa=off\n")
    assert [node.number for node in numa.nodes(machine)] == [0]


def test_what_is_started_runs_on_the_processors_of_a_node() -> None:
    before = os.sched_getaffinity(0)
    one = max(before)
    with numa.running_on([one, 4096]):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    for none in ([], [4096]):
        with numa.running_on(none):
            assert os.sched_getaffinity(0) == before
