# SPDX-License-Identifier: GPL-2.0-only
"""docs/format.md says what format.h says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pkernfs.store import layout
from pkernfs.store.findings import Code

TEXT = (Path(__file__).parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
PLAIN = " ".join(TEXT.split())

MIB = 1 << 20
_PER_BLOCK = layout.SLOTS_PER_BLOCK - 1
_FIRST_BLOCK = _PER_BLOCK - len(layout.SUPER_SLOTS)
_MILLION_BLOCKS = 1 + -(-(10**6 - _FIRST_BLOCK) // _PER_BLOCK)
_FILE_SIZE = (layout.MAX_FILE_BLOCKS + 1) * layout.BLOCK_SIZE
_EXTENTS = layout.MAX_EXTENT_PAGES * layout.EXTENTS_PER_PAGE

SAID = [
    f"blocks of {layout.BLOCK_SIZE // MIB} MiB",
    f"{layout.SLOTS_PER_BLOCK} slots of {layout.SLOT_SIZE >> 10} KiB",
    f"| {layout.SUPER_SLOTS[0]} | super block A",
    f"| {layout.SUPER_SLOTS[1]} | super block B",
    f"| {layout.HEADER_SLOT} | header: next",
    f"{layout.SUPER_SLOTS[1] * layout.SLOT_SIZE // MIB} MiB apart",
    f"{layout.MIN_BLOCKS * layout.BLOCK_SIZE // MIB} MiB ({layout.MIN_BLOCKS} blocks)",
    f"{layout.MAX_BLOCKS * layout.BLOCK_SIZE >> 40} TiB ({layout.MAX_BLOCKS} blocks)",
    f"| name | {layout.NAME_MAX} bytes",
    f"| target of a symlink | {layout.SYMLINK_MAX} bytes",
    f"| label of a store | {layout.LABEL_MAX} bytes",
    f"| extents in an inode | {layout.INLINE_EXTENTS} ",
    f"up to {layout.INLINE_EXTENTS} extents",
    f"up to {layout.MAX_EXTENT_PAGES} names of extent pages",
    f"{_EXTENTS} ({layout.MAX_EXTENT_PAGES} pages of {layout.EXTENTS_PER_PAGE})",
    f"{layout.MAX_FILE_BLOCKS} blocks ({_FILE_SIZE >> 50} PiB)",
    f"{_FIRST_BLOCK} in block 0, {_PER_BLOCK} in each further",
    f"{_MILLION_BLOCKS} metadata blocks: {_MILLION_BLOCKS * layout.BLOCK_SIZE // MIB} MiB",
    f"With {_EXTENTS} extents",
    f"still has {_EXTENTS * layout.BLOCK_SIZE >> 30} GiB",
    f"version, {layout.VERSION} for this one",
    f"A store of {layout.INODE.sizes['commit']} aligned bytes",
]


@pytest.mark.parametrize("said", SAID)
def test_numbers(said: str) -> None:
    assert said in PLAIN


def test_constants_that_are_named_exist() -> None:
    named = set(re.findall(r"PKERNFS_\w+", TEXT))
    assert named
    assert named <= layout.constants().keys()


def test_every_finding_is_explained() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \|", TEXT, re.MULTILINE)
    assert rows == [(str(code), str(code.value.severity)) for code in Code]
