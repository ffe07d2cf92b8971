# SPDX-License-Identifier: GPL-2.0-only
"""Everything at once, for some seconds; then the store must still be in order."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .common import (
    BLOCK,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    GIB,
    MIB,
    PAGE,
    bus_error,
    check,
    equal,
    fallocate,
    fork,
    in_child,
    listed,
    opened,
    run,
)

_SECONDS = 12
_EXPECTED = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EFAULT,
}


def _tree_worker(place: Path, seed: int) -> None:
    """Create, write, rename, remove, among names that all workers share."""
    rng = random.Random(seed)
    end = time.monotonic() + _SECONDS

    def path() -> Path:
        return place / f"d{rng.randrange(3)}" / f"n{rng.randrange(8)}"

    def write() -> None:
        with opened(path()) as fd:
            os.pwrite(fd, bytes([seed]) * rng.randrange(1, 3 * MIB), rng.randrange(5 * MIB))

    def cut() -> None:
        with opened(path(), os.O_RDWR) as fd:
            os.ftruncate(fd, rng.randrange(6 * MIB))

    def punch() -> None:
        with opened(path(), os.O_RDWR) as fd:
            mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
            fallocate(fd, rng.randrange(4 * MIB), rng.randrange(1, 4 * MIB), mode)

    actions: list[Callable[[], object]] = [
        write,
        write,
        cut,
        punch,
        lambda: path().unlink(),
        lambda: path().rename(path()),
        lambda: path().mkdir(),
        lambda: path().rmdir(),
        lambda: path().symlink_to("n1"),
        lambda: listed(path().parent),
        lambda: path().chmod(rng.randrange(0o600, 0o777)),
    ]
    while time.monotonic() < end:
        try:
            rng.choice(actions)()
        except OSError as error:
            if error.errno not in _EXPECTED | {errno.ELOOP, errno.ENXIO}:
                raise


def _touch(memory: mmap.mmap, rng: random.Random) -> None:
    at = rng.randrange(16 * MIB // PAGE) * PAGE
    memory[at] = (memory[at] + 1) & 0xFF


def _map_worker(memory: mmap.mmap, seed: int) -> None:
    """Touches a mapping whose file others shrink and punch; SIGBUS ends a turn."""
    rng = random.Random(seed)
    end = time.monotonic() + _SECONDS

    def turn() -> None:
        while time.monotonic() < end:
            _touch(memory, rng)

    while time.monotonic() < end:
        equal(in_child(turn) in (0, -7), True, "ends well or by SIGBUS")


def _cut_worker(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    end = time.monotonic() + _SECONDS
    with opened(place / "mapped") as fd:
        while time.monotonic() < end:
            os.ftruncate(fd, rng.choice([16 * MIB, 16 * MIB, 7 * MIB + 5, BLOCK, 0]))
            at = rng.randrange(8) * BLOCK
            fallocate(fd, at, BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
            if os.fstat(fd).st_size:
                os.pread(fd, 100, 0)
        os.ftruncate(fd, 16 * MIB)


@check
def everything_at_once(place: Path) -> None:
    for i in range(3):
        (place / f"d{i}").mkdir()
    with opened(place / "mapped") as fd:
        os.ftruncate(fd, 16 * MIB)
        memory = mmap.mmap(fd, 16 * MIB)
    workers = [
        partial(_tree_worker, place, 1),
        partial(_tree_worker, place, 2),
        partial(_map_worker, memory, 3),
        partial(_cut_worker, place, 4),
    ]
    children = [fork(work) for work in workers]
    statuses = [wait() for wait in children]
    memory.close()
    equal(statuses, [0] * len(workers), "statuses of the workers")
    done = run("pkernfs", "check", ok=False)
    equal(done.returncode, 0, f"pkernfs check: {done.stdout}{done.stderr}")
    with opened(place / "mapped") as fd:
        os.ftruncate(fd, 1)
        memory = mmap.mmap(fd, 1)
        os.ftruncate(fd, 0)
        bus_error(lambda: memory[0])
        memory.close()


@check
def nobody_waits_while_memory_is_zeroed(place: Path) -> None:
    """df and the first touch of other memory go on while a guest's memory is allocated."""
    with opened(place / "ram") as ram, opened(place / "other") as other:
        os.ftruncate(other, 256 * BLOCK)
        memory = mmap.mmap(other, 256 * BLOCK)
        thread = threading.Thread(target=fallocate, args=(ram, 0, 2 * GIB))
        began = time.monotonic()
        thread.start()
        worst, turns = 0.0, 0
        while thread.is_alive():
            start = time.monotonic()
            os.statvfs(place)
            memory[turns % 256 * BLOCK] = 1
            worst = max(worst, time.monotonic() - start)
            turns += 1
            time.sleep(0.01)
        took = time.monotonic() - began
        memory.close()
        equal(os.fstat(ram).st_size, 2 * GIB)
    equal(worst < took / 4, True, f"{worst:.2f} s the longest of {turns} turns in {took:.2f} s")
