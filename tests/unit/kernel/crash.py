# SPDX-License-Identifier: GPL-2.0-only
"""A crash after every store: what the next kernel finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pkernfs.store.check import check
from pkernfs.store.findings import Code, Severity
from pkernfs.store.image import Image
from pkernfs.store.tree import Tree
from tests.native import Kind, Line, Native, Store

_PAGE = 4096
_WORD = 8


@dataclass(frozen=True, slots=True)
class State:
    """What a user sees of a store.

    :ivar digests: content of every file, by path.
    """

    lines: tuple[Line, ...]
    digests: dict[str, int]

    @classmethod
    def of(cls, native: Native) -> State:
        """What the C code shows; the store must be open."""
        lines = native.dump()
        return cls(lines, {line.path: native.digest(line.path) for line in lines})

    def but_content(self, path: str) -> State:
        """The same without the content of one file."""
        return State(self.lines, {name: d for name, d in self.digests.items() if name != path})


@dataclass(frozen=True)
class Step:
    """One change that is atomic, or one that writes data to a file.

    :ivar data_of: file whose bytes change one by one, empty for an atomic change.
    """

    do: Callable[[Native], None]
    data_of: str = ""


@dataclass(frozen=True)
class Recorded:
    """What a step stored, and the states around it."""

    step: Step
    before: State
    after: State
    stores: list[Store]


def record(native: Native, steps: list[Step]) -> list[Recorded]:
    """Run steps on an open store."""
    result = []
    for step in steps:
        before, start = State.of(native), native.log_size()
        step.do(native)
        stores = native.stores(start, native.log_size())
        result.append(Recorded(step, before, State.of(native), stores))
    return result


@dataclass
class CrashedRange:
    """A second range that gets the recorded stores one by one, and is judged after each.

    :ivar images: how many different contents were looked at.
    """

    native: Native
    images: int = 0
    image: Image = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image(memoryview(self.native.memory), base=0)

    def copy_from(self, other: Native) -> None:
        """Begin with what another range contains now."""
        self.native.rollback(0)
        source = memoryview(other.memory).cast("B")
        touched = {store.offset // _PAGE for store in other.stores(0, other.log_size())}
        last = {
            (store.offset + len(store.data) - 1) // _PAGE
            for store in other.stores(0, other.log_size())
        }
        for page in sorted(touched | last):
            content = bytes(source[page * _PAGE : (page + 1) * _PAGE])
            self.native.poke(page * _PAGE, content)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever is stored within is undone."""
        size = self.native.log_size()
        try:
            yield
        finally:
            self.native.close()
            self.native.rollback(size)

    def replay(self, recorded: Recorded) -> None:
        """A crash at every point of one step.

        :raises AssertionError: the store then is in no state that it may be in.
        """
        committed = False
        for store in recorded.stores:
            for data in _partly(store):
                with self.undone():
                    self.native.poke(store.offset, data)
                    committed = self._judge(recorded, committed)
            self.native.poke(store.offset, store.data)
            committed = self._judge(recorded, committed)
        if recorded.stores:
            state = self._mount(repair=False)
            assert state == recorded.after, "what was acknowledged is lost"

    def _judge(self, recorded: Recorded, committed: bool) -> bool:
        """:returns: whether the step has happened."""
        self.images += 1
        state = self._mount(repair=True)
        path = recorded.step.data_of
        if path:
            assert state.but_content(path) == recorded.before.but_content(path)
            return True
        if state == recorded.after:
            return True
        assert state == recorded.before, "neither the state before nor the one after"
        assert not committed or recorded.before == recorded.after, "back to the state before"
        return False

    def _mount(self, *, repair: bool) -> State:
        """What checker and module find; the range stays as it was."""
        result = check(self.image)
        wrong = [f for f in result.findings if f.severity is not Severity.NOTE]
        assert not wrong, str(wrong[0])
        leftovers = sum(f.code is Code.LEFTOVER for f in result.findings)
        assert result.tree is not None
        with self.undone():
            start = self.native.log_size()
            self.native.open()
            state = State.of(self.native)
            assert _lines(result.tree) == sorted(_plain(line) for line in state.lines)
            assert self.native.log_size() - start == leftovers
            if repair and leftovers:
                self.native.close()
                self._crash_again(state, self.native.stores(start, self.native.log_size()), start)
        return state

    def _crash_again(self, state: State, repairs: list[Store], start: int) -> None:
        """A crash while a mount repairs what the first crash left."""
        assert not check(self.image).findings, "not all was repaired"
        for count in range(len(repairs)):
            self.native.rollback(start)
            for store in repairs[:count]:
                self.native.poke(store.offset, store.data)
            self.images += 1
            self.native.open()
            assert State.of(self.native) == state
            self.native.close()


def _partly(store: Store) -> Iterator[bytes]:
    """What of a store may have arrived before the rest, a few words at a time."""
    if store.kind is Kind.WORD:
        return
    words = len(store.data) // _WORD
    for count in sorted({1, words // 2, words - 1} - {0, words}):
        yield store.data[: count * _WORD]


def _plain(line: Line) -> tuple[str, int, int, int, str]:
    return line.path, line.ino, line.mode, line.size, line.rest


def _lines(tree: Tree) -> list[tuple[str, int, int, int, str]]:
    result = []
    for path, inode in tree.walk():
        extents = ",".join(f"{e.file_block}:{e.block}:{e.count}" for e in inode.extents)
        target = inode.target.decode("latin-1")
        result.append((path, inode.ino, inode.mode, inode.size, target or extents))
    return sorted(result)
