# SPDX-License-Identifier: GPL-2.0-only
"""A new store is clean, and until it is complete there is none."""

from __future__ import annotations

from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.store import layout, make
from pkernfs.store.check import check
from pkernfs.store.findings import Code, Verdict
from pkernfs.store.image import Image, open_image
from pkernfs.store.make import NewStore, open_new

from .writer import BASE, SLOT, Writer, sample

NEW = NewStore(base=BASE, label="main", page_blocks=1, uuid=UUID(int=5), now_ns=77)


def blank() -> mmap:
    return mmap(-1, layout.MIN_BLOCKS * layout.BLOCK_SIZE)


def test_a_new_store_is_clean() -> None:
    buffer = blank()
    make.make(buffer, NEW)
    result = check(Image(buffer, base=BASE))
    assert result.findings == ()
    assert result.tree is not None
    store = result.tree.store
    assert (store.base, store.label, store.page_blocks) == (BASE, "main", 1)
    assert (store.uuid, store.created_ns, store.size) == (UUID(int=5), 77, len(buffer))
    assert list(result.tree.inodes) == [layout.ROOT_INO]


def test_agrees_with_the_writer_of_the_tests() -> None:
    buffer = blank()
    make.make(buffer, NewStore(base=BASE, label="test", uuid=UUID(bytes=bytes(range(16)))))
    writer = Writer()
    for slot in (0, 256):
        writer.put(
            slot, writer.super_values(created_ns=layout.SUPER.unpack(buffer[:SLOT])["created_ns"])
        )
    assert buffer[:SLOT] == writer.read(0)
    header = slice(511 * SLOT, 512 * SLOT)
    assert buffer[header] == writer.buffer[header]


def test_refuses_what_is_not_blank() -> None:
    writer = sample()
    before = writer.buffer[: 2 << 20]
    with pytest.raises(PkernfsError, match="not blank") as caught:
        make.make(writer.buffer, NEW)
    assert "--force" in caught.value.hint
    assert writer.buffer[: 2 << 20] == before


def _used() -> bytearray:
    return bytearray(bytes(range(1, 252)) * (len(blank()) // 251 + 1))[: len(blank())]


def test_memory_that_was_in_use_is_no_store() -> None:
    buffer = _used()
    with pytest.raises(PkernfsError, match="not blank"):
        make.make(buffer, NEW)
    make.make(buffer, NEW, used=True)
    assert check(Image(buffer)).findings == ()


@pytest.mark.parametrize("lost", [8, SLOT])
@pytest.mark.parametrize("by", [b"\0", b"\xa5"])
def test_what_was_a_store_is_not_overwritten(lost: int, by: bytes) -> None:
    writer = sample()
    for slot in (0, 256):
        writer.buffer[slot * SLOT : slot * SLOT + lost] = by * lost
    before = writer.buffer[:]
    with pytest.raises(PkernfsError, match="what is left of one"):
        make.make(writer.buffer, NEW, used=True)
    assert writer.buffer[:] == before


def test_what_was_half_made_is_made_anew() -> None:
    buffer = blank()
    make.make(buffer, NEW)
    for slot in (0, 256):
        buffer[slot * SLOT : slot * SLOT + 8] = bytes(8)
    make.make(buffer, NEW, used=True)
    assert check(Image(buffer)).findings == ()


def test_force_leaves_nothing_of_the_old_store() -> None:
    writer = sample()
    make.make(writer.buffer, NEW, force=True)
    result = check(writer.image())
    assert result.findings == ()
    assert result.tree is not None
    assert len(result.tree.inodes) == 1


@pytest.mark.parametrize(
    "new",
    [
        NewStore(base=4096),
        NewStore(base=-(2 << 20)),
        NewStore(base=(1 << 64) - (2 << 20)),
        NewStore(label="x" * 32),
        NewStore(label="a\0b"),
        NewStore(page_blocks=-1),
        NewStore(page_blocks=3),
    ],
)
def test_refuses_values_that_can_not_be(new: NewStore) -> None:
    buffer = blank()
    with pytest.raises(UsageError):
        make.make(buffer, new)
    assert not any(buffer[:SLOT])


@pytest.mark.parametrize("size", [0, 6 << 20, (8 << 20) + 4096, (16 << 40) + (2 << 20)])
def test_refuses_sizes_that_can_not_be(size: int) -> None:
    with pytest.raises(UsageError):
        make.check_size(size)
    make.check_size(8 << 20)
    make.check_size(16 << 40)


class Stop(Exception):
    """The power goes."""


def stores_of_make(buffer: mmap, monkeypatch: pytest.MonkeyPatch, stop: int) -> int:
    """Make a store, but stop before the given write; how many writes there were."""
    count = 0

    def counted(view: memoryview, start: int, content: Any) -> None:
        nonlocal count
        if count == stop:
            raise Stop
        count += 1
        view[start : start + len(content)] = content

    monkeypatch.setattr(make, "_write", counted)
    with suppress(Stop):
        make.make(buffer, NEW, force=True)
    return count


def test_an_interrupted_make_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    total = stores_of_make(blank(), monkeypatch, -1)
    whole = blank()
    make.make(whole, NEW, force=True)
    for stop in range(total):
        buffer = blank()
        stores_of_make(buffer, monkeypatch, stop)
        result = check(Image(buffer, base=BASE))
        if result.verdict is not Verdict.NOT_A_STORE:
            # Complete but for the magic number of the other copy.
            assert stop == total - 1
            assert [finding.code for finding in result.findings] == [Code.SUPER_COPY]


def test_an_interrupted_make_over_a_store_leaves_no_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    total = stores_of_make(sample().buffer, monkeypatch, -1)
    seen = set()
    for stop in range(total):
        writer = sample()
        stores_of_make(writer.buffer, monkeypatch, stop)
        result = check(writer.image())
        seen.add(result.verdict)
        if result.tree is not None:
            new = result.tree.store.uuid == NEW.uuid
            assert len(result.tree.inodes) == (1 if new else 8)
            assert result.mountable
    assert Verdict.DAMAGED in seen


def test_open_new_creates_and_grows_files(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with pytest.raises(PkernfsError, match="does not exist"), open_new(path):
        pass
    with pytest.raises(UsageError), open_new(path, size=5):
        pass
    assert not path.exists()
    with open_new(path, size=8 << 20) as buffer:
        make.make(buffer, NEW)
    assert path.stat().st_size == 8 << 20
    with open_image(path) as image:
        assert check(image).verdict is Verdict.CLEAN
    with open_new(path, 8 << 20, 8 << 20) as buffer:
        make.make(buffer, NEW)
    assert path.stat().st_size == 16 << 20
    with open_image(path, 8 << 20) as image:
        assert check(image).verdict is Verdict.CLEAN


def test_a_new_image_stays_sparse(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with open_new(path, size=1 << 40) as buffer:
        make.make(buffer, NEW)
    assert path.stat().st_blocks * 512 <= 64 << 10
