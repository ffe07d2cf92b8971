# SPDX-License-Identifier: GPL-2.0-only
"""What is parsed from format.h has the sizes that its own constants ask for."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from pkernfs.store import layout

SLOTS = (layout.SUPER, layout.HEADER, layout.INODE, layout.EXTENT_PAGE)


def test_parses_the_file_that_the_module_includes() -> None:
    source = Path(__file__).parents[3] / "kernel" / "format.h"
    assert layout.FORMAT_FILE.resolve() == source.resolve()


@pytest.mark.parametrize("record", SLOTS, ids=lambda record: record.name)
def test_slots_fill_a_slot(record: layout.Record) -> None:
    assert record.size == record.struct.size == layout.SLOT_SIZE
    assert sum(record.sizes.values()) == layout.SLOT_SIZE


@pytest.mark.parametrize("record", SLOTS, ids=lambda record: record.name)
def test_fields_are_aligned(record: layout.Record) -> None:
    for name, size in record.sizes.items():
        assert record.offsets[name] % min(size & -size, 8) == 0 or size > 8, name


def test_constants_fit_the_structs() -> None:
    payload = layout.constant("PAYLOAD_BYTES")
    assert layout.INODE.sizes["payload"] == payload
    assert payload // layout.EXTENT.size == layout.INLINE_EXTENTS
    assert payload // layout.PAGE_REF.size == layout.MAX_EXTENT_PAGES
    extents = layout.EXTENT_PAGE.sizes["extents"]
    assert extents == layout.EXTENTS_PER_PAGE * layout.EXTENT.size
    assert layout.INODE.sizes["name"] == layout.NAME_MAX + 1
    assert layout.SUPER.sizes["label"] == layout.LABEL_MAX + 1
    assert payload == layout.SYMLINK_MAX + 1
    assert layout.BLOCK_SIZE == layout.SLOTS_PER_BLOCK * layout.SLOT_SIZE


def test_magic_numbers_are_readable() -> None:
    assert struct.pack("<Q", layout.MAGIC) == b"PKERNFS1"
    assert struct.pack("<Q", layout.META_MAGIC) == b"PKFMETA1"


def test_pack_and_unpack_are_inverse() -> None:
    content = layout.INODE.pack(ino=7, name=b"x", name_len=1, mode=0o100644)
    values = layout.INODE.unpack(bytes(content))
    assert (values["ino"], values["name"].rstrip(b"\0"), values["mode"]) == (7, b"x", 0o100644)
    assert layout.INODE.pack(**values) == content


def test_pack_refuses_what_is_no_field() -> None:
    with pytest.raises(KeyError, match="colour"):
        layout.SUPER.pack(colour=1)


def test_unknown_constant() -> None:
    with pytest.raises(KeyError):
        layout.constant("NOTHING")


def test_next_word() -> None:
    word = layout.next_word(bytes(16), 3, 9)
    assert word & 0xFFFFFFFF == 9
    assert word >> 32 == zlib.crc32(bytes(16) + struct.pack("<II", 3, 9))


def test_checksums_leave_out_their_own_field() -> None:
    slot = bytearray(range(256)) * 16
    for function, offset in (
        (layout.super_checksum, layout.SUPER.offsets["checksum"]),
        (lambda s: layout.header_checksum(b"u" * 16, s), layout.HEADER.offsets["checksum"]),
    ):
        before = function(slot)
        changed = bytearray(slot)
        changed[offset] ^= 1
        assert function(changed) == before
        changed[offset + 4] ^= 1
        assert function(changed) != before


def test_fixed_slots() -> None:
    assert [s for s in range(1024) if layout.is_fixed_slot(s)] == [0, 256, 511, 1023]
