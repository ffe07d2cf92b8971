# SPDX-License-Identifier: GPL-2.0-only
"""Where a virtual host's RAM and its ranges lie, inside and in the files that back it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import UsageError
from pkernfs.host.ranges import Range, Region, format_size
from pkernfs.host.reserve import boot_words
from pkernfs.lab.qemu import ram_file

MIB = 1 << 20
GIB = 1 << 30
#: q35 (pc_q35_init in QEMU's hw/i386/pc_q35.c): from this much RAM on, 2 GiB lie below
#: 4 GiB and the rest from 4 GiB on; with less, all of it lies below.
_SPLIT_FROM = 0xB0000000
_LOW = 2 * GIB
HIGH_START = 4 * GIB
_BLOCK = 2 * MIB
_PAGE = 4096
#: What a new host's memory is full of: the same in every run. A page of it at each step, up to
#: so much of a node, and so much of the region whole.
_JUNK_SEED = 1
_JUNK_STEP = MIB
_JUNK_REACH = 64 * GIB
_JUNK_WHOLE = 256 * MIB
#: What a further NUMA node has beside its region, and what its start needs to a full GiB.
_BESIDE = GIB


@dataclass(frozen=True)
class Layout:
    """A host's memory.

    :ivar ram: bytes in all.
    :ivar region: bytes of each range that pkernfs gets, one on every node; 0 for none. The
        first begins at 4 GiB.
    :ivar nodes: bytes of each NUMA node; empty for a host without such.
    """

    ram: int
    region: int
    nodes: tuple[int, ...] = ()

    @classmethod
    def of(cls, region: int | None = None, ram: int | None = None, nodes: int = 1) -> Layout:
        """The layout for what the user asked for; what was not named is chosen to fit.

        :param nodes: how many NUMA nodes.
        :raises UsageError: it does not fit.
        """
        region = GIB if region is None else region
        if nodes > 1:
            return cls._of_nodes(region, ram, nodes)
        ram = ram or _LOW + max(region, GIB)
        if region % _BLOCK or ram % _BLOCK:
            raise UsageError("region and RAM are multiples of 2 MiB", "for example --region 1G")
        if ram < _SPLIT_FROM or ram - _LOW < region:
            need = max(_LOW + region, 3 * GIB)
            raise UsageError(
                f"a region of {format_size(region)} does not fit into {format_size(ram)} of RAM",
                f"--ram {format_size(need)} is enough: the first 2 GiB are the kernel's",
            )
        return cls(ram, region)

    @classmethod
    def _of_nodes(cls, region: int, ram: int | None, nodes: int) -> Layout:
        """Nodes of which each has a region, or room for one."""
        if ram is not None or region % GIB:
            raise UsageError(
                "on NUMA nodes a region has whole GiB, and the RAM follows from that",
                "for example --nodes 2 --region 1G, without --ram",
            )
        high = max(region, GIB)
        # A node all of whose memory is reserved is none to the kernel.
        sizes = (_LOW + high, *(high + _BESIDE for _ in range(nodes - 1)))
        return cls(sum(sizes), region, sizes)

    @property
    def offset(self) -> int:
        """Where the region begins in the file that backs the RAM, bytes."""
        return _LOW

    def high(self, node: int) -> Range:
        """The addresses of a node's memory from 4 GiB on."""
        start = HIGH_START - _LOW + sum(self.nodes[:node])
        return Range.between(max(start, HIGH_START), start + self.nodes[node])

    def regions(self) -> tuple[Region, ...]:
        """The regions that the boot line names."""
        if not self.region:
            return ()
        if not self.nodes:
            return (Region("", Range(HIGH_START, self.region)),)
        return tuple(
            Region(f"node{node}", Range(-(-self.high(node).start // GIB) * GIB, self.region))
            for node in range(len(self.nodes))
        )

    @property
    def boot_words(self) -> tuple[str, ...]:
        """The words of the boot line that reserve the regions and name them."""
        return boot_words(self.regions())


def leave_junk(first: Path, layout: Layout) -> None:
    """Fill a new host's memory with what a warm reboot leaves: anything but zeros.

    A page here and there, since what was touched takes memory of this machine; the beginning
    of the region, where a host has no NUMA nodes, is filled whole.

    :param first: the file that backs the first node's RAM; it has its size already.
    """
    junk = random.Random(_JUNK_SEED).randbytes(_BLOCK)
    sizes = layout.nodes or (layout.ram,)
    for node, size in enumerate(sizes):
        with ram_file(first, node).open("r+b", buffering=0) as ram:
            for at in range(0, min(size, _JUNK_REACH), _JUNK_STEP):
                ram.seek(at)
                ram.write(junk[:_PAGE])
            if layout.region and not layout.nodes:
                ram.seek(layout.offset)
                for _ in range(min(layout.region, _JUNK_WHOLE) // _BLOCK):
                    ram.write(junk)


@dataclass(frozen=True)
class RangeFile:
    """The region as others see it from outside: part of a file.

    :ivar offset: bytes.
    :ivar size: bytes.
    """

    file: Path
    offset: int
    size: int
