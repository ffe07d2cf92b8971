# SPDX-License-Identifier: GPL-2.0-only
"""Damages stores: at random, and by the structure, with right checksums part of the time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pkernfs.store import layout

from .writer import HEADER_INDEX, SLOT, SUPER_B, Writer, sample

_INTERESTING = (0, 1, 2, 3, 5, 7, 255, 256, 309, 310, 338, 339, 464, 465, 511, 512, 3711, 3712)


def crowded() -> Writer:
    """A store in the middle of several steps: leftovers of every kind, long lists."""
    writer = Writer(blocks=32)
    home = writer.directory(1, b"d")
    old = writer.file(home, b"old", [(0, writer.take_block(), 1)])
    writer.file(home, b"new", [(0, 1, 1)], ino=writer.ino(old))
    victim = writer.file(1, b"v")
    writer.file(1, b"v", [(3, writer.take_block(), 1)], replaces=writer.ino(victim))
    writer.file(1, b"x" * 255, [(2 * i, writer.take_block(), 1) for i in range(12)], paged=True)
    deep = home
    for name in (b"a", b"b", b"c"):
        deep = writer.directory(deep, name)
    writer.symlink(deep, b"l", b"t" * layout.SYMLINK_MAX)
    return writer


def empty() -> Writer:
    return Writer()


BASES = (sample, crowded, empty)


@dataclass
class Mutator:
    """Damages one store again and again, and puts it back in order in between."""

    writer: Writer
    rng: random.Random
    saved: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inodes = self.writer.used_slots()
        self.headers = [block * 512 + HEADER_INDEX for block in self.writer.metadata]
        self.pages = [
            slot
            for block in self.writer.metadata
            for slot in range(block * 512, block * 512 + 511)
            if not layout.is_fixed_slot(slot)
            and slot not in self.inodes
            and any(self.writer.read(slot))
        ]
        self.records = (
            [(slot, layout.INODE) for slot in self.inodes] * 2
            + [(slot, layout.HEADER) for slot in self.headers]
            + [(slot, layout.EXTENT_PAGE) for slot in self.pages] * 2
            + [(slot, layout.SUPER) for slot in (0, SUPER_B)]
        )

    @contextmanager
    def damaged(self) -> Iterator[Writer]:
        """The store with one to four things wrong; as it was afterwards."""
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 4))):
            self._damage()
        if self.rng.random() < 0.7:
            self._seal()
        try:
            yield self.writer
        finally:
            for slot, content in self.saved.items():
                self.writer.put(slot, content)
            self.saved.clear()

    def _damage(self) -> None:
        slot, record = self.rng.choice(self.records)
        self._save(slot)
        kind = self.rng.random()
        if kind < 0.05 and record is layout.INODE:
            self._set_seq(slot)
        elif kind < 0.55:
            self._set_field(slot, record)
        elif kind < 0.7:
            self._set_payload(slot, record)
        elif kind < 0.8:
            self._flip(slot)
        elif kind < 0.9:
            self._copy(slot)
        elif kind < 0.95:
            self.writer.put(slot, bytes(SLOT))
        else:
            self.writer.put(slot, self.rng.randbytes(SLOT))

    def _save(self, slot: int) -> None:
        self.saved.setdefault(slot, self.writer.read(slot))

    def _number(self, size: int) -> int:
        choice = self.rng.random()
        if choice < 0.6:
            value = self.rng.choice(_INTERESTING)
        elif choice < 0.8:
            value = (1 << 8 * size) - 1 - self.rng.choice(_INTERESTING)
        elif choice < 0.9:
            value = 1 << self.rng.randrange(8 * size)
        else:
            value = self.rng.getrandbits(8 * size)
        return value % (1 << 8 * size)

    def _set_field(self, slot: int, record: layout.Record) -> None:
        name = self.rng.choice(list(record.offsets))
        size = record.sizes[name]
        if size <= 8:
            self.writer.set(slot, record, **{name: self._number(size)})
        else:
            self._set_bytes(slot, record.offsets[name] + self.rng.randrange(size), 1)

    def _set_seq(self, slot: int) -> None:
        """Commit an inode at another time, or at that of another inode."""
        other = layout.INODE.unpack(self.writer.read(self.rng.choice(self.inodes)))["seq"]
        seq = self.rng.choice((other, self._number(8), self.writer.seq + 1))
        self.writer.set(slot, layout.INODE, seq=seq, commit=seq)

    def _set_payload(self, slot: int, record: layout.Record) -> None:
        """Change one of the 32-bit words that extents and page references are made of."""
        name = {"pkernfs_inode": "payload", "pkernfs_extent_page": "extents"}.get(record.name)
        if name is None:
            self._set_field(slot, record)
            return
        offset = record.offsets[name] + 4 * self.rng.choice((0, 1, 2, 3, 4, 5, 8, 11, 900))
        self._set_bytes(slot, offset, 4)

    def _set_bytes(self, slot: int, offset: int, size: int) -> None:
        start = slot * SLOT + offset
        self.writer.buffer[start : start + size] = self._number(size).to_bytes(size, "little")

    def _flip(self, slot: int) -> None:
        self.writer.buffer[slot * SLOT + self.rng.randrange(SLOT)] ^= 1 << self.rng.randrange(8)

    def _copy(self, slot: int) -> None:
        block = self.rng.choice(self.writer.metadata)
        target = block * 512 + self.rng.choice((*range(20), SUPER_B, HEADER_INDEX))
        self._save(target)
        self.writer.put(target, self.writer.read(slot))

    def _seal(self) -> None:
        """Right checksums for what was damaged, as if it had been meant."""
        for slot in list(self.saved):
            if slot in (0, SUPER_B):
                self.writer.seal_super(slot)
                if self.rng.random() < 0.8:
                    self._save(SUPER_B - slot)
                    self.writer.put(SUPER_B - slot, self.writer.read(slot))
            elif slot % 512 == HEADER_INDEX:
                self.writer.reseal_header(slot // 512)
                if self.rng.random() < 0.5:
                    word = int.from_bytes(self.writer.read(slot)[:4], "little")
                    self.writer.link(slot // 512, word)
            elif slot in self.pages:
                self._seal_page(slot)
        for slot in list(self.saved):
            if slot in self.inodes:
                self.writer.seal_inode(slot)

    def _seal_page(self, page: int) -> None:
        """Let every inode that names this page name it with the right checksum."""
        old = page.to_bytes(4, "little")
        for slot in self.inodes:
            content = self.writer.read(slot)
            at = content.find(old, layout.INODE.offsets["payload"])
            if at % 8 == 0 and 0 < at < layout.INODE.offsets["payload"] + 64:
                self._save(slot)
                start = slot * SLOT + at
                self.writer.buffer[start : start + 8] = self.writer.page_ref(page)
                self.writer.seal_inode(slot)
