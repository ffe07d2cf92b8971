# SPDX-License-Identifier: GPL-2.0-only
"""The on-memory format, taken from kernel/format.h.

Nothing of the format is repeated here: constants, sizes and offsets are what
dissect.cstruct reads from that file (``format.h`` in this directory is a link to it,
and a copy in an installed package). The formats for :mod:`struct` are derived from
the parsed definition, because unpacking by them is what makes a check of a small
store cost less than a millisecond.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dissect.cstruct import cstruct  # type: ignore[import-untyped]

FORMAT_FILE: Final = Path(__file__).with_name("format.h")

#: Little-endian types of the kernel -> (the parser's type, code of the struct module).
_INTEGERS: Final = {
    "__u8": ("uint8", "B"),
    "__le16": ("uint16", "H"),
    "__le32": ("uint32", "I"),
    "__le64": ("uint64", "Q"),
}


@dataclass(frozen=True)
class Record:
    """One struct of format.h.

    :ivar size: bytes.
    :ivar offsets: byte offset of every field.
    :ivar sizes: bytes of every field.
    :ivar struct: unpacks all fields in order; an array is one field of bytes.
    """

    name: str
    size: int
    offsets: dict[str, int]
    sizes: dict[str, int]
    struct: struct.Struct

    def unpack(self, data: bytes) -> dict[str, Any]:
        """All fields by name: integers, and bytes for arrays.

        :param data: exactly ``size`` bytes.
        """
        return dict(zip(self.offsets, self.struct.unpack(data), strict=True))

    def pack(self, **values: int | bytes) -> bytearray:
        """The bytes of a struct; fields that are not given are zero."""
        blank = self.unpack(bytes(self.size))
        unknown = values.keys() - blank.keys()
        if unknown:
            raise KeyError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        return bytearray(self.struct.pack(*(blank | values).values()))

    def iterate(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """The fields of every struct in an array.

        :param data: a multiple of ``size`` bytes.
        """
        return self.struct.iter_unpack(data)


def _parse() -> cstruct:
    parser = cstruct(endian="<")
    for name, (standard, _) in _INTEGERS.items():
        parser.add_type(name, standard)
    # As a C compiler lays it out; format.h has no holes, see _record().
    parser.load(FORMAT_FILE.read_text(encoding="ascii"), align=True)
    return parser


_PARSER: Final = _parse()


def _record(name: str) -> Record:
    codes = dict(_INTEGERS.values())
    parsed = getattr(_PARSER, name)
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    formats = ["<"]
    end = 0
    for field in parsed.fields.values():
        if field.offset != end:
            raise ValueError(f"{name}.{field.name}: a hole in format.h")
        size = field.type.size
        offsets[field.name], sizes[field.name] = end, size
        formats.append(codes.get(field.type.__name__, f"{size}s"))
        end += size
    unpacker = struct.Struct("".join(formats))
    if not unpacker.size == end == parsed.size:
        raise ValueError(f"{name}: size of the struct in format.h is not the sum of its fields")
    return Record(name, end, offsets, sizes, unpacker)


def constant(name: str) -> int:
    """The value of ``PKERNFS_<name>`` in format.h.

    :raises KeyError: there is no such integer constant.
    """
    value = _PARSER.consts[f"PKERNFS_{name}"]
    if not isinstance(value, int):
        raise KeyError(name)
    return value


def constants() -> dict[str, int]:
    """All integer constants of format.h by their full name."""
    return {name: value for name, value in _PARSER.consts.items() if isinstance(value, int)}


SUPER: Final = _record("pkernfs_super")
HEADER: Final = _record("pkernfs_meta_header")
INODE: Final = _record("pkernfs_inode")
EXTENT: Final = _record("pkernfs_extent")
EXTENT_PAGE: Final = _record("pkernfs_extent_page")
PAGE_REF: Final = _record("pkernfs_page_ref")

MAGIC: Final = constant("MAGIC")
META_MAGIC: Final = constant("META_MAGIC")
VERSION: Final = constant("VERSION")
BLOCK_SHIFT: Final = constant("BLOCK_SHIFT")
SLOT_SHIFT: Final = constant("SLOT_SHIFT")
SLOTS_PER_BLOCK: Final = constant("SLOTS_PER_BLOCK")
MIN_BLOCKS: Final = constant("MIN_BLOCKS")
MAX_BLOCKS: Final = constant("MAX_BLOCKS")
SUPER_SLOTS: Final = (constant("SUPER_A_SLOT"), constant("SUPER_B_SLOT"))
HEADER_SLOT: Final = constant("HEADER_SLOT")
ROOT_INO: Final = constant("ROOT_INO")
LOST_INO: Final = constant("LOST_INO")
NAME_MAX: Final = constant("NAME_MAX")
LABEL_MAX: Final = constant("LABEL_MAX")
INCOMPAT_KNOWN: Final = constant("INCOMPAT_KNOWN")
INLINE_EXTENTS: Final = constant("INLINE_EXTENTS")
MAX_EXTENT_PAGES: Final = constant("MAX_EXTENT_PAGES")
EXTENTS_PER_PAGE: Final = constant("EXTENTS_PER_PAGE")
SYMLINK_MAX: Final = constant("SYMLINK_MAX")

BLOCK_SIZE: Final = 1 << BLOCK_SHIFT
SLOT_SIZE: Final = 1 << SLOT_SHIFT

#: Blocks that a file can have: their number must fit into an extent's count as well.
MAX_FILE_BLOCKS: Final = (1 << 8 * EXTENT.sizes["count"]) - 1

#: Numbers beyond this are never reached: one change a nanosecond takes 292 years.
NUMBER_MAX: Final = (1 << 63) - 1

#: The first word of a slot: commit of an inode, next of a header.
WORD: Final = struct.Struct("<Q")
_NEXT_INPUT: Final = struct.Struct("<II")

_SUPER_CHECKSUM: Final = SUPER.offsets["checksum"]
_HEADER_CHECKSUM: Final = HEADER.offsets["checksum"]
_HEADER_COVERED: Final = HEADER.offsets["magic"]
_INODE_COVERED: Final = INODE.offsets["slot"]
_NO_CHECKSUM: Final = bytes(4)


def slot_of(block: int, index: int) -> int:
    """Number of a slot, as it is stored: counted from the start of the range."""
    return block * SLOTS_PER_BLOCK + index


def is_fixed_slot(slot: int) -> bool:
    """Whether a slot can't hold an inode: super blocks and headers."""
    return slot % SLOTS_PER_BLOCK == HEADER_SLOT or slot in SUPER_SLOTS


def is_zero(data: bytes) -> bool:
    """Whether there is nothing but zeroes."""
    return data == bytes(len(data))


def super_checksum(slot: bytes | bytearray) -> int:
    """CRC-32 of a super block with its checksum field as zero."""
    return _crc_without(slot, 0, _SUPER_CHECKSUM, 0)


def header_checksum(uuid: bytes, slot: bytes | bytearray) -> int:
    """CRC-32 of the store's uuid and a header from byte 8 on, checksum field as zero."""
    return _crc_without(slot, _HEADER_COVERED, _HEADER_CHECKSUM, zlib.crc32(uuid))


def inode_checksum(uuid_crc: int, slot: bytes | bytearray) -> int:
    """CRC-32 of the store's uuid and an inode from its field ``slot`` on.

    :param uuid_crc: CRC-32 of the uuid, computed once for all slots.
    """
    return zlib.crc32(memoryview(slot)[_INODE_COVERED:], uuid_crc)


def page_checksum(uuid_crc: int, slot: bytes | bytearray) -> int:
    """CRC-32 of the store's uuid and a whole extent page.

    :param uuid_crc: CRC-32 of the uuid.
    """
    return zlib.crc32(slot, uuid_crc)


def next_word(uuid: bytes, block: int, following: int) -> int:
    """The word ``next`` of a header: the following block, and the check above it.

    :param block: the block that the header is in.
    :param following: the block it links to, 0 for none.
    """
    return zlib.crc32(_NEXT_INPUT.pack(block, following), zlib.crc32(uuid)) << 32 | following


def _crc_without(slot: bytes | bytearray, start: int, field: int, crc: int) -> int:
    view = memoryview(slot)
    crc = zlib.crc32(_NO_CHECKSUM, zlib.crc32(view[start:field], crc))
    return zlib.crc32(view[field + len(_NO_CHECKSUM) :], crc)
