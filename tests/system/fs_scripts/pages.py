# SPDX-License-Identifier: GPL-2.0-only
"""Checks of a region with struct pages (pages=1)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from . import mappings, stress
from .common import (
    BLOCK,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    MIB,
    MOUNT,
    PAGE,
    call,
    check_unmounted,
    equal,
    fallocate,
    fork,
    free_blocks,
    kernel_log,
    libc,
    load,
    mount,
    opened,
    pattern,
    place,
    refused,
    run,
    small_store,
    unload,
)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@contextmanager
def _pinned(addr: int, length: int) -> Iterator[Callable[[], bytes]]:
    """Pins user memory by putting its pages into a pipe; the call reads it and lets go."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as pipe, os.fdopen(write, "wb", buffering=0):
        iovec = _Iovec(addr, length)
        equal(call(libc.vmsplice(write, ctypes.byref(iovec), 1, 0)), length, "vmsplice")
        yield lambda: pipe.read(length) or b""


@check_unmounted
def mappings_with_struct_pages(_: Path) -> None:
    """What holds without struct pages holds with them."""
    checks = [
        mappings.mapping_is_the_file,
        mappings.entries_of_2_mib,
        mappings.entries_where_the_address_does_not_fit,
        mappings.holes_fill_on_touch,
        mappings.readers_take_no_space,
        mappings.readers_and_writers_of_holes_agree,
        mappings.bus_error_past_the_end,
        mappings.shrinking_takes_mappings_away,
        mappings.what_was_mapped_past_the_end_is_never_seen,
        mappings.punching_takes_mappings_away,
        mappings.private_mappings,
        mappings.protection_can_change,
        mappings.fork_shares,
        mappings.own_memory_as_buffer,
        mappings.a_debugger_can_look,
    ]
    # From 6.15 on the kernel maps whole folios, which are 2 MiB here.
    if os.uname().release.startswith("6.12."):
        checks.append(mappings.entries_of_1_gib)
    with small_store("3G!4G", pages=True):
        stat = os.statvfs(MOUNT)
        equal(stat.f_blocks - stat.f_bfree, 1 + 24, "blocks of the metadata and the pages")
        for function in checks:
            with place(function.__name__) as path:
                try:
                    function(path)
                except Exception as error:
                    raise AssertionError(f"{function.__name__}: {error}") from error


def _direct_worker(addr: int, scratch: Path, end: float) -> None:
    """Transfers between a disk and a mapping that another process takes away."""
    with opened(scratch, os.O_RDWR | os.O_DIRECT) as direct:
        turn = 0
        while time.monotonic() < end:
            turn += 1
            at = ctypes.c_void_p(addr + turn * 77 * PAGE % (15 * MIB))
            move = libc.pread if turn % 2 else libc.pwrite
            if move(direct, at, MIB, 0) < 0:
                equal(ctypes.get_errno(), errno.EFAULT, "past the end of the file")


@check_unmounted
def stress_with_struct_pages(_: Path) -> None:
    scratch = Path("/mnt/scratch/direct")
    scratch.write_bytes(pattern(MIB))
    with small_store("256M!4G", pages=True):
        with place("everything") as path:
            stress.everything_at_once(path)
        with place("direct") as path, opened(path / "f") as fd:
            os.ftruncate(fd, 16 * MIB)
            end = time.monotonic() + 8
            memory = mmap.mmap(fd, 16 * MIB)
            addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            workers = [fork(partial(_direct_worker, addr, scratch, end)) for _ in range(2)]
            while time.monotonic() < end:
                os.ftruncate(fd, 5 * MIB)
                os.ftruncate(fd, 16 * MIB)
                fallocate(fd, BLOCK, 2 * BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
            memory.close()
            equal([worker() for worker in workers], [0, 0], "statuses of the workers")
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, BLOCK)  # asks for what was still in use
    scratch.unlink()


@check_unmounted
def direct_io_into_mapped_files(_: Path) -> None:
    scratch = Path("/mnt/scratch/direct")
    scratch.write_bytes(pattern(MIB))
    with (
        small_store("256M!4G", pages=True),
        opened(MOUNT / "f") as fd,
        opened(scratch, os.O_RDWR | os.O_DIRECT) as direct,
    ):
        os.ftruncate(fd, 3 * BLOCK)
        memory = mmap.mmap(fd, 3 * BLOCK)
        addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for at in (0, BLOCK + PAGE, 2 * BLOCK - MIB // 2):
            equal(call(libc.pread(direct, ctypes.c_void_p(addr + at), MIB, 0)), MIB)
            equal(os.pread(fd, MIB, at) == pattern(MIB), True, f"read to {at}")
        memory[:MIB] = pattern(MIB, 5)
        equal(call(libc.pwrite(direct, ctypes.c_void_p(addr), MIB, 0)), MIB)
        equal(scratch.read_bytes() == pattern(MIB, 5), True, "written from there")
        memory.close()
    scratch.unlink()


@check_unmounted
def pinned_blocks_are_not_handed_out(_: Path) -> None:
    with small_store("32M!4G", pages=True):
        before = free_blocks()
        with opened(MOUNT / "f") as fd, opened(MOUNT / "other") as other:
            os.pwrite(fd, pattern(BLOCK), 0)
            memory = mmap.mmap(fd, BLOCK)
            addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            with _pinned(addr, 4 * PAGE) as drain:
                fallocate(fd, 0, BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
                equal(memory[0], 0, "another block is there instead")
                memory.close()
                os.ftruncate(fd, 0)
                refused(errno.ENOSPC, lambda: fallocate(other, 0, before * BLOCK))
                fallocate(other, 0, (before - 1) * BLOCK)
                os.pwrite(other, b"\xff" * (before - 1) * BLOCK, 0)
                equal(drain() == pattern(BLOCK)[: 4 * PAGE], True, "what is pinned stays")
            fallocate(other, 0, before * BLOCK)
            equal(os.pread(other, BLOCK, (before - 1) * BLOCK), bytes(BLOCK), "zeroed")


@check_unmounted
def umount_waits_for_pinned_blocks(_: Path) -> None:
    with small_store("32M!4G", pages=True):
        with opened(MOUNT / "f") as fd:
            os.pwrite(fd, pattern(BLOCK), 0)
            memory = mmap.mmap(fd, BLOCK)
        addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with _pinned(addr, PAGE) as drain:
            memory.close()
            umount = subprocess.Popen(["umount", str(MOUNT)])
            time.sleep(1)
            equal(umount.poll(), None, "umount is not done")
            equal(drain(), pattern(PAGE))
            equal(umount.wait(timeout=60), 0, "umount")
        mount()
        equal((MOUNT / "f").read_bytes() == pattern(BLOCK), True)


@check_unmounted
def struct_pages_need_room_in_the_store(_: Path) -> None:
    with small_store("64M!4G"):
        (MOUNT / "f").write_text("kept")
    load("64M!4G", pages=True)
    with kernel_log() as log:
        done = run("mount", "-t", "pkernfs", "none", str(MOUNT), ok=False)
    equal(done.returncode != 0, True, "refused")
    said = [line for line in log if "has 0 blocks for struct pages and needs 1" in line]
    equal(len(said), 1, f"{log}")
    unload()
    load("64M!4G")
    mount()
    equal((MOUNT / "f").read_text(), "kept")
    unload()
    with small_store("64M!4G", pages=True):
        (MOUNT / "f").write_text("kept")
    load("64M!4G")
    mount()
    equal((MOUNT / "f").read_text(), "kept", "mounted without struct pages")
