# SPDX-License-Identifier: GPL-2.0-only
"""Where good inodes lie, and lost+found for those whose place is damaged.

That directory is stored nowhere. The module shows the same one (kernel/fs/lost.c).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace

from pkernfs.store import layout
from pkernfs.store.findings import Code, Report
from pkernfs.store.inode import Inode, Kind
from pkernfs.store.tree import shown

_NAME = b"lost+found"


def place(live: dict[int, Inode], report: Report) -> dict[int, Inode]:
    """The inodes with a place for each of them, lost+found among them if there is need of it.

    :param live: good ones by their number, with the root.
    """
    lost = set(_misplaced(live, report))
    lost |= set(_in_cycles(live, lost, report))
    if not lost:
        return live
    placed = {ino: _moved(inode) if ino in lost else inode for ino, inode in live.items()}
    placed[layout.LOST_INO] = _lost_dir(placed)
    return placed


def _misplaced(live: dict[int, Inode], report: Report) -> Iterator[int]:
    """What lies in no directory, or has the name of an inode that was changed later."""
    named: dict[tuple[int, bytes], Inode] = {}
    for inode in live.values():
        if inode.ino == layout.ROOT_INO:
            continue
        parent = live.get(inode.parent)
        if parent is None:
            text = f"its directory, inode {inode.parent}, is missing"
            report.add(Code.PARENT_MISSING, text, slot=inode.slot, ino=inode.ino)
            yield inode.ino
        elif parent.kind is not Kind.DIRECTORY:
            text = f"lies in inode {parent.ino}, which is not a directory"
            report.add(Code.PARENT_KIND, text, slot=inode.slot, ino=inode.ino)
            yield inode.ino
        else:
            twin = named.setdefault((inode.parent, inode.name), inode)
            if twin is not inode:
                older, later = sorted((twin, inode), key=lambda one: one.seq)
                named[inode.parent, inode.name] = later
                text = f"inode {later.ino} has the same name, {shown(inode.name)}"
                report.add(Code.NAME_TWICE, text, slot=older.slot, ino=older.ino)
                yield older.ino


def _in_cycles(live: dict[int, Inode], lost: set[int], report: Report) -> Iterator[int]:
    """Of each cycle of directories the one with the lowest number."""
    #: Inodes that are known to end at the root, in lost+found or in a cycle.
    done = {layout.ROOT_INO, *lost}
    for ino in live:
        trail: dict[int, None] = {}
        step = ino
        while step not in done and step not in trail:
            trail[step] = None
            step = live[step].parent
        if step in trail:
            way = list(trail)
            first = min(way[way.index(step) :])
            text = "a directory that is in itself"
            report.add(Code.PARENT_CYCLE, text, slot=live[first].slot, ino=first)
            yield first
        done.update(trail)


def _moved(inode: Inode) -> Inode:
    name = (b"%d-%b" % (inode.ino, inode.name))[: layout.NAME_MAX]
    return replace(inode, parent=layout.LOST_INO, name=name)


def _lost_dir(placed: dict[int, Inode]) -> Inode:
    root = placed[layout.ROOT_INO]
    taken = {inode.name for inode in placed.values() if inode.parent == layout.ROOT_INO}
    name, number = _NAME, 0
    while name in taken:
        number += 1
        name = b"%b.%d" % (_NAME, number)
    return replace(
        root,
        ino=layout.LOST_INO,
        slot=0,
        seq=0,
        mode=stat.S_IFDIR | 0o700,
        uid=0,
        gid=0,
        name=name,
        atime_ns=root.mtime_ns,
        ctime_ns=root.mtime_ns,
        btime_ns=root.mtime_ns,
    )
