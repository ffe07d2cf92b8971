# SPDX-License-Identifier: GPL-2.0-only
"""ACPI's System Resource Affinity Table: which memory belongs to which NUMA node.

The firmware's own table, so it names all memory of a node, also what a boot line keeps
away from the kernel. Layout: ACPI specification 6.5, section 5.2.16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dissect.cstruct import cstruct  # type: ignore[import-untyped]

from pkernfs.errors import PkernfsError
from pkernfs.host.ranges import Range, merge

_DEFINITIONS = """
struct table {
    char   signature[4];
    uint32 length;
    uint8  revision;
    uint8  checksum;
    char   oem[26];
    uint32 table_revision;
    uint64 reserved;
};
struct processor {
    uint8  type;
    uint8  length;
    uint8  domain_low;
    uint8  apic_id;
    uint32 flags;
    uint8  sapic_eid;
    uint8  domain_high[3];
    uint32 clock_domain;
};
struct memory {
    uint8  type;
    uint8  length;
    uint32 domain;
    uint16 reserved1;
    uint64 base;
    uint64 bytes;
    uint32 reserved2;
    uint32 flags;
    uint64 reserved3;
};
struct x2apic {
    uint8  type;
    uint8  length;
    uint16 reserved1;
    uint32 domain;
    uint32 apic_id;
    uint32 flags;
    uint32 clock_domain;
    uint32 reserved2;
};
"""
_types: Any = cstruct().load(_DEFINITIONS)
_PROCESSOR, _MEMORY, _X2APIC = 0, 1, 2
_ENABLED = 1


def _entries(table: bytes) -> Iterator[tuple[int, bytes]]:
    position = len(_types.table)
    while position + 2 <= len(table):
        kind, length = table[position], table[position + 1]
        if length < 2 or position + length > len(table):
            raise PkernfsError(f"the firmware's SRAT is damaged at byte {position}")
        yield kind, table[position : position + length]
        position += length


def _domain(kind: int, entry: bytes, revision: int) -> int | None:
    """The proximity domain that an entry assigns something to; None: no such entry."""
    if kind == _MEMORY:
        value = _types.memory(entry)
        domain = int(value.domain) & (0xFF if revision <= 1 else 0xFFFFFFFF)
    elif kind == _PROCESSOR:
        value = _types.processor(entry)
        high = bytes(value.domain_high) if revision >= 2 else b""
        domain = int(value.domain_low) | int.from_bytes(high, "little") << 8
    elif kind == _X2APIC:
        value = _types.x2apic(entry)
        domain = int(value.domain)
    else:
        return None
    return domain if value.flags & _ENABLED else None


def memory_of_nodes(table: bytes) -> dict[int, list[Range]]:
    """Which memory each node has.

    Linux numbers its nodes in the order in which the proximity domains appear: first those
    of all processors, then those of all memory (acpi_numa_init() and
    acpi_map_pxm_to_node() in drivers/acpi/numa/srat.c; processors and memory that are not
    enabled are passed over in arch/x86/mm/srat.c and there).

    :param table: content of /sys/firmware/acpi/tables/SRAT.
    :returns: by the number of the node; a node without memory has an empty list.
    :raises PkernfsError: the table can't be read.
    """
    if len(table) < len(_types.table) or table[:4] != b"SRAT":
        raise PkernfsError("the firmware's SRAT is damaged: its head is missing")
    head = _types.table(table)
    entries = list(_entries(table[: int(head.length)]))
    number: dict[int, int] = {}
    memory: dict[int, list[Range]] = {}
    for wanted in ((_PROCESSOR, _X2APIC), (_MEMORY,)):
        for kind, entry in entries:
            domain = _domain(kind, entry, int(head.revision)) if kind in wanted else None
            if domain is None:
                continue
            node = number.setdefault(domain, len(number))
            ranges = memory.setdefault(node, [])
            if kind == _MEMORY:
                value = _types.memory(entry)
                ranges.append(Range(int(value.base), int(value.bytes)))
    return {node: merge(ranges) for node, ranges in memory.items()}
