# SPDX-License-Identifier: GPL-2.0-only
"""The live inodes of a store, and the tree that follows from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pkernfs.errors import PkernfsError
from pkernfs.store import layout
from pkernfs.store.inode import Inode, Kind, Quarantined
from pkernfs.store.super import SuperBlock


@dataclass(frozen=True, slots=True)
class Leftover:
    """An inode slot that does not count: a crash came before it could be cleared."""

    inode: Inode
    reason: str


@dataclass(frozen=True)
class Usage:
    """What is in a store, all derived.

    :ivar blocks: of 2 MiB in the range.
    :ivar withheld_blocks: free, but may belong to what is damaged: nobody gets them.
    :ivar free_slots: inodes that fit without another metadata block.
    """

    blocks: int
    metadata_blocks: int
    page_blocks: int
    data_blocks: int
    withheld_blocks: int
    free_slots: int
    files: int
    directories: int
    symlinks: int

    @property
    def free_blocks(self) -> int:
        """Blocks that can be had."""
        used = self.metadata_blocks + self.page_blocks + self.data_blocks
        return self.blocks - used - self.withheld_blocks


@dataclass(frozen=True)
class Tree:
    """The files, directories and symlinks of a store.

    :ivar store: its super block.
    :ivar metadata_blocks: in the order of their links.
    :ivar inodes: the live ones by their number, and lost+found (:mod:`pkernfs.store.place`).
    :ivar leftovers: what does not count.
    :ivar quarantined: slots that are left out as damaged.
    :ivar damaged: what these say that they are, as far as it can be believed.
    """

    store: SuperBlock
    metadata_blocks: tuple[int, ...]
    inodes: dict[int, Inode] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    damaged: dict[int, Inode] = field(default_factory=dict)

    @cached_property
    def children(self) -> dict[int, dict[bytes, Inode]]:
        """What is in each directory: its entries by name. Empty directories are missing."""
        result: dict[int, dict[bytes, Inode]] = {}
        for inode in self.inodes.values():
            if inode.ino != layout.ROOT_INO:
                result.setdefault(inode.parent, {}).setdefault(inode.name, inode)
        return result

    @property
    def root(self) -> Inode:
        """The directory that everything else is in.

        :raises PkernfsError: it is damaged.
        """
        try:
            return self.inodes[layout.ROOT_INO]
        except KeyError:
            raise PkernfsError("the store has no root directory") from None

    def entries(self, directory: Inode) -> list[Inode]:
        """What is in a directory, by name."""
        found = self.children.get(directory.ino, {})
        return [found[name] for name in sorted(found)]

    def lookup(self, path: str | bytes) -> Inode:
        """The inode at a path; symlinks are not followed.

        :param path: from the root of the store on, with or without a slash before it.
        :raises PkernfsError: there is none.
        """
        inode = self.root
        for name in os.fsencode(path).split(b"/"):
            if name in (b"", b"."):
                continue
            found = self.children.get(inode.ino, {}).get(name)
            if found is None:
                raise PkernfsError(f"{shown(os.fsencode(path))}: no such file in the store")
            inode = found
        return inode

    def names(self, ino: int) -> list[bytes] | None:
        """The names that lead from the root to an inode, None if none do."""
        names: list[bytes] = []
        seen = set()
        while ino != layout.ROOT_INO:
            inode = self.inodes.get(ino, self.damaged.get(ino))
            if inode is None or ino in seen:
                return None
            seen.add(ino)
            names.append(inode.name)
            ino = inode.parent
        return names[::-1]

    def path(self, ino: int) -> str | None:
        """The path of an inode as text for a terminal, None if it has none."""
        names = self.names(ino)
        return None if names is None else "/" + "/".join(map(shown, names))

    def walk(self, start: Inode | None = None) -> Iterator[tuple[str, Inode]]:
        """Every path below a directory with its inode, a directory before its content.

        :param start: None for the root; comes first.
        """
        start = start or self.root
        waiting = [(self.path(start.ino) or "/", start)]
        seen = set()
        while waiting:
            path, inode = waiting.pop()
            if inode.ino in seen:
                continue
            seen.add(inode.ino)
            yield path, inode
            prefix = path.rstrip("/")
            waiting += [
                (f"{prefix}/{shown(child.name)}", child) for child in reversed(self.entries(inode))
            ]

    def usage(self) -> Usage:
        """How full the store is."""
        kinds = [inode.kind for ino, inode in self.inodes.items() if ino != layout.LOST_INO]
        pages = sum(len(inode.pages) for inode in self.inodes.values())
        nr_metadata = len(self.metadata_blocks)
        # A header in every metadata block, the super blocks in the first.
        slots = nr_metadata * (layout.SLOTS_PER_BLOCK - 1) - len(layout.SUPER_SLOTS)
        data_blocks = sum(inode.blocks for inode in self.inodes.values())
        others = self.store.blocks - nr_metadata - self.store.page_blocks - data_blocks
        return Usage(
            blocks=self.store.blocks,
            metadata_blocks=nr_metadata,
            page_blocks=self.store.page_blocks,
            data_blocks=data_blocks,
            withheld_blocks=others if self.quarantined else 0,
            free_slots=slots - len(kinds) - pages - len(self.quarantined),
            files=kinds.count(Kind.FILE),
            directories=kinds.count(Kind.DIRECTORY),
            symlinks=kinds.count(Kind.SYMLINK),
        )


def shown(name: bytes) -> str:
    """A name as text for a terminal: what can't be printed is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def select_live(
    inodes: Iterable[Inode],
) -> tuple[dict[int, Inode], tuple[Leftover, ...]]:
    """The inodes that count, after the rules of format.h, and the slots that don't.

    :param inodes: of all slots that are in use and can be believed.
    """
    live: dict[int, Inode] = {}
    leftovers: list[Leftover] = []
    by_seq: dict[int, Inode] = {}
    for inode in inodes:
        by_seq[inode.seq] = inode
        other = live.get(inode.ino)
        if other is None or other.seq < inode.seq:
            live[inode.ino] = inode
            older = other
        else:
            older = inode
        if older is not None:
            leftovers.append(Leftover(older, "there is a later state of this inode"))
    for inode in by_seq.values():
        victim = live.get(inode.replaces)
        if victim is not None and victim.seq < inode.seq and victim.ino != inode.ino:
            leftovers.append(Leftover(live.pop(victim.ino), f"replaced by inode {inode.ino}"))
    return live, tuple(leftovers)
