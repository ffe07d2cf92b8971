# SPDX-License-Identifier: GPL-2.0-only
"""Make a new, empty store."""

from __future__ import annotations

import os
import stat
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import PAGESIZE, mmap
from pathlib import Path

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.store import layout
from pkernfs.store.image import cannot_map
from pkernfs.store.remains import remains

_BLANK_SLOT = bytes(layout.SLOT_SIZE)
_ROOT_MODE = stat.S_IFDIR | 0o755


@dataclass(frozen=True)
class NewStore:
    """What a new store says about itself.

    :ivar base: physical address of the range, a multiple of 2 MiB.
    :ivar label: name of the region, up to 31 bytes.
    :ivar page_blocks: blocks behind the first that are kept for struct pages.
    :ivar now_ns: nanoseconds since the epoch.
    """

    base: int = 0
    label: str = ""
    page_blocks: int = 0
    uuid: uuid.UUID = field(default_factory=uuid.uuid4)
    now_ns: int = field(default_factory=time.time_ns)


def check_size(size: int) -> None:
    """Refuse a size that no store can have.

    :param size: bytes.
    :raises UsageError: it is no multiple of a block, too small or too large.
    """
    blocks, rest = divmod(size, layout.BLOCK_SIZE)
    if rest:
        raise UsageError(f"{size} bytes are not a multiple of {layout.BLOCK_SIZE >> 20} MiB")
    if not layout.MIN_BLOCKS <= blocks <= layout.MAX_BLOCKS:
        raise UsageError(
            f"a store of {size} bytes",
            f"it has {layout.MIN_BLOCKS * layout.BLOCK_SIZE >> 20} MiB"
            f" to {layout.MAX_BLOCKS * layout.BLOCK_SIZE >> 40} TiB",
        )


@contextmanager
def open_new(path: Path, offset: int = 0, size: int | None = None) -> Iterator[mmap]:
    """Map the range that a new store will lie in.

    :param path: a file, which is created or grows if a size is given, or /dev/mem.
    :param offset: byte at which the range begins.
    :param size: bytes; None: up to the end of the file.
    :raises PkernfsError: the file can't be opened or mapped.
    :raises UsageError: no store can have that size.
    """
    if offset < 0 or offset % PAGESIZE:
        raise UsageError(f"offset {offset:#x} is not a multiple of {PAGESIZE}")
    if size is not None:
        check_size(size)
    elif not path.exists():
        raise PkernfsError(f"{path} does not exist", "--size makes a new file")
    before = _size_of(path)
    try:
        mapping = _map(path, offset, size)
    except OSError as error:
        _undo(path, before)
        raise cannot_map(path, error) from error
    try:
        with mapping:
            yield mapping
            if path.is_file():
                mapping.flush()
    except BaseException:
        _undo(path, before)
        raise


def _size_of(path: Path) -> int | None:
    """Bytes of a file; None when there is none, or it is something else."""
    return path.stat().st_size if path.is_file() else None


def _undo(path: Path, before: int | None) -> None:
    """Have a file as it was before it was made, or made larger."""
    if not path.is_file():
        return
    if before is None:
        path.unlink()
    else:
        os.truncate(path, before)


def _map(path: Path, offset: int, size: int | None) -> mmap:
    with path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
        end = file.seek(0, 2) if path.is_file() else 0
        length = end - offset if size is None else size
        check_size(length)
        if path.is_file() and end < offset + length:
            file.truncate(offset + length)
        return mmap(file.fileno(), length, offset=offset)


def make(
    buffer: bytearray | mmap | memoryview,
    new: NewStore,
    *,
    force: bool = False,
    used: bool = False,
) -> None:
    """Make a store over the whole of a buffer.

    Whenever this is interrupted there is either no store or a complete one: the super
    blocks go first and come last, their magic number behind all else.

    :param buffer: writable; its size is the size of the store.
    :param force: replace a store, or whatever else lies there.
    :param used: the range is memory, whose bytes are nobody's unless they are or were a store;
        a file that is not blank may be anything.
    :raises PkernfsError: there is, or was, a store, or a file is not blank.
    :raises UsageError: a value that format.h does not allow.
    """
    with memoryview(buffer) as whole, whole.cast("B") as view:
        check_size(len(view))
        _check(new, len(view))
        if not force:
            _refuse_content(view, used)
        # The end of the old store, before any part of it is gone.
        for number in layout.SUPER_SLOTS:
            _write(view, number * layout.SLOT_SIZE, bytes(layout.WORD.size))
        for number in range(layout.SLOTS_PER_BLOCK):
            if _slot(view, number) != _BLANK_SLOT:
                _put(view, number, _BLANK_SLOT)
        _put(view, layout.HEADER_SLOT, _header(new))
        # Slot 0 is a super block, the first that can hold an inode is behind it.
        _put(view, layout.SUPER_SLOTS[0] + 1, _root(new, layout.SUPER_SLOTS[0] + 1))
        _put_supers(view, _super(new, len(view)))


def _refuse_content(view: memoryview, used: bool) -> None:
    if used:
        taken = remains(lambda number: bytes(_slot(view, number)), len(view))
        what = "the range holds a store, or what is left of one"
    else:
        taken = any(_slot(view, number) != _BLANK_SLOT for number in layout.SUPER_SLOTS)
        what = "the file is not blank, it may hold a store"
    if taken:
        raise PkernfsError(
            what, "look with 'pkernfs check'; --force makes a new store and loses what is there"
        )


def _put_supers(view: memoryview, content: bytearray) -> None:
    magic = layout.WORD.size
    for number in layout.SUPER_SLOTS:
        _write(view, number * layout.SLOT_SIZE + magic, content[magic:])
    # B first: a store with A alone would look like one that lost a copy.
    for number in reversed(layout.SUPER_SLOTS):
        _write(view, number * layout.SLOT_SIZE, content[:magic])


def _check(new: NewStore, size: int) -> None:
    if new.base % layout.BLOCK_SIZE or not 0 <= new.base < (1 << 64) - size:
        raise UsageError(f"base {new.base:#x} is not a multiple of {layout.BLOCK_SIZE >> 20} MiB")
    try:
        label = new.label.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"label {new.label!r} is not text", f"up to {layout.LABEL_MAX} bytes of UTF-8"
        ) from error
    if len(label) > layout.LABEL_MAX or "\0" in new.label:
        raise UsageError(f"label {new.label!r} is longer than {layout.LABEL_MAX} bytes")
    # Block 0 is metadata, and a store without any other block could hold nothing.
    if not 0 <= new.page_blocks < size // layout.BLOCK_SIZE - 1:
        raise UsageError(f"{new.page_blocks} blocks for struct pages leave none for files")


def _slot(view: memoryview, number: int) -> memoryview:
    return view[number * layout.SLOT_SIZE : (number + 1) * layout.SLOT_SIZE]


def _put(view: memoryview, number: int, content: bytes | bytearray) -> None:
    _write(view, number * layout.SLOT_SIZE, content)


def _write(view: memoryview, start: int, content: bytes | bytearray) -> None:
    view[start : start + len(content)] = content


def _super(new: NewStore, size: int) -> bytearray:
    values: dict[str, int | bytes] = {
        "magic": layout.MAGIC,
        "version": layout.VERSION,
        "uuid": new.uuid.bytes,
        "base": new.base,
        "size": size,
        "created_ns": new.now_ns,
        "block_shift": layout.BLOCK_SHIFT,
        "slot_shift": layout.SLOT_SHIFT,
        "page_blocks": new.page_blocks,
        "label": new.label.encode(),
    }
    checksum = layout.super_checksum(layout.SUPER.pack(**values))
    return layout.SUPER.pack(**values, checksum=checksum)


def _header(new: NewStore) -> bytearray:
    values = {"next": layout.next_word(new.uuid.bytes, 0, 0), "magic": layout.META_MAGIC}
    checksum = layout.header_checksum(new.uuid.bytes, layout.HEADER.pack(**values))
    return layout.HEADER.pack(**values, checksum=checksum)


def _root(new: NewStore, slot: int) -> bytearray:
    values = {
        "commit": 1,
        "seq": 1,
        "slot": slot,
        "ino": layout.ROOT_INO,
        "parent": layout.ROOT_INO,
        "mode": _ROOT_MODE,
        "atime_ns": new.now_ns,
        "mtime_ns": new.now_ns,
        "ctime_ns": new.now_ns,
        "btime_ns": new.now_ns,
    }
    uuid_crc = zlib.crc32(new.uuid.bytes)
    checksum = layout.inode_checksum(uuid_crc, layout.INODE.pack(**values))
    return layout.INODE.pack(**values, checksum=checksum)
