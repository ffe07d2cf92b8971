# SPDX-License-Identifier: GPL-2.0-only
"""kernel/dma/tables.c from Python: an arena of table pages and a model of what they say."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[3] / "kernel" / "dma" / "tests"
PAGE = 4096
ENTRIES = 512
READ, WRITE = 1, 2
LARGE = 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000
#: Set by the test that runs this package again under the address sanitizer.
SANITIZE = os.environ.get("PKERNFS_DMA_SANITIZE", "undefined")


class Arena(ctypes.Structure):
    """``struct arena``: pages that stand for physical memory from ``base`` on."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("nr_pages", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("memory", ctypes.POINTER(ctypes.c_uint64)),
    )


class Window(ctypes.Structure):
    """``struct window``: where leaves may translate to."""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("tables", ctypes.c_void_p),
    )


class Translation(ctypes.Structure):
    """``struct translation``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("iova", "phys", "size", "rights"))


class Translations(ctypes.Structure):
    """``struct translations``."""

    _fields_ = (
        ("list", ctypes.POINTER(Translation)),
        ("room", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
    )


class Counts(ctypes.Structure):
    """``struct dma_counts``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("pages", "leaves", "bytes"))


class Difference(ctypes.Structure):
    """``struct dma_difference``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("iova", "old_phys", "old_rights", "new_phys", "new_rights")
    )


@functools.cache
def library(sanitize: str = SANITIZE) -> ctypes.CDLL:
    """tables.c and its harness, compiled for this process."""
    folder = tempfile.mkdtemp(prefix="pkernfs-dma-")
    command = ["make", "--silent", "-C", str(SOURCE), f"OUT={folder}", f"SANITIZE={sanitize}"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(f"{folder}/libtables.so")


@dataclass(frozen=True, order=True)
class Leaf:
    """A translation of ``size`` bytes with ``rights`` (READ, WRITE)."""

    iova: int
    phys: int
    size: int
    rights: int


def span(level: int) -> int:
    """Bytes that one entry of a table at ``level`` covers."""
    return int(PAGE << (9 * (level - 1)))


@dataclass
class Tables:
    """One set of page tables in an arena of its own, written entry by entry."""

    levels: int
    pages: int
    base: int = 0x1_0000_0000
    memory: ctypes.Array[ctypes.c_uint64] = field(init=False, repr=False)
    arena: Arena = field(init=False, repr=False)
    root: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = (ctypes.c_uint64 * (self.pages * ENTRIES))()
        pointer = ctypes.cast(self.memory, ctypes.POINTER(ctypes.c_uint64))
        self.arena = Arena(self.base, self.pages, 0, pointer)
        self.root = self.base

    def take_root(self) -> None:
        """Use the first page as the root table."""
        self.root = self.new_page()

    def new_page(self) -> int:
        """The physical address of a page that was not handed out yet."""
        page = int(self.arena.used)
        assert page < self.pages, "arena too small for this test"
        self.arena.used = page + 1
        return self.base + page * PAGE

    def entry(self, table: int, index: int) -> int:
        """Position of an entry in ``memory``."""
        return (table - self.base) // PAGE * ENTRIES + index

    def put(self, leaf: Leaf, path_rights: int = READ | WRITE) -> None:
        """Write one leaf; tables on the way are made with ``path_rights``."""
        table = self.root
        for level in range(self.levels, 0, -1):
            at = self.entry(table, leaf.iova // span(level) % ENTRIES)
            if span(level) == leaf.size:
                self.memory[at] = leaf.phys | leaf.rights | (LARGE if level > 1 else 0)
                return
            if not self.memory[at]:
                self.memory[at] = self.new_page() | path_rights
            table = self.memory[at] & ADDRESS
        raise AssertionError("a leaf of no valid size")

    def walk(self) -> tuple[int, list[Leaf]]:
        """What dma_tables_walk() returns and reports."""
        room = 4096
        array = (Translation * room)()
        out = Translations(array, room, 0)
        result = library().harness_walk(
            ctypes.byref(self.arena), ctypes.c_uint64(self.root), self.levels, ctypes.byref(out)
        )
        return result, [_leaf(array[i]) for i in range(out.count)]

    def counts(self) -> Counts:
        """What dma_tables_count() reports."""
        counts = Counts()
        result = library().harness_count(
            ctypes.byref(self.arena), ctypes.c_uint64(self.root), self.levels, ctypes.byref(counts)
        )
        assert result == 0
        return counts

    def find(self, iovas: Sequence[int]) -> list[tuple[int, Leaf]]:
        """What one cursor finds for each of ``iovas``, in that order."""
        count = len(iovas)
        asked = (ctypes.c_uint64 * count)(*iovas)
        found = (Translation * count)()
        results = (ctypes.c_int * count)()
        library().harness_find(
            ctypes.byref(self.arena),
            ctypes.c_uint64(self.root),
            self.levels,
            asked,
            ctypes.c_uint64(count),
            found,
            results,
        )
        return [(results[i], _leaf(found[i])) for i in range(count)]


def _leaf(raw: Translation) -> Leaf:
    return Leaf(raw.iova, raw.phys, raw.size, raw.rights)


def build(levels: int, leaves: Iterable[Leaf], base: int = 0x1_0000_0000) -> Tables:
    """Tables that hold exactly ``leaves``."""
    wanted = list(leaves)
    tables = Tables(levels, 1 + len(wanted) * (levels - 1) + 4, base)
    tables.take_root()
    for leaf in wanted:
        tables.put(leaf)
    return tables


@dataclass(frozen=True)
class Copied:
    """Result of dma_tables_copy()."""

    result: int
    tables: Tables
    dropped: int
    counts: Counts


def copy(source: Tables, pages: int, window: tuple[int, int] | None = None) -> Copied:
    """Copy ``source`` into ``pages`` fresh pages; ``window`` keeps only leaves inside it."""
    target = Tables(source.levels, pages, base=0x77_0000_0000)
    for i in range(min(len(target.memory), 4 * ENTRIES)):
        target.memory[i] = 0xDEAD_BEEF_DEAD_BEEF  # fresh pages need not be zero
    root, dropped, counts = ctypes.c_uint64(), ctypes.c_uint64(), Counts()
    limits = ctypes.byref(Window(window[0], window[1], None)) if window else None
    result = library().harness_copy(
        ctypes.byref(source.arena),
        ctypes.c_uint64(source.root),
        source.levels,
        ctypes.byref(target.arena),
        limits,
        ctypes.byref(root),
        ctypes.byref(dropped),
        ctypes.byref(counts),
    )
    target.root = root.value
    return Copied(result, target, dropped.value, counts)


def compare(old: Tables, new: Tables) -> tuple[int, Difference]:
    """What dma_tables_compare() says."""
    difference = Difference()
    result = library().harness_compare(
        ctypes.byref(old.arena),
        ctypes.c_uint64(old.root),
        old.levels,
        ctypes.byref(new.arena),
        ctypes.c_uint64(new.root),
        new.levels,
        ctypes.byref(difference),
    )
    return result, difference


def validate(tables: Tables, window: tuple[int, int], max_pages: int) -> tuple[int, Leaf]:
    """What dma_tables_validate() says, and the leaf that it objects to."""
    bad = Translation()
    result = library().harness_validate(
        ctypes.byref(tables.arena),
        ctypes.c_uint64(tables.root),
        tables.levels,
        ctypes.byref(Window(window[0], window[1], None)),
        ctypes.c_uint64(max_pages),
        ctypes.byref(bad),
    )
    return result, _leaf(bad)
