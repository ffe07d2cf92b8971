# SPDX-License-Identifier: GPL-2.0-only
"""Checks of a file's content by system call."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

from .common import (
    BLOCK,
    FALLOC_COLLAPSE_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    GIB,
    MIB,
    PAGE,
    SEEK_DATA,
    SEEK_HOLE,
    call,
    check,
    equal,
    fallocate,
    free_blocks,
    in_child,
    libc,
    opened,
    pattern,
    refused,
)


def _blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // BLOCK


@check
def write_read_append(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"one\n")
    with path.open("ab") as file:
        file.write(b"two\n")
    equal(path.read_bytes(), b"one\ntwo\n")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"three")
        equal(os.lseek(fd, 0, os.SEEK_CUR), 13, "position after an append")
        equal(os.pread(fd, 100, 8), b"three")
        equal(os.pread(fd, 100, 13), b"", "at the end")
        equal(os.pread(fd, 100, 5 * GIB), b"", "far beyond the end")


@check
def random_writes(place: Path) -> None:
    """A file and a bytearray get the same writes; sizes around pages and blocks."""
    rng = random.Random(7)
    model = bytearray()
    with opened(place / "f") as fd:
        for turn in range(60):
            length = rng.choice([1, 17, PAGE - 1, PAGE, PAGE + 1, 100_000, BLOCK, BLOCK + 3])
            at = rng.randrange(6 * MIB)
            data = pattern(length, turn)
            equal(os.pwrite(fd, data, at), length)
            if len(model) < at + length:
                model.extend(bytes(at + length - len(model)))
            model[at : at + length] = data
            if turn % 10 == 3:
                size = rng.randrange(8 * MIB)
                os.ftruncate(fd, size)
                del model[size:]
                model.extend(bytes(size - len(model)))
        equal(os.fstat(fd).st_size, len(model), "size")
        equal(os.pread(fd, 16 * MIB, 0) == bytes(model), True, "content")


@check
def sparse_growth(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, 100 * GIB)
        equal(_blocks(fd), 0, "blocks of a hole")
        os.pwrite(fd, b"x", 50 * GIB)
        equal(_blocks(fd), 1)
        equal(os.pread(fd, 3, 50 * GIB - 1), b"\0x\0")
        equal(os.pread(fd, BLOCK, 10 * GIB), bytes(BLOCK))
        equal(os.fstat(fd).st_size, 100 * GIB)


@check
def truncate_to_the_byte(place: Path) -> None:
    data = pattern(5 * MIB)
    with opened(place / "f") as fd:
        os.write(fd, data)
        for size in (5 * MIB - 1, 4 * MIB + 1, 4 * MIB, 4 * MIB - 1, 1_234_567, PAGE, 1, 0):
            os.ftruncate(fd, size)
            equal(os.fstat(fd).st_size, size)
            equal(_blocks(fd), -(-size // BLOCK), f"blocks of {size}")
            equal(os.pread(fd, 6 * MIB, 0) == data[:size], True, f"content of {size}")
            os.ftruncate(fd, size + 3 * MIB)
            equal(
                os.pread(fd, 9 * MIB, 0) == data[:size] + bytes(3 * MIB), True, f"{size} and zeros"
            )
            os.ftruncate(fd, size)


@check
def fallocate_allocates(place: Path) -> None:
    with opened(place / "f") as fd:
        fallocate(fd, 0, 10 * MIB)
        equal((os.fstat(fd).st_size, _blocks(fd)), (10 * MIB, 5))
        fallocate(fd, 9 * MIB, 4 * MIB, FALLOC_KEEP_SIZE)
        equal((os.fstat(fd).st_size, _blocks(fd)), (10 * MIB, 7))
        equal(os.pread(fd, 20 * MIB, 0), bytes(10 * MIB))
        os.write(fd, pattern(3 * MIB))
        fallocate(fd, 0, 10 * MIB)
        equal(os.pread(fd, 3 * MIB, 0), pattern(3 * MIB), "content is left alone")
        os.ftruncate(fd, 10 * MIB)
        equal(_blocks(fd), 5, "blocks beyond the size go with a truncate")


@check
def large_fallocate(place: Path) -> None:
    """In steps of 1 GiB inside, and yet all or nothing, also when it is killed."""
    free = free_blocks()
    with opened(place / "f") as fd:
        os.pwrite(fd, b"x", 1500 * MIB)
        fallocate(fd, MIB, 2200 * MIB)
        equal((os.fstat(fd).st_size, _blocks(fd)), (2201 * MIB, 1101))
        equal(os.pread(fd, 3, 1500 * MIB - 1), b"\0x\0")
        refused(errno.ENOSPC, lambda: fallocate(fd, 0, 4 * GIB))
        equal((os.fstat(fd).st_size, _blocks(fd)), (2201 * MIB, 1101))
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"x", 1500 * MIB)
        pid = os.fork()
        if pid == 0:
            fallocate(fd, 0, 2200 * MIB)
            os._exit(0)
        while free_blocks() == free - 1:
            pass
        os.kill(pid, signal.SIGKILL)
        killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
        equal(_blocks(fd), 1 if killed else 1100, f"blocks, killed: {killed}")
        equal(os.pread(fd, 1, 1500 * MIB), b"x")


@check
def punch_hole(place: Path) -> None:
    data = bytearray(pattern(8 * MIB))
    mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
    with opened(place / "f") as fd:
        os.write(fd, data)
        holes = [(100, 200), (PAGE, PAGE), (BLOCK - 5, 10), (MIB, 4 * MIB), (7 * MIB, 5 * MIB)]
        left = [4, 4, 4, 3, 3]
        for (at, length), blocks in zip(holes, left, strict=True):
            fallocate(fd, at, length, mode)
            end = min(at + length, len(data))
            data[at:end] = bytes(end - at)
            equal(_blocks(fd), blocks, f"blocks after {at}+{length}")
            equal(os.pread(fd, 9 * MIB, 0) == bytes(data), True, f"content after {at}+{length}")
        fallocate(fd, 0, 8 * MIB, mode)
        equal((os.fstat(fd).st_size, _blocks(fd)), (8 * MIB, 0))
        equal(os.pread(fd, 8 * MIB, 0), bytes(8 * MIB))


@check
def zero_range(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, pattern(6 * MIB))
        fallocate(fd, MIB, 4 * MIB, FALLOC_ZERO_RANGE)
        want = pattern(6 * MIB)
        equal(os.pread(fd, 6 * MIB, 0), want[:MIB] + bytes(4 * MIB) + want[5 * MIB :])
        equal(_blocks(fd), 3, "stay allocated")
        fallocate(fd, 6 * MIB, BLOCK, FALLOC_ZERO_RANGE)
        equal((os.fstat(fd).st_size, _blocks(fd)), (8 * MIB, 4))


@check
def fallocate_refuses_the_rest(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, bytes(6 * MIB))
        refused(errno.EOPNOTSUPP, lambda: fallocate(fd, 0, BLOCK, FALLOC_COLLAPSE_RANGE))
        refused(errno.EOPNOTSUPP, lambda: fallocate(fd, 0, BLOCK, FALLOC_PUNCH_HOLE))
        refused(errno.EINVAL, lambda: fallocate(fd, 0, 0))
        equal((os.fstat(fd).st_size, _blocks(fd)), (6 * MIB, 3))


@check
def seek_hole_and_data(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, 20 * MIB)
        os.pwrite(fd, b"x", 4 * MIB + 5)
        os.pwrite(fd, b"x", 10 * MIB)
        equal(os.lseek(fd, 0, SEEK_HOLE), 0)
        equal(os.lseek(fd, 0, SEEK_DATA), 4 * MIB)
        equal(os.lseek(fd, 5 * MIB, SEEK_DATA), 5 * MIB)
        equal(os.lseek(fd, 5 * MIB, SEEK_HOLE), 6 * MIB)
        equal(os.lseek(fd, 6 * MIB, SEEK_DATA), 10 * MIB)
        equal(os.lseek(fd, 10 * MIB, SEEK_HOLE), 12 * MIB)
        refused(errno.ENXIO, lambda: os.lseek(fd, 12 * MIB, SEEK_DATA))
        refused(errno.ENXIO, lambda: os.lseek(fd, 20 * MIB, SEEK_HOLE))
        os.ftruncate(fd, 11 * MIB)
        equal(os.lseek(fd, 10 * MIB, SEEK_HOLE), 11 * MIB, "the hole at the end")


@check
def seeking_over_a_huge_hole_is_quick(place: Path) -> None:
    huge = (2**32 - 2) * BLOCK
    with opened(place / "f") as fd:
        os.ftruncate(fd, huge)
        start = time.monotonic()
        refused(errno.ENXIO, lambda: os.lseek(fd, 0, SEEK_DATA))
        equal(os.lseek(fd, 0, SEEK_HOLE), 0)
        os.pwrite(fd, b"x", huge - 1)
        equal(os.lseek(fd, 0, SEEK_DATA), huge - BLOCK)
        equal(os.lseek(fd, huge - 1, SEEK_HOLE), huge)
        equal(time.monotonic() - start < 2, True, "in no time")


@check
def direct_io_needs_no_alignment(place: Path) -> None:
    data = pattern(3 * MIB + 77)
    with opened(place / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd:
        equal(os.pwrite(fd, data, 13), len(data))
        equal(os.pread(fd, len(data), 13), data)
    with opened(place / "f", os.O_RDONLY) as fd:
        equal(os.pread(fd, len(data), 13), data, "seen without O_DIRECT")


@check
def sync_calls(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT | os.O_SYNC) as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(place, os.O_RDONLY) as fd:
        os.fsync(fd)
    os.sync()


@check
def copies_in_the_kernel(place: Path) -> None:
    data = pattern(5 * MIB + 11)
    (place / "a").write_bytes(data)
    scratch = Path("/mnt/scratch/copy")
    with opened(place / "a") as a, opened(place / "b") as b, opened(scratch) as other:
        left = len(data)
        while left:
            left -= os.sendfile(b, a, len(data) - left, left)
        equal(os.pread(b, len(data) + 1, 0) == data, True, "sendfile within the store")
        while os.sendfile(other, a, os.lseek(other, 0, os.SEEK_CUR), len(data)):
            pass
        equal(os.pread(other, len(data) + 1, 0) == data, True, "sendfile to a disk")
        os.ftruncate(b, 0)
        done = 0
        while done < len(data):
            done += os.copy_file_range(a, b, len(data) - done, done, done)
        equal(os.pread(b, len(data) + 1, 0) == data, True, "copy_file_range")
        read, write = os.pipe()
        os.ftruncate(b, 0)
        for at in range(0, len(data), 65536):
            count = os.splice(other, write, min(65536, len(data) - at), offset_src=at)
            os.splice(read, b, count, offset_dst=at)
        os.close(read)
        os.close(write)
        equal(os.pread(b, len(data) + 1, 0) == data, True, "splice from a disk")
    scratch.unlink()


@check
def bad_buffer_changes_nothing(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, b"old")
        refused(errno.EFAULT, lambda: call(libc.pwrite(fd, ctypes.c_void_p(16), 100, 5 * MIB)))
        equal(os.fstat(fd).st_size, 3, "size after a write that failed")
        refused(errno.EFAULT, lambda: call(libc.pread(fd, ctypes.c_void_p(16), 3, 0)))
        # The first page of the buffer is there, the second is not.
        half = libc.mmap(None, 2 * PAGE, 3, 0x22, -1, 0)
        libc.munmap(ctypes.c_void_p(half + PAGE), PAGE)
        ctypes.memset(half, ord("n"), PAGE)
        equal(libc.pwrite(fd, ctypes.c_void_p(half), 2 * PAGE, 0), PAGE, "a short write")
        equal(os.pread(fd, 9000, 0), b"n" * PAGE)


@check
def size_limits(place: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with opened(place / "f") as fd:
            equal(os.pwrite(fd, bytes(100), MIB - 40), 40)
            refused(errno.EFBIG, lambda: os.pwrite(fd, b"x", MIB))
            refused(errno.EFBIG, lambda: fallocate(fd, 0, 2 * MIB))
            refused(errno.EFBIG, lambda: os.ftruncate(fd, MIB + 1))

    equal(in_child(limited), 0)
    with opened(place / "g") as fd:
        os.ftruncate(fd, ((1 << 32) - 1) * BLOCK)
        refused(errno.EFBIG, lambda: os.ftruncate(fd, ((1 << 32) - 1) * BLOCK + 1))
        refused(errno.EFBIG, lambda: os.pwrite(fd, b"x", ((1 << 32) - 1) * BLOCK))
        os.pwrite(fd, b"x", ((1 << 32) - 1) * BLOCK - 1)
        refused(errno.EINVAL, lambda: os.ftruncate(fd, -1))
