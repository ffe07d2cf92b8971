# SPDX-License-Identifier: GPL-2.0-only
"""Finding room for a region: where the memory map and the NUMA nodes leave some.

What is free now says little: the kernel uses all memory that nobody took from it. So the
firmware's own map counts (/sys/firmware/memmap, which memmap= does not change), without
what firmware, crash kernel and other reservations hold in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import (
    MAX_LENGTH,
    REGION,
    BootLine,
    reserving_word,
)
from pkernfs.host.machine import MODULE, Machine
from pkernfs.host.numa import Node, nodes
from pkernfs.host.ranges import (
    Range,
    Region,
    common,
    format_size,
    merge,
    parse_size,
    without,
)

GIB = 1 << 30
#: Regions begin and end on such a border: the largest page of a guest's memory.
UNIT = GIB
#: Below it lie devices, firmware, and what can address no more than 32 bits.
LOWEST = 4 * GIB
#: What the kernel and its programs get at least, of all memory together.
HOST_LEAST = GIB
#: MAX_MEMMAP_REGIONS in arch/x86/boot/compressed/kaslr.c.
KASLR_RANGES = 4
#: Room in the boot line for the marker of an update and the like.
_SPARE_LENGTH = 200

#: Resources of /proc/iomem that lie elsewhere after the next boot, or that are no claim.
_MOVES = re.compile(r"System RAM|Kernel (code|rodata|data|bss)")
_FIRMWARE_MAP = "sys/firmware/memmap"
_RAM = "System RAM"


@dataclass(frozen=True)
class Terrain:
    """The memory of a machine, as far as regions are concerned.

    :ivar ram: what the firmware calls RAM, merged.
    :ivar taken: what can't be used, and what it is.
    :ivar nodes: by number.
    """

    ram: tuple[Range, ...]
    taken: tuple[tuple[Range, str], ...]
    nodes: tuple[Node, ...]

    def room(self, node: int, regions: Iterable[Region]) -> list[Range]:
        """Ranges on a node that a new region may use, on its borders.

        :param regions: regions that stay.
        :raises PkernfsError: there is no such node.
        """
        holes = [span for span, _ in self.taken] + [region.range for region in regions]
        ram = without(common(self.ram, self._node(node).memory), [Range(0, LOWEST), *holes])
        aligned = (span.aligned(UNIT) for span in ram)
        return [span for span in aligned if span is not None]

    def _node(self, number: int) -> Node:
        for node in self.nodes:
            if node.number == number:
                return node
        known = ", ".join(str(node.number) for node in self.nodes)
        raise PkernfsError(f"this machine has no NUMA node {number}", f"it has: {known}")

    def node_of(self, span: Range) -> int | None:
        """The node that all of a range lies on; None: it lies on none, or on several."""
        return next((node.number for node in self.nodes if node.contains(span)), None)

    def place(self, size: int, node: int | None, regions: Sequence[Region]) -> Range:
        """A range for a new region: the lowest one that is large enough.

        The lower end of a node's memory is what changes least from boot to boot; firmware
        takes what it needs from the upper one.

        :param size: bytes.
        :param node: where it has to lie; None: on the first node that has the room.
        :param regions: regions that stay.
        :raises PkernfsError: it does not fit.
        """
        if size <= 0 or size % UNIT:
            fitting = format_size(max(UNIT, -(-size // UNIT) * UNIT))
            raise PkernfsError(
                f"a region can't have {format_size(size) if size > 0 else size} of memory",
                f"regions begin and end on borders of 1 GiB: --size {fitting}",
            )
        wanted = [known.number for known in self.nodes] if node is None else [node]
        pieces = [piece for number in wanted for piece in self.room(number, regions)]
        span = next((piece for piece in pieces if piece.size >= size), None)
        if span is None:
            raise self._too_large(size, node, pieces)
        self._check_rest(size, regions)
        return Range(span.start, size)

    def _too_large(self, size: int, node: int | None, pieces: list[Range]) -> PkernfsError:
        where = "this machine" if node is None else f"NUMA node {node}"
        largest = max((piece.size for piece in pieces), default=0)
        if not largest:
            return PkernfsError(
                f"{where} has no room for a region: it takes 1 GiB of RAM above 4 GiB",
                "pkernfs reserve --list shows what is reserved already, and the room on each node",
            )
        return PkernfsError(
            f"{where} has no {format_size(size)} in one piece for a region",
            f"the largest that fits: --size {format_size(largest)}",
        )

    def _check_rest(self, size: int, regions: Sequence[Region]) -> None:
        held = [span for span, what in self.taken if what != "Crash kernel"]
        rest = without(self.ram, [*held, *(region.range for region in regions)])
        left = sum(span.size for span in rest) - size
        if left < HOST_LEAST:
            raise PkernfsError(
                f"that leaves {max(0, left) >> 20} MiB of memory for the host itself",
                f"reserve less: it should keep {format_size(HOST_LEAST)} at least",
            )


def _firmware_ram(machine: Machine) -> list[Range]:
    """What the firmware calls RAM; what the kernel uses as such, where it does not say."""
    found = []
    for entry in (machine.root / _FIRMWARE_MAP).glob("[0-9]*"):
        start, end, kind = (
            (entry / name).read_text(encoding="ascii").strip() for name in ("start", "end", "type")
        )
        if kind == _RAM:
            found.append(Range.between(int(start, 16), int(end, 16) + 1))
    return merge(found or (span for span, name in machine.memory() if name == _RAM))


def _crash_kernel(line: BootLine) -> Iterator[Range]:
    """Ranges of crashkernel= that say their address (Documentation/admin-guide/kdump)."""
    for value in line.values("crashkernel"):
        sizes, at, start = value.partition("@")
        if not at:
            continue
        try:
            largest = max(parse_size(part.rpartition(":")[2]) for part in sizes.split(","))
            yield Range(parse_size(start), largest)
        except PkernfsError:
            continue


def _taken(machine: Machine, line: BootLine) -> Iterator[tuple[Range, str]]:
    """What is not free, but for the regions of the running kernel."""
    own = [region.range for region in machine.regions()]
    for span, name in machine.memory():
        if not _MOVES.fullmatch(name) and not name.startswith(MODULE):
            yield from ((piece, name) for piece in without([span], own))
    for span, kind in line.reservations():
        if kind != "@":
            yield from ((piece, f"memmap=...{kind}") for piece in without([span], own))
    yield from ((span, "crashkernel=") for span in _crash_kernel(line))


def terrain(machine: Machine) -> Terrain:
    """Read what regions can be placed in.

    :raises PkernfsError: the memory map can't be read.
    """
    if not any(span.start for span, _ in machine.memory()):
        raise PkernfsError("the memory map can't be read", "only root sees its addresses: sudo ...")
    ram = tuple(_firmware_ram(machine))
    taken = tuple(
        (span, what)
        for span, what in _taken(machine, machine.boot_line)
        if any(span.overlaps(memory) for memory in ram)
    )
    return Terrain(ram, taken, nodes(machine))


def new_name(regions: Sequence[Region], node: int | None) -> str:
    """A name for a region that the user did not name.

    :param node: the node that was asked for; None: any. The first region then needs no name.
    :raises PkernfsError: only the user can name it.
    """
    if node is None:
        if regions:
            raise PkernfsError("a further region needs a name", "--name NAME, or --node N")
        return ""
    used = {region.name for region in regions}
    base = f"node{node}"
    names = (base, *(f"{base}-{number}" for number in range(2, len(regions) + 3)))
    return next(name for name in names if name not in used)


def add(
    map_: Terrain, regions: Sequence[Region], size: int, node: int | None, name: str | None
) -> tuple[Region, ...]:
    """The regions with one more.

    :param size: bytes.
    :param node: where the new one has to lie; None: anywhere.
    :param name: its name; None: one that says the node.
    :raises PkernfsError: the name is in use, or there is no room.
    """
    called = new_name(regions, node) if name is None else name
    if any((called or MODULE) == (region.name or MODULE) for region in regions):
        raise PkernfsError(f"there is a region {called or MODULE} already", "--name another one")
    return (*regions, Region(called, map_.place(size, node, regions)))


def remove(regions: Sequence[Region], name: str) -> tuple[Region, ...]:
    """The regions without one.

    :raises PkernfsError: there is none of that name.
    """
    left = tuple(region for region in regions if (region.name or MODULE) != name)
    if len(left) == len(regions):
        known = ", ".join(region.name or MODULE for region in regions) or "none"
        raise PkernfsError(f"no region is named {name}", f"reserved are: {known}")
    return left


def boot_words(regions: Sequence[Region]) -> tuple[str, ...]:
    """The words of the boot line that keep regions free and give them to pkernfs.

    Regions side by side share a word: KASLR reads few of them.
    """
    if not regions:
        return ()
    spans = merge(region.range for region in regions)
    value = ",".join(str(region) for region in regions)
    return (*(reserving_word(Region("", span)) for span in spans), f"{REGION}={value}")


def check_line(running: BootLine, old: Sequence[Region], new: Sequence[Region]) -> None:
    """Make sure that the next boot line works with other regions.

    :param running: the running kernel's line.
    :param old: the regions that are in it.
    :param new: the regions that will be in its place.
    :raises PkernfsError: KASLR would not read all of it, or it becomes too long.
    """
    own = [region.range for region in old]
    others = [
        span for span, kind in running.reservations() if kind in "$!#" and without([span], own)
    ]
    words = boot_words(new)
    ranges = len(others) + len(words) - 1
    if new and ranges > KASLR_RANGES:
        raise PkernfsError(
            f"the boot line would reserve {ranges} ranges; KASLR reads {KASLR_RANGES}, and may put "
            "a kernel into the others",
            "one larger region instead of several, or fewer other memmap= words",
        )
    line = running.without(REGION).plus(BootLine(words))
    length = len(str(line).encode()) + _SPARE_LENGTH
    if length > MAX_LENGTH:
        raise PkernfsError(
            f"the boot line would have {length} bytes, a kernel reads {MAX_LENGTH}",
            "leave other words out of it",
        )
