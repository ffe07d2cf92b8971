# SPDX-License-Identifier: GPL-2.0-only
"""What a process can and can't do with memory mapped from a pkernfs file.

Runs inside a host. Prints one JSON object: operation -> "ok" or the errno's name. The
keys are the names in the first column of the table in docs/memory.md.

Usage: memory_limits.py DIRECTORY_ON_PKERNFS SCRATCH_FILE_ON_A_DISK
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

LENGTH = 4 << 20
PAGE = 4096

# Numbers of <asm/unistd_64.h> and flags of <linux/futex.h>, <asm-generic/mman-common.h>.
NR_FUTEX = 202
NR_VMSPLICE = 278
NR_PROCESS_VM_READV = 310
FUTEX_WAIT = 0
MADV_POPULATE_WRITE = 23
MAP_POPULATE = 0x8000

libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def outcome(action: Callable[[], object]) -> str:
    """``ok``, or the name of the errno that the action failed with."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def syscall(number: int, *arguments: object) -> int:
    """A raw system call that raises OSError."""
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "syscall")
    return result


def operations(
    memory: mmap.mmap, address: int, ram: int, disk: Path
) -> dict[str, Callable[[], object]]:
    """Every operation of the table, ready to be tried."""

    def direct(flags: int, transfer: Callable[[int], object]) -> Callable[[], object]:
        def run() -> None:
            fd = os.open(disk, flags | os.O_DIRECT)
            try:
                transfer(fd)
            finally:
                os.close(fd)

        return run

    def buffered_read() -> None:
        with disk.open("rb", buffering=0) as file:
            assert os.preadv(file.fileno(), [memoryview(memory)[:PAGE]], 0) == PAGE

    def futex() -> None:
        # The word is not what FUTEX_WAIT expects: EAGAIN is the answer of a working futex.
        try:
            syscall(NR_FUTEX, ctypes.c_void_p(address), FUTEX_WAIT, 0x7FFFFFFF, None, None, 0)
        except BlockingIOError:
            return

    def vmsplice() -> None:
        read_end, write_end = os.pipe()
        try:
            vector = Iovec(address, PAGE)
            syscall(NR_VMSPLICE, write_end, ctypes.byref(vector), ctypes.c_ulong(1), 0)
        finally:
            os.close(read_end)
            os.close(write_end)

    def process_vm_readv() -> None:
        here = ctypes.create_string_buffer(PAGE)
        local = Iovec(ctypes.addressof(here), PAGE)
        remote = Iovec(address, PAGE)
        syscall(
            NR_PROCESS_VM_READV,
            os.getpid(),
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.byref(remote),
            ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        )

    def proc_mem() -> None:
        with Path("/proc/self/mem").open("rb", buffering=0) as file:
            file.seek(address)
            file.read(PAGE)

    def private_writable() -> None:
        mmap.mmap(ram, LENGTH, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE).close()

    def private_read_only() -> None:
        mmap.mmap(ram, LENGTH, mmap.MAP_PRIVATE, mmap.PROT_READ).close()

    def populate() -> None:
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(LENGTH), MADV_POPULATE_WRITE):
            raise OSError(ctypes.get_errno(), "madvise")

    def mlock() -> None:
        if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(LENGTH)):
            raise OSError(ctypes.get_errno(), "mlock")

    def fork() -> None:
        memory[PAGE] = 1
        child = os.fork()
        if child == 0:
            memory[PAGE] += 1
            os._exit(0)
        os.waitpid(child, 0)
        assert memory[PAGE] == 2, "a child's write is not seen by its parent"

    page = memoryview(memory)[:PAGE]
    return {
        "O_DIRECT read into it": direct(os.O_RDONLY, lambda fd: os.preadv(fd, [page], 0)),
        "O_DIRECT write from it": direct(os.O_RDWR, lambda fd: os.pwritev(fd, [page], 0)),
        "buffered read into it": buffered_read,
        "shared futex in it": futex,
        "vmsplice from it": vmsplice,
        "process_vm_readv of it": process_vm_readv,
        "/proc/PID/mem of it": proc_mem,
        "private writable mapping": private_writable,
        "private read-only mapping": private_read_only,
        "MADV_POPULATE_WRITE": populate,
        "mlock": mlock,
        "sharing it with a child": fork,
    }


def main() -> None:
    """Map a file, try everything, print what happened."""
    directory, disk = Path(sys.argv[1]), Path(sys.argv[2])
    disk.write_bytes(bytes(LENGTH))
    path = directory / "memory-limits"
    ram = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(ram, LENGTH)
        memory = mmap.mmap(ram, LENGTH)
        memory[:PAGE] = bytes(PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        results = {
            name: outcome(action) for name, action in operations(memory, address, ram, disk).items()
        }
        print(json.dumps(results))
    finally:
        os.close(ram)
        path.unlink()


if __name__ == "__main__":
    main()
