# SPDX-License-Identifier: GPL-2.0-only
"""Writes stores for the tests, with a purpose of its own: also wrong ones.

Shares only the parsed format.h with the package; what a checksum covers is written
down here a second time.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

from pkernfs.store import layout
from pkernfs.store.image import Image

UUID = bytes(range(16))
BASE = 4 << 30
NOW = 1_800_000_000_000_000_000

SLOT = layout.SLOT_SIZE
HEADER_INDEX = layout.HEADER_SLOT
SUPER_B = layout.SUPER_SLOTS[1]


def extent_bytes(extents: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join(struct.pack("<III", *extent) for extent in extents)


@dataclass
class Writer:
    """A store in memory; :meth:`image` is what the package reads."""

    blocks: int = 4
    page_blocks: int = 0
    buffer: mmap = field(init=False, repr=False)
    metadata: list[int] = field(default_factory=lambda: [0])
    seq: int = 0
    last_ino: int = 0

    def __post_init__(self) -> None:
        # Memory that nobody touches costs nothing.
        self.buffer = mmap(-1, self.blocks * layout.BLOCK_SIZE)
        self.next_block = self.page_blocks + 1
        self.free_slots = self._slots(0)
        for slot in (0, SUPER_B):
            self.put(slot, self.super_values())
        self.seal_header(0, 0)
        self.add(stat.S_IFDIR | 0o755, 1, b"")

    def image(self, **options: bool) -> Image:
        return Image(self.buffer, base=BASE, **options)

    def save(self, path: Path, offset: int = 0, behind: int = 0) -> None:
        """Write the store into a new sparse file, between bytes that are zero."""
        with path.open("wb") as file:
            for block in self.metadata:
                for slot in range(block * 512, block * 512 + 512):
                    if any(content := self.read(slot)):
                        file.seek(offset + slot * SLOT)
                        file.write(content)
            file.truncate(offset + len(self.buffer) + behind)

    # Slots

    def _slots(self, block: int) -> list[int]:
        return [
            number for number in range(block * 512, block * 512 + 511) if number not in (0, SUPER_B)
        ]

    def read(self, slot: int) -> bytes:
        return bytes(self.buffer[slot * SLOT : (slot + 1) * SLOT])

    def put(self, slot: int, content: bytes | bytearray) -> None:
        assert len(content) == SLOT
        self.buffer[slot * SLOT : (slot + 1) * SLOT] = content

    def set(self, slot: int, record: layout.Record, /, **values: int | bytes) -> None:
        """Change fields without any checksum."""
        self.put(slot, record.pack(**(record.unpack(self.read(slot)) | values)))

    # Checksums, after format.h

    def super_values(self, **values: int | bytes) -> bytearray:
        known: dict[str, int | bytes] = {
            "magic": layout.MAGIC,
            "version": layout.VERSION,
            "uuid": UUID,
            "base": BASE,
            "size": len(self.buffer),
            "created_ns": NOW,
            "block_shift": 21,
            "slot_shift": 12,
            "page_blocks": self.page_blocks,
            "label": b"test",
        }
        content = layout.SUPER.pack(**(known | values))
        struct.pack_into("<I", content, layout.SUPER.offsets["checksum"], zlib.crc32(content))
        return content

    def seal_super(self, slot: int) -> None:
        self.set(slot, layout.SUPER, checksum=0)
        self.set(slot, layout.SUPER, checksum=zlib.crc32(self.read(slot)))

    def link(self, block: int, following: int) -> None:
        crc = zlib.crc32(UUID + struct.pack("<II", block, following))
        self.set(block * 512 + HEADER_INDEX, layout.HEADER, next=crc << 32 | following)

    def seal_header(self, block: int, following: int) -> None:
        slot = block * 512 + HEADER_INDEX
        self.set(slot, layout.HEADER, magic=layout.META_MAGIC, block=block)
        self.reseal_header(block)
        self.link(block, following)

    def reseal_header(self, block: int) -> None:
        slot = block * 512 + HEADER_INDEX
        self.set(slot, layout.HEADER, checksum=0)
        checksum = zlib.crc32(UUID + self.read(slot)[8:])
        self.set(slot, layout.HEADER, checksum=checksum)

    def seal_inode(self, slot: int) -> None:
        checksum = zlib.crc32(UUID + self.read(slot)[layout.INODE.offsets["slot"] :])
        self.set(slot, layout.INODE, checksum=checksum)

    def change(self, slot: int, /, **values: int | bytes) -> None:
        """Change fields of an inode, with the right checksum."""
        self.set(slot, layout.INODE, **values)
        self.seal_inode(slot)

    # Content

    def take_block(self, count: int = 1) -> int:
        block = self.next_block
        self.next_block += count
        assert self.next_block <= self.blocks
        return block

    def add_metadata(self) -> int:
        block = self.take_block()
        self.seal_header(block, 0)
        self.link(self.metadata[-1], block)
        self.metadata.append(block)
        self.free_slots += self._slots(block)
        return block

    def take_slot(self) -> int:
        if not self.free_slots:
            self.add_metadata()
        return self.free_slots.pop(0)

    def add(self, mode: int, parent: int, name: bytes, /, **values: int | bytes) -> int:
        """Write an inode. :returns: its slot."""
        slot = self.take_slot()
        self.seq += 1
        self.last_ino += 1
        known: dict[str, int | bytes] = {
            "commit": self.seq,
            "seq": self.seq,
            "slot": slot,
            "ino": self.last_ino,
            "parent": parent,
            "mode": mode,
            "name_len": len(name),
            "name": name,
            "mtime_ns": NOW,
        }
        merged = known | values
        self.last_ino = max(self.last_ino, int(merged["ino"]))
        self.put(slot, layout.INODE.pack(**merged))
        self.seal_inode(slot)
        return slot

    def directory(self, parent: int, name: bytes, **values: int | bytes) -> int:
        """:returns: its ino."""
        return self.ino(self.add(stat.S_IFDIR | 0o755, parent, name, **values))

    def symlink(self, parent: int, name: bytes, target: bytes) -> int:
        """:returns: its slot."""
        mode = stat.S_IFLNK | 0o777
        return self.add(mode, parent, name, size=len(target), payload=target)

    def file(
        self,
        parent: int,
        name: bytes,
        extents: Sequence[tuple[int, int, int]] = (),
        *,
        paged: bool = False,
        **values: int | bytes,
    ) -> int:
        """:returns: its slot."""
        known: dict[str, int | bytes] = {"size": 5, "nr_extents": len(extents)}
        if paged or len(extents) > layout.INLINE_EXTENTS:
            refs = self.pages(extents)
            known |= {"nr_pages": len(refs), "payload": b"".join(refs)}
        else:
            known["payload"] = extent_bytes(extents)
        return self.add(stat.S_IFREG | 0o644, parent, name, **(known | values))

    def pages(self, extents: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Write extent pages for the next inode. :returns: the references to them."""
        refs = []
        per_page = layout.EXTENTS_PER_PAGE
        for start in range(0, len(extents), per_page):
            part = extents[start : start + per_page]
            slot = self.take_slot()
            self.put(
                slot,
                layout.EXTENT_PAGE.pack(
                    slot=slot,
                    count=len(part),
                    ino=self.last_ino + 1,
                    seq=self.seq + 1,
                    extents=extent_bytes(part),
                ),
            )
            refs.append(self.page_ref(slot))
        return refs

    def page_ref(self, slot: int) -> bytes:
        return struct.pack("<II", slot, zlib.crc32(UUID + self.read(slot)))

    def ino(self, slot: int) -> int:
        return int(layout.INODE.unpack(self.read(slot))["ino"])

    def used_slots(self) -> list[int]:
        """Slots of committed inodes."""
        return [
            slot
            for block in self.metadata
            for slot in self._slots(block)
            if any(self.buffer[slot * SLOT : slot * SLOT + 8])
        ]


def sample() -> Writer:
    """A store with one of everything: 4 blocks would do, but pages want some more."""
    writer = Writer(blocks=16, page_blocks=1)
    home = writer.directory(1, b"vm")
    writer.directory(home, b"empty")
    writer.file(home, b"ram", [(0, writer.take_block(2), 2), (4, writer.take_block(), 1)])
    writer.file(1, b"nothing", size=0)
    writer.file(1, b"paged", [(7, writer.take_block(), 1)], paged=True)
    writer.symlink(home, b"link", b"../nothing")
    writer.add_metadata()
    writer.free_slots = [slot for slot in writer.free_slots if slot >= 512]
    writer.file(home, b"far", [(0, writer.take_block(), 1)], mode=stat.S_IFREG | 0o4600)
    return writer
