# SPDX-License-Identifier: GPL-2.0-only
"""Which memory of QEMU a passed-through device sees, and where.

QEMU gives VFIO each piece of RAM and ROM in its view of the address space "memory", and looks
for the very same pieces when it takes a container over (vfio_legacy_cpr_dma_map() in
hw/vfio/cpr-legacy.c). Only its monitor's ``info mtree -f`` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.vmm.config import RAM_ID

_PAGE = 4096
_VIEW = re.compile(r"^FlatView #\d+$", re.MULTILINE)
_PIECE = re.compile(
    r"^  (?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?P<kind>[a-z/]+)\): "
    r"(?P<name>.*?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?$"
)
#: MMIO of passed-through devices, which others can't reach after an update, devices of QEMU,
#: and ROM that is written like a device (memory_region_is_ram() is false for it).
_NOT_RAM = frozenset({"i/o", "ramd", "romd", "container"})


@dataclass(frozen=True)
class Piece:
    """A piece of memory that devices see.

    :ivar iova: where they see it: the guest's physical address.
    :ivar size: bytes.
    :ivar writable: they may write it.
    :ivar name: name of the memory.
    :ivar offset: where in that memory it begins, bytes.
    """

    iova: int
    size: int
    writable: bool
    name: str
    offset: int


def view(table: str) -> list[Piece]:
    """Read the answer of ``info mtree -f``.

    :raises PkernfsError: it has something that this version does not know.
    """
    lines = table.replace("\r", "").rstrip()
    parts = [part for part in _VIEW.split(lines) if re.search(r'^ AS "memory", ', part, re.M)]
    if len(parts) != 1:
        raise PkernfsError("QEMU does not show its memory as this version knows it")
    return list(_pieces(parts[0]))


def _pieces(part: str) -> Iterator[Piece]:
    for line in part.splitlines():
        if not line.startswith("  "):
            continue
        match = _PIECE.match(line)
        if match is None or match["kind"] not in {"ram", "rom", *_NOT_RAM}:
            raise PkernfsError(f"QEMU shows memory that this version does not know: {line!r}")
        if match["kind"] in _NOT_RAM:
            continue
        first, last = int(match["first"], 16), int(match["last"], 16)
        size, offset = last + 1 - first, int(match["offset"] or "0", 16)
        if first % _PAGE or size % _PAGE or offset % _PAGE:
            raise PkernfsError(f"QEMU shows memory that is not made of whole pages: {line!r}")
        yield Piece(first, size, match["kind"] == "ram", match["name"], offset)


def owner(piece: Piece, blocks: Sequence[str]) -> str:
    """Whose memory a piece is: the guest's (RAM_ID), or one of QEMU's own blocks.

    :param blocks: names of QEMU's own, some with the path of a device before them
        (cpr_name() in system/physmem.c).
    :raises PkernfsError: none of these, or not clear which.
    """
    if piece.name == RAM_ID:
        return RAM_ID
    found = [name for name in blocks if name == piece.name or name.endswith("/" + piece.name)]
    if len(found) != 1:
        raise PkernfsError(
            f"memory {piece.name} at {piece.iova:#x} is {'several blocks' if found else 'unknown'}"
        )
    return found[0]
