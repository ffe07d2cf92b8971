# SPDX-License-Identifier: GPL-2.0-only
"""What the sweeps over operations of the filesystem share: a small store, and how it looks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..fs_scripts.common import (
    BLOCK,
    MOUNT,
    PAGE,
    equal,
    free_blocks,
    load,
    mount,
    opened,
    pattern,
    unload,
    write_range,
)
from .inject import Outcome, arrange, sweep

SMALL = "64M!4G"
BLOCKS = 32
HOME = MOUNT / "home"
DROP = Path("/proc/sys/vm/drop_caches")
DATA = pattern(3 * 4096)
Operation = Callable[[], Outcome]
OPERATIONS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    """Register an operation."""
    OPERATIONS[function.__name__] = function
    return function


def tree() -> dict[str, object]:
    """All that is seen of the store: each file's size and content, free blocks."""
    found: dict[str, object] = {"free": free_blocks()}
    for path in sorted(HOME.rglob("*")):
        name = str(path.relative_to(HOME))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "directory"
    return found


def as_before(act: Callable[[], object], restore: Callable[[], object] = lambda: None) -> Outcome:
    """Sweep over something that leaves everything as it was when it fails.

    :param restore: takes back what a success did.
    """
    before = tree()

    def undo(succeeded: bool) -> None:
        if succeeded:
            restore()
        equal(tree(), before, "the store afterwards")

    return sweep(forget_names, act, undo)


def forget_names() -> None:
    """So that every name has to be looked up, and every inode be made, again."""
    DROP.write_text("2")


def twice(
    prepare: Callable[[], object], act: Callable[[], object], undo: Callable[[bool], object]
) -> Outcome:
    """A sweep after which the free blocks are as before."""
    before = free_blocks()
    outcome = sweep(prepare, act, undo)
    equal(free_blocks(), before, "free blocks afterwards")
    return outcome


def scattered(path: Path) -> None:
    """A file in many pieces: every second block."""
    with opened(path) as fd:
        for number in range(0, 16, 2):
            os.pwrite(fd, b"x", number * BLOCK)


def wipe() -> None:
    """Leave nothing of a store in the small region."""
    for block in range(1, BLOCKS):
        write_range((block + 1) * BLOCK - PAGE, bytes(PAGE))
    write_range(0, bytes(BLOCK))


def new_store() -> None:
    unload()
    wipe()
    load(SMALL)
    mount("init")
    HOME.mkdir()
    (HOME / "folder").mkdir()
    (HOME / "kept").write_bytes(DATA)
    arrange("pkernfs")
