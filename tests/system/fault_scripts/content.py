# SPDX-License-Identifier: GPL-2.0-only
"""Content: written, read, allocated, cut, mapped."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from ..fs_scripts.common import (
    BLOCK,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    equal,
    fallocate,
    free_blocks,
    opened,
)
from .base import DATA, HOME, as_before, operation, scattered, twice
from .inject import Outcome, failing


@operation
def write() -> Outcome:
    """A write that fails half-way has written the half before: the file is as it says."""
    path = HOME / "written"

    def prepare() -> None:
        path.write_bytes(b"")

    def act() -> None:
        with opened(path, os.O_WRONLY) as fd:
            for at in (0, 2 * BLOCK):
                if os.pwrite(fd, DATA, at) < len(DATA):
                    raise OSError(errno.ENOMEM, "a short write")

    def undo(succeeded: bool) -> None:
        data = path.read_bytes()
        whole = DATA + bytes(2 * BLOCK - len(DATA)) + DATA
        equal(data, whole if succeeded else whole[: len(data)], "content")
        path.unlink()

    return twice(prepare, act, undo)


@operation
def read() -> Outcome:
    def act() -> None:
        equal((HOME / "kept").read_bytes(), DATA, "content")

    return as_before(act)


@operation
def allocate() -> Outcome:
    path = HOME / "new"

    def act() -> None:
        with opened(path, os.O_RDWR) as fd:
            fallocate(fd, 0, 4 * BLOCK)
            fallocate(fd, 10 * BLOCK, 2 * BLOCK)

    def undo(succeeded: bool) -> None:
        size = path.stat().st_size
        equal(size in ((12 * BLOCK,) if succeeded else (0, 4 * BLOCK)), True, f"size {size}")
        path.unlink()

    return twice(lambda: path.write_bytes(b""), act, undo)


@operation
def fill_holes() -> Outcome:
    """fallocate() over many holes at once."""
    path = HOME / "new"

    def act() -> None:
        with opened(path, os.O_RDWR) as fd:
            fallocate(fd, 0, 16 * BLOCK, FALLOC_KEEP_SIZE)

    return twice(lambda: scattered(path), act, lambda succeeded: path.unlink())


@operation
def punch() -> Outcome:
    path = HOME / "new"

    def act() -> None:
        with opened(path, os.O_RDWR) as fd:
            fallocate(fd, 4 * BLOCK + 4096, 4 * BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)

    return twice(lambda: scattered(path), act, lambda succeeded: path.unlink())


@operation
def truncate() -> Outcome:
    path = HOME / "new"

    def act() -> None:
        os.truncate(path, 5 * BLOCK + 100)
        os.truncate(path, 40 * BLOCK)

    return twice(lambda: scattered(path), act, lambda succeeded: path.unlink())


@operation
def touch_mapping() -> Outcome:
    """A page fault in a hole: the kernel tries again when memory was short."""
    path = HOME / "new"
    outcome = Outcome()
    before = free_blocks()
    for nth in range(1, 200):
        with opened(path) as fd:
            os.ftruncate(fd, 2 * BLOCK)
            memory = mmap.mmap(fd, 2 * BLOCK)
            # The parent has neither page tables nor pages of it.
            status = _touched(memory, nth)
            equal(memory[BLOCK : BLOCK + 1], b"x", "what the child wrote")
            memory.close()
        path.unlink()
        if status == 1:
            equal(free_blocks(), before, "free blocks afterwards")
            return outcome
        equal(status, 0, "status of the child")
        outcome.points += 1
        outcome.endured += 1
    raise AssertionError("no end")


def _touched(memory: mmap.mmap, nth: int) -> int:
    """0: the child's write met a failure and went through; 1: there was none left to meet."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pid = os.fork()
    if pid == 0:
        # Nothing of the interpreter's own comes between: the page is there by one store.
        with failing(nth) as shot:
            ctypes.memset(address + BLOCK, ord("x"), 1)
        os._exit(0 if shot.hit else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
