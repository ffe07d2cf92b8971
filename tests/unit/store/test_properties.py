# SPDX-License-Identifier: GPL-2.0-only
"""Random stores read back as they were written; random damage is found."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pkernfs.store import layout
from pkernfs.store.check import check
from pkernfs.store.findings import Verdict
from pkernfs.store.image import Image
from pkernfs.store.tree import Tree

from .mutate import BASES
from .writer import SLOT, SUPER_B, Writer

_BYTES = st.integers(1, 255).filter(lambda byte: byte != ord("/"))
_NAMES = st.one_of(
    st.lists(_BYTES, min_size=1, max_size=4).map(bytes),
    st.integers(1, layout.NAME_MAX).map(lambda length: b"n" * length),
).filter(lambda name: name not in (b".", b".."))
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(("file", "paged", "directory", "symlink", "metadata", "again")),
        st.integers(0, 1 << 16),
        _NAMES,
        st.lists(st.integers(0, 3), max_size=5),
    ),
    max_size=12,
)


class Model:
    """What a store must read back as: path -> (kind, extents or target)."""

    def __init__(self, page_blocks: int) -> None:
        self.writer = Writer(blocks=400, page_blocks=page_blocks)
        self.directories = {1: b""}
        self.expected: dict[bytes, Any] = {b"": "directory"}

    def apply(self, kind: str, pick: int, name: bytes, gaps: list[int]) -> None:
        parent = sorted(self.directories)[pick % len(self.directories)]
        path = self.directories[parent] + b"/" + name
        if kind == "metadata":
            self.writer.add_metadata()
        elif kind == "again":
            self._write_again(pick)
        elif path not in self.expected:
            self._create(kind, parent, path, name, gaps)

    def _create(self, kind: str, parent: int, path: bytes, name: bytes, gaps: list[int]) -> None:
        if kind == "directory":
            self.directories[self.writer.directory(parent, name)] = path
            self.expected[path] = "directory"
        elif kind == "symlink":
            self.writer.symlink(parent, name, name * 3)
            self.expected[path] = name * 3
        else:
            extents = []
            at = 0
            for gap in gaps:
                extents.append((at + gap, self.writer.take_block(gap + 1), gap + 1))
                at += 2 * gap + 1
            self.writer.file(parent, name, extents, paged=kind == "paged" and bool(extents))
            self.expected[path] = extents

    def _write_again(self, pick: int) -> None:
        """As a crash right after a step leaves it: the older slot is still there."""
        slots = self.writer.used_slots()
        slot = slots[pick % len(slots)]
        values = layout.INODE.unpack(self.writer.read(slot))
        live = [s for s in slots if self.writer.ino(s) == values["ino"]]
        if len(live) > 1:
            return
        new = self.writer.take_slot()
        self.writer.seq += 1
        self.writer.put(new, self.writer.read(slot))
        seq = self.writer.seq
        self.writer.change(new, slot=new, seq=seq, commit=seq, uid=7)


def read_back(tree: Tree) -> dict[bytes, Any]:
    result: dict[bytes, Any] = {}
    for inode in tree.inodes.values():
        path = b"".join(b"/" + name for name in tree.names(inode.ino) or [])
        if inode.kind == "file":
            result[path] = [(e.file_block, e.block, e.count) for e in inode.extents]
        else:
            result[path] = inode.target or "directory"
    return result


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS, page_blocks=st.integers(0, 6))
def test_what_is_written_is_read_back(steps: list[Any], page_blocks: int) -> None:
    model = Model(page_blocks)
    for step in steps:
        model.apply(*step)
    result = check(model.writer.image())
    assert result.verdict is Verdict.CLEAN, [str(finding) for finding in result.findings]
    assert result.tree is not None
    assert read_back(result.tree) == model.expected


STORES = [base() for base in BASES]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), store=st.sampled_from(STORES))
def test_damage_in_covered_bytes_is_found(data: st.DataObject, store: Writer) -> None:
    header = store.metadata[-1] * 512 + layout.HEADER_SLOT
    slot = data.draw(st.sampled_from([0, SUPER_B, header, *store.used_slots()]))
    covered = layout.INODE.offsets["checksum"] if slot in store.used_slots() else 0
    offset = slot * SLOT + data.draw(st.integers(covered, SLOT - 1))
    before = store.buffer[offset]
    store.buffer[offset] ^= data.draw(st.integers(1, 255))
    try:
        result = check(store.image())
    finally:
        store.buffer[offset] = before
    assert result.verdict is Verdict.DAMAGED
    # Slot 1 is the root's: all others hold one inode that can be done without.
    assert result.mountable == (slot not in (1, header))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=8192), magic=st.booleans())
def test_no_bytes_make_it_raise(content: bytes, magic: bool) -> None:
    if magic:
        content = layout.WORD.pack(layout.MAGIC) + content
    assert check(Image(content)).verdict is not Verdict.CLEAN
