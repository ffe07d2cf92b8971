# SPDX-License-Identifier: GPL-2.0-only
"""What the checks of the filesystem share. Runs inside a host, standard library only.

A check is a function that raises when something is not as it should be. It works in a
directory of its own, and afterwards the store must have as much space as before.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import mmap
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB
PAGE = 4096
BASE = 4 * GIB  # where the lab's region begins
REGION = 3 * GIB  # its size, see test_filesystem.py
MOUNT = Path("/mnt/pkernfs")
SYSFS = Path("/sys/fs/pkernfs")

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_COLLAPSE_RANGE = 8
FALLOC_ZERO_RANGE = 16
SEEK_DATA = 3
SEEK_HOLE = 4

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Entry:
    """A registered check; ``store``: it needs the store mounted at MOUNT."""

    name: str
    run: Check
    store: bool


CHECKS: dict[str, Entry] = {}

libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def check(function: Check) -> Check:
    """Register a check that works in the mounted store."""
    CHECKS[function.__name__] = Entry(function.__name__, function, True)
    return function


def check_unmounted(function: Check) -> Check:
    """Register a check that loads and unloads the module itself."""
    CHECKS[function.__name__] = Entry(function.__name__, function, False)
    return function


def call(result: int) -> int:
    """What a libc call returned, or its errno as OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, offset: int, length: int, mode: int = 0) -> None:
    """fallocate(2)."""
    call(libc.fallocate(fd, mode, offset, length))


def equal(got: object, want: object, what: str = "") -> None:
    """Raise unless both are equal."""
    if got != want:
        text = f"{what}: " if what else ""
        raise AssertionError(f"{text}got {got!r:.200}, want {want!r:.200}")


def refused(number: int, function: Callable[[], object]) -> None:
    """Raise unless the call fails with this errno."""
    try:
        function()
    except OSError as error:
        want, got = errno.errorcode[number], errno.errorcode.get(error.errno or 0)
        equal(got, want, f"errno ({error})")
    else:
        raise AssertionError(f"not refused with {errno.errorcode[number]}")


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o644) -> Iterator[int]:
    """A file descriptor for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from page to page and between seeds."""
    words = ((seed * 0x9E3779B1 + i) & 0xFFFFFFFF for i in range(-(-length // PAGE)))
    return b"".join(word.to_bytes(4, "little") * (PAGE // 4) for word in words)[:length]


def faults(function: Callable[[], object]) -> int:
    """Page faults that the call took, the interpreter's own (a few) with them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def fork(function: Callable[[], object]) -> Callable[[], int]:
    """Run it in a child; the result waits for that, see :func:`in_child`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            function()
            status = 0
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(status)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(function: Callable[[], object]) -> int:
    """Run it in a child: 0, or 1 for an exception, or minus the signal that killed it."""
    return fork(function)()


def bus_error(function: Callable[[], object]) -> None:
    """Raise unless the call dies of SIGBUS (in a child)."""
    equal(in_child(function), -signal.SIGBUS, "status of the child")


def free_blocks() -> int:
    """Free blocks of the mounted store."""
    return os.statvfs(MOUNT).f_bavail


def run(*argv: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program, its output captured."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ok and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done


@contextmanager
def kernel_log() -> Iterator[list[str]]:
    """Collects the kernel's messages during the block (filled when it ends)."""
    lines: list[str] = []
    with opened(Path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK) as fd:
        os.lseek(fd, 0, os.SEEK_END)
        try:
            yield lines
        finally:
            while True:
                try:
                    record = os.read(fd, 8192).decode(errors="replace")
                except BlockingIOError:
                    break
                lines.append(record.partition(";")[2].splitlines()[0])


def mounts() -> list[list[str]]:
    """The fields of /proc/mounts."""
    return [line.split() for line in Path("/proc/mounts").read_text().splitlines()]


def listed(path: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def unload() -> None:
    """Unmount everywhere and unload the module."""
    while any(fields[1] == str(MOUNT) for fields in mounts()):
        run("umount", str(MOUNT))
    if Path("/sys/module/pkernfs").exists():
        run("rmmod", "pkernfs")


def load(
    region: str | None = None, ok: bool = True, pages: bool = False
) -> subprocess.CompletedProcess[str]:
    """Load the module, with the boot line's region or another."""
    words = [f"region={region}"] if region else []
    return run("modprobe", "pkernfs", *words, *(["pages=1"] if pages else []), ok=ok)


def mount(option: str = "defaults", source: str = "none", where: Path = MOUNT) -> None:
    """Mount a region."""
    run("mount", "-t", "pkernfs", "-o", option, source, str(where))


@contextmanager
def _range(offset: int, length: int) -> Iterator[mmap.mmap]:
    """The region's own bytes; read(2) of /dev/mem ends at the kernel's last RAM."""
    start = offset // PAGE * PAGE
    with opened(Path("/dev/mem"), os.O_RDWR) as fd:
        memory = mmap.mmap(fd, offset - start + length, offset=BASE + start)
    try:
        yield memory
    finally:
        memory.close()


def read_range(offset: int, length: int) -> bytes:
    """Bytes of the region itself; the module must not be loaded."""
    with _range(offset, length) as memory:
        return memory[offset % PAGE :]


def write_range(offset: int, data: bytes) -> None:
    """Change the region itself; the module must not be loaded."""
    with _range(offset, len(data)) as memory:
        memory[offset % PAGE :] = data


def forget_stores(block0: bytes = bytes(BLOCK)) -> None:
    """Leave nothing in the region of the boot line that was a store of ours, in any place.

    :param block0: what its first block holds afterwards.
    """
    for block in range(1, REGION // BLOCK):
        write_range((block + 1) * BLOCK - PAGE, bytes(PAGE))
    write_range(0, block0)


def mount_at(source: str, where: Path, flags: int = 0, data: str = "") -> None:
    """Mount a store, as mount(2) does.

    :raises OSError: it is refused.
    """
    args = (os.fsencode(source), os.fsencode(where), b"pkernfs", ctypes.c_ulong(flags))
    call(libc.mount(*args, data.encode()))


@contextmanager
def small_store(region: str = "64M!4G", pages: bool = False) -> Iterator[None]:
    """A new, empty store in a small region, in place of the one that was mounted."""
    unload()
    forget_stores()
    load(region, pages=pages)
    mount("init")
    yield
    unload()


def big_store() -> None:
    """Back to a store in the whole region of the boot line, made anew if need be."""
    unload()
    load()
    if run("mount", "-t", "pkernfs", "none", str(MOUNT), ok=False).returncode:
        unload()
        forget_stores()
        load()
        mount("init")


@contextmanager
def place(name: str) -> Iterator[Path]:
    """A directory for one check; afterwards the store has its space back."""
    before = free_blocks()
    path = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=MOUNT))
    yield path
    shutil.rmtree(path)
    equal(free_blocks(), before, "free blocks afterwards")
