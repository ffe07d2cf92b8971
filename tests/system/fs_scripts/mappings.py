# SPDX-License-Identifier: GPL-2.0-only
"""Checks of mapped files: sizes of entries, ends, and what takes mappings away."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    call,
    check,
    equal,
    fallocate,
    faults,
    fork,
    in_child,
    kernel_log,
    libc,
    opened,
    pattern,
    refused,
)

_MAYMOVE, _FIXED = 1, 2  # of mremap(2)
_NOISE = 24  # faults that the interpreter takes itself


@contextmanager
def _mapped(fd: int, length: int, offset: int = 0) -> Iterator[mmap.mmap]:
    memory = mmap.mmap(fd, length, mmap.MAP_SHARED, offset=offset)
    try:
        yield memory
    finally:
        memory.close()


def _map(fd: int, length: int, prot: int, flags: int, addr: int = 0, offset: int = 0) -> int:
    """mmap(2) itself, for what Python's module does not do; the address."""
    got = libc.mmap(addr or None, length, prot, flags, fd, offset)
    if got in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(got)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@check
def mapping_is_the_file(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, 5 * MIB)
        with _mapped(fd, 5 * MIB) as one, _mapped(fd, MIB, 3 * MIB) as two:
            one[3 * MIB : 3 * MIB + 5] = b"hello"
            equal(two[:5], b"hello")
            equal(os.pread(fd, 5, 3 * MIB), b"hello")
            os.pwrite(fd, b"HELLO", 3 * MIB)
            equal((one[3 * MIB : 3 * MIB + 5], two[:5]), (b"HELLO", b"HELLO"))
            one.flush()


@check
def entries_of_2_mib(place: Path) -> None:
    """Touching every page takes one fault per 2 MiB, when written and when only read."""
    size = 32 * BLOCK
    with opened(place / "f") as fd:
        fallocate(fd, 0, size)
        for _ in range(2):
            with _mapped(fd, size) as memory:
                equal(_address(memory) % BLOCK, 0, "alignment")
                taken = faults(partial(memory.__getitem__, slice(None, None, PAGE)))
                equal(32 <= taken <= 32 + _NOISE, True, f"{taken} faults reading")
                view = memoryview(memory)
                source = bytes(size // PAGE)

                def write(view: memoryview = view, source: bytes = source) -> None:
                    view[::PAGE] = source

                again = faults(write)
                view.release()
                equal(again <= _NOISE, True, f"{again} faults writing what was read before")


@check
def entries_of_1_gib(place: Path) -> None:
    """One fault for a GiB, where file, address and memory allow it."""
    with opened(place / "f") as fd:
        fallocate(fd, 0, GIB)
        with _mapped(fd, GIB) as memory:
            equal(_address(memory) % GIB, 0, "alignment")
            taken = faults(lambda: memory[::BLOCK])
            equal(1 <= taken <= _NOISE, True, f"{taken} faults")
            memory[GIB - 1 : GIB] = b"z"
        equal(os.pread(fd, 2, GIB - 1), b"z")


@check
def entries_where_the_address_does_not_fit(place: Path) -> None:
    """4 KiB entries, and right ones, at an address that is not congruent."""
    with opened(place / "f") as fd:
        os.write(fd, pattern(4 * MIB))
        room = _map(-1, 16 * MIB, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        addr = -(-room // BLOCK) * BLOCK + 3 * PAGE
        fixed = mmap.MAP_SHARED | 0x10
        equal(_map(fd, 4 * MIB, mmap.PROT_READ | mmap.PROT_WRITE, fixed, addr), addr)
        equal(ctypes.string_at(addr, 4 * MIB) == pattern(4 * MIB), True)
        call(libc.munmap(room, 16 * MIB))


@check
def holes_fill_on_touch(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, 64 * MIB)
        with _mapped(fd, 64 * MIB) as memory:
            equal(memory[10 * MIB], 0)
            memory[33 * MIB] = 7
            equal(os.fstat(fd).st_blocks * 512, 2 * BLOCK)
        equal(os.pread(fd, 1, 33 * MIB), b"\7")


@check
def readers_take_no_space(place: Path) -> None:
    """A hole reads zero for who may only read, and shows what others write there later."""
    size = 8 * BLOCK
    path = place / "f"
    with opened(path) as fd, opened(path, os.O_RDONLY) as reader, kernel_log() as log:
        os.ftruncate(fd, size)
        os.utime(fd, (1, 1))
        addr = _map(reader, size, mmap.PROT_READ, mmap.MAP_SHARED)
        private = _map(reader, size, mmap.PROT_READ, mmap.MAP_PRIVATE)
        for place_of in (addr, private):
            equal(ctypes.string_at(place_of, size) == bytes(size), True, "zeros")
            equal(_reads(place_of + BLOCK), True, "the kernel reads it too")
        with opened(Path("/proc/self/mem"), os.O_RDONLY) as mem:
            equal(os.pread(mem, 2 * PAGE, addr + BLOCK - PAGE), bytes(2 * PAGE), "a debugger")
        equal((os.fstat(fd).st_blocks, os.fstat(fd).st_mtime), (0, 1))
        write = mmap.PROT_READ | mmap.PROT_WRITE
        refused(errno.EACCES, lambda: call(libc.mprotect(ctypes.c_void_p(addr), PAGE, write)))

        def seen(at: int, want: bytes, how: str) -> None:
            got = ctypes.string_at(addr + at, 4), ctypes.string_at(private + at, 4)
            equal(got, (want, want), how)

        os.pwrite(fd, b"text", BLOCK + PAGE)
        seen(BLOCK + PAGE, b"text", "written")
        equal(os.fstat(fd).st_blocks * 512, BLOCK)
        with _mapped(fd, size) as memory:
            memory[3 * BLOCK : 3 * BLOCK + 4] = b"more"
            seen(3 * BLOCK, b"more", "by a mapping")
            fallocate(fd, 0, size)
            memory[5 * BLOCK : 5 * BLOCK + 4] = b"last"
            seen(5 * BLOCK, b"last", "after fallocate")
            fallocate(fd, 4 * BLOCK, 2 * BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
            seen(5 * BLOCK, bytes(4), "after a punch")
            equal(os.fstat(fd).st_blocks * 512, size - 2 * BLOCK)
            memory[5 * BLOCK : 5 * BLOCK + 4] = b"anew"
            seen(5 * BLOCK, b"anew", "once more")
            os.ftruncate(fd, PAGE)
            bus_error(partial(ctypes.string_at, addr + PAGE, 1))
        for place_of in (addr, private):
            call(libc.munmap(place_of, size))
    equal([line for line in log if "ioremap" in line or "bad p" in line], [], "kernel log")


@check
def readers_and_writers_of_holes_agree(place: Path) -> None:
    """What a writer says is written, a reader that polls the hole has to see."""
    size = 64 * BLOCK
    path = place / "f"
    with opened(path) as fd, opened(path, os.O_RDONLY) as reader:
        os.ftruncate(fd, size)
        to_child, from_parent = os.pipe()
        to_parent, from_child = os.pipe()

        def read_it() -> None:
            addr = _map(reader, size, mmap.PROT_READ, mmap.MAP_SHARED)
            for block in range(size // BLOCK):
                at = addr + block * BLOCK
                ctypes.string_at(at, PAGE)
                os.write(from_child, b"r")
                equal(os.read(to_child, 1), b"w")
                equal(ctypes.string_at(at, 1), b"x", f"block {block}")

        waiting = fork(read_it)
        with _mapped(fd, size) as memory:
            for block in range(size // BLOCK):
                equal(os.read(to_parent, 1), b"r")
                if block % 2:
                    memory[block * BLOCK] = ord("x")
                else:
                    os.pwrite(fd, b"x", block * BLOCK)
                os.write(from_parent, b"w")
        equal(waiting(), 0, "status of the reader")
        for pipe in (to_child, from_parent, to_parent, from_child):
            os.close(pipe)


@check
def bus_error_past_the_end(place: Path) -> None:
    size = 3 * MIB + 100
    with opened(place / "f") as fd:
        os.ftruncate(fd, size)
        with _mapped(fd, size) as memory:
            addr = _address(memory)
            for last in (0, BLOCK, 3 * MIB, 3 * MIB + PAGE - 1):
                equal(ctypes.string_at(addr + last, 1), b"\0", f"byte {last}")
        room = _map(-1, 8 * MIB, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fixed = mmap.MAP_SHARED | 0x10
        _map(fd, 8 * MIB, mmap.PROT_READ | mmap.PROT_WRITE, fixed, room)
        equal(ctypes.string_at(room + 3 * MIB, 1), b"\0")
        for beyond in (3 * MIB + PAGE, 4 * MIB - 1, 4 * MIB, 8 * MIB - 1):
            bus_error(partial(ctypes.string_at, room + beyond, 1))
        os.ftruncate(fd, 8 * MIB)
        equal(ctypes.string_at(room + 8 * MIB - 1, 1), b"\0", "there once the file has grown")
        call(libc.munmap(room, 8 * MIB))


@check
def shrinking_takes_mappings_away(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, pattern(6 * MIB))
        with _mapped(fd, 6 * MIB) as memory:
            addr = _address(memory)
            equal(memory[:] == pattern(6 * MIB), True)
            os.ftruncate(fd, 3 * MIB + 5)
            bus_error(lambda: ctypes.string_at(addr + 4 * MIB, 1))
            bus_error(lambda: ctypes.string_at(addr + 3 * MIB + PAGE, 1))
            equal(ctypes.string_at(addr, 3 * MIB + 5) == pattern(6 * MIB)[: 3 * MIB + 5], True)
            equal(ctypes.string_at(addr + 3 * MIB + 5, 10), bytes(10), "the rest of the page")
            os.ftruncate(fd, 0)
            bus_error(lambda: ctypes.string_at(addr, 1))
            os.ftruncate(fd, 6 * MIB)
            equal(memory[:] == bytes(6 * MIB), True, "zeros once it has grown again")


@check
def what_was_mapped_past_the_end_is_never_seen(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, 10)
        with _mapped(fd, 10) as memory:
            ctypes.memset(_address(memory) + 10, 0xAA, PAGE - 10)
        os.ftruncate(fd, PAGE)
        equal(os.pread(fd, PAGE, 0), bytes(PAGE), "after a truncate")
        with _mapped(fd, PAGE) as memory:
            os.ftruncate(fd, 10)
            ctypes.memset(_address(memory) + 10, 0xBB, PAGE - 10)
        os.pwrite(fd, b"x", 100)
        equal(os.pread(fd, PAGE, 0), bytes(100) + b"x", "after a write")


@check
def punching_takes_mappings_away(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, pattern(8 * MIB))
        with _mapped(fd, 8 * MIB) as memory:
            equal(memory[:] == pattern(8 * MIB), True)
            fallocate(fd, BLOCK, 2 * BLOCK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
            with opened(place / "other") as other:
                os.write(other, b"\xff" * 4 * BLOCK)
                equal(memory[BLOCK : 3 * BLOCK] == bytes(2 * BLOCK), True, "zeros")
                memory[BLOCK] = 1
                equal(os.pread(other, 4 * BLOCK, 0) == b"\xff" * 4 * BLOCK, True, "not another's")
            equal(memory[:BLOCK] == pattern(8 * MIB)[:BLOCK], True)


@check
def private_mappings(place: Path) -> None:
    path = place / "f"
    path.write_bytes(pattern(MIB))
    with opened(path) as fd:
        write = mmap.PROT_READ | mmap.PROT_WRITE
        refused(errno.EINVAL, lambda: _map(fd, MIB, write, mmap.MAP_PRIVATE))
        addr = _map(fd, MIB, mmap.PROT_READ, mmap.MAP_PRIVATE)
        equal(ctypes.string_at(addr, MIB) == pattern(MIB), True)
        argument = ctypes.c_void_p(addr)
        refused(errno.EACCES, lambda: call(libc.mprotect(argument, PAGE, write)))
        call(libc.munmap(addr, MIB))
    with opened(path, os.O_RDONLY) as fd:
        refused(errno.EACCES, lambda: _map(fd, MIB, write, mmap.MAP_SHARED))
        addr = _map(fd, MIB, mmap.PROT_READ, mmap.MAP_SHARED)
        equal(ctypes.string_at(addr, MIB) == pattern(MIB), True)
        call(libc.munmap(addr, MIB))


@check
def programs_do_not_run_from_here(place: Path) -> None:
    path = place / "program"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    refused(errno.EACCES, lambda: os.execv(path, [str(path)]))


@check
def protection_can_change(place: Path) -> None:
    """Read-only and back: the entries are writable again, with no change of content."""
    with opened(place / "f") as fd:
        os.write(fd, pattern(4 * MIB))
        with _mapped(fd, 4 * MIB) as memory:
            addr = _address(memory)
            ctypes.memset(addr, 1, 1)
            call(libc.mprotect(ctypes.c_void_p(addr), 4 * MIB, mmap.PROT_READ))
            refused(errno.EFAULT, lambda: call(libc.pread(fd, ctypes.c_void_p(addr), 1, 0)))
            write = mmap.PROT_READ | mmap.PROT_WRITE
            call(libc.mprotect(ctypes.c_void_p(addr), 4 * MIB, write))
            ctypes.memset(addr, 3, 1)
            equal(os.pread(fd, 1, 0), b"\3")


@check
def fork_shares(place: Path) -> None:
    with opened(place / "f") as fd:
        os.ftruncate(fd, BLOCK)
        with _mapped(fd, BLOCK) as memory:
            memory[0] = 1
            equal(in_child(lambda: memory.__setitem__(0, 9)), 0)
            equal(memory[0], 9)


@check
def own_memory_as_buffer(place: Path) -> None:
    """read, write and getdents with a buffer that is a hole of the same file."""
    with opened(place / "f") as fd, opened(place, os.O_RDONLY) as directory:
        os.pwrite(fd, pattern(MIB), 0)
        os.ftruncate(fd, 40 * MIB)
        with _mapped(fd, 40 * MIB) as memory:
            addr = _address(memory)
            equal(libc.pread(fd, ctypes.c_void_p(addr + 10 * MIB), MIB, 0), MIB)
            equal(memory[10 * MIB : 11 * MIB] == pattern(MIB), True)
            equal(libc.pwrite(fd, ctypes.c_void_p(addr + 20 * MIB), MIB, 0), MIB)
            equal(memory[:MIB] == bytes(MIB), True)
            got = libc.syscall(217, directory, ctypes.c_void_p(addr + 30 * MIB), 4096)
            equal(got > 0, True, "getdents64")


@check
def writing_through_a_mapping_sets_mtime(place: Path) -> None:
    with opened(place / "f") as fd:
        fallocate(fd, 0, BLOCK)
        os.utime(fd, (1, 1))
        with _mapped(fd, BLOCK) as memory:
            memory[0] = 1
        equal(time.time() - os.fstat(fd).st_mtime < 60, True, "mtime is now")


@check
def no_struct_page(place: Path) -> None:
    """O_DIRECT of another filesystem can't reach this memory; ordinary calls can."""
    scratch = Path("/mnt/scratch/direct")
    scratch.write_bytes(pattern(MIB))
    with opened(place / "f") as fd, opened(scratch, os.O_RDONLY | os.O_DIRECT) as direct:
        os.ftruncate(fd, BLOCK)
        with _mapped(fd, BLOCK) as memory:
            addr = ctypes.c_void_p(_address(memory))
            refused(errno.EFAULT, lambda: call(libc.pread(direct, addr, MIB, 0)))
            with opened(scratch, os.O_RDONLY) as ordinary:
                equal(libc.pread(ordinary, addr, MIB, 0), MIB)
            equal(memory[:MIB] == pattern(MIB), True)
    scratch.unlink()


@check
def a_debugger_can_look(place: Path) -> None:
    with opened(place / "f") as fd:
        os.write(fd, pattern(BLOCK))
        with _mapped(fd, BLOCK) as memory:
            equal(memory[5], pattern(BLOCK)[5])
            with opened(Path("/proc/self/mem"), os.O_RDWR) as mem:
                got = os.pread(mem, 5000, _address(memory) + PAGE)
                equal(got, pattern(BLOCK)[PAGE : PAGE + 5000])


@contextmanager
def _room(length: int, align: int) -> Iterator[int]:
    """Address space that nobody uses, aligned."""
    room = _map(-1, length + align, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        yield -(-room // align) * align
    finally:
        call(libc.munmap(room, length + align))


def _move(old: int, length: int, new: int) -> None:
    libc.mremap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(length)
    flags = _MAYMOVE | _FIXED
    got = libc.mremap(ctypes.c_void_p(old), size, size, flags, ctypes.c_void_p(new))
    equal(got, new, f"mremap, errno {ctypes.get_errno()}")


def _reads(addr: int) -> bool:
    """Can the kernel read a byte there as we would, through the same TLB?"""
    read, write = os.pipe()
    try:
        return bool(libc.write(write, ctypes.c_void_p(addr), ctypes.c_size_t(1)) == 1)
    finally:
        os.close(read)
        os.close(write)


def _moves_away(place: Path, start: int, length: int) -> None:
    write = mmap.PROT_READ | mmap.PROT_WRITE
    with opened(place / "f") as fd, _room(GIB, GIB) as new, kernel_log() as log:
        fallocate(fd, 0, GIB)
        old = _map(fd, GIB, write, mmap.MAP_SHARED)
        equal(old % GIB, 0, "alignment")
        ctypes.memset(old + start, 0x5A, 1)
        _move(old + start, length, new + start)
        equal(_reads(old + start), False, "the old address still reaches the file")
        equal(ctypes.string_at(new + start, 2), b"\x5a\0", "content at the new address")
        if length < GIB:
            equal(ctypes.string_at(old, 1), b"\0", "what stayed")
        os.ftruncate(fd, 0)
        equal((_reads(old + start), _reads(new + start)), (False, False), "after a truncate")
        call(libc.munmap(old, GIB))
    equal([line for line in log if "bad p" in line], [], "kernel log")


@check
def moving_1_gib_leaves_nothing_behind(place: Path) -> None:
    _moves_away(place, 0, GIB)


@check
def moving_a_part_of_1_gib_leaves_nothing_behind(place: Path) -> None:
    _moves_away(place, 512 * MIB, 256 * MIB)


@check
def the_last_page_ends_in_zeros(place: Path) -> None:
    """Whoever maps it anew finds zeros past the end, whatever was written there before."""

    def tail(fd: int, size: int) -> None:
        start = size // PAGE * PAGE
        with _mapped(fd, size - start, start) as memory:
            got = ctypes.string_at(_address(memory) + size - start, PAGE - size % PAGE)
        equal(got, bytes(len(got)), f"past {size}")

    def scribble(fd: int, size: int) -> None:
        start = size // PAGE * PAGE
        with _mapped(fd, size - start, start) as memory:
            ctypes.memset(_address(memory) + size - start, 0xAA, PAGE - size % PAGE)

    with opened(place / "f") as fd:
        os.write(fd, b"\xff" * 2 * PAGE)
        os.ftruncate(fd, 5000)
        tail(fd, 5000)
        scribble(fd, 5000)
        tail(fd, 5000)
        scribble(fd, 5000)
        os.pwrite(fd, b"x" * 1000, 5000)
        tail(fd, 6000)
        scribble(fd, 6000)
        fallocate(fd, 0, 7000)
        tail(fd, 7000)
        equal(os.pread(fd, 7000, 0), b"\xff" * 5000 + b"x" * 1000 + bytes(1000))
        scribble(fd, 7000)
        fallocate(fd, 4096, 2000, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)
        tail(fd, 7000)
        scribble(fd, 7000)
        os.ftruncate(fd, 6500)
        tail(fd, 6500)
