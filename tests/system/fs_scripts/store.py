# SPDX-License-Identifier: GPL-2.0-only
"""Checks of space, mounting, the regions and the module."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .common import (
    BASE,
    BLOCK,
    MIB,
    MOUNT,
    PAGE,
    SYSFS,
    bus_error,
    call,
    check,
    check_unmounted,
    equal,
    fallocate,
    forget_stores,
    free_blocks,
    kernel_log,
    libc,
    listed,
    load,
    mount,
    mount_at,
    mounts,
    opened,
    pattern,
    read_range,
    refused,
    run,
    small_store,
    unload,
    write_range,
)

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT = 1, 32


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@check
def statfs_adds_up(place: Path) -> None:
    before = os.statvfs(MOUNT)
    region = int((SYSFS / "pkernfs/size").read_text())
    equal((before.f_bsize, before.f_frsize, before.f_namemax), (BLOCK, BLOCK, 255))
    equal(before.f_blocks * BLOCK, region, "blocks are those of the range")
    with opened(place / "a") as a, opened(place / "b") as b:
        os.write(a, b"x")
        fallocate(b, 0, 9 * MIB)
        after = os.statvfs(MOUNT)
        equal(before.f_bfree - after.f_bfree, 1 + 5, "blocks of the files")
        equal(before.f_blocks, after.f_blocks)
        used = sum(os.fstat(fd).st_blocks for fd in (a, b)) * 512
        equal(used, 6 * BLOCK)
        equal(before.f_files - before.f_ffree + 2, after.f_files - after.f_ffree, "files in use")


@check_unmounted
def no_space_is_exact(place: Path) -> None:
    """The last free block can be had; one more is refused and changes nothing."""
    with small_store("32M!4G"):
        path = MOUNT / "f"
        with opened(path) as fd, opened(MOUNT / "g") as other:
            free = free_blocks()
            os.write(other, b"x" * 100)
            refused(errno.ENOSPC, lambda: fallocate(fd, 0, free * BLOCK))
            equal((os.fstat(fd).st_size, os.fstat(fd).st_blocks, free_blocks()), (0, 0, free - 1))
            fallocate(fd, 0, (free - 1) * BLOCK)
            equal(free_blocks(), 0)
            for attempt in (
                lambda: os.pwrite(other, b"y" * 10, BLOCK - 5),
                lambda: os.pwrite(other, b"y", 10 * BLOCK),
                lambda: fallocate(other, 0, BLOCK + 1),
            ):
                refused(errno.ENOSPC, attempt)
                equal((os.fstat(other).st_size, os.fstat(other).st_blocks * 512), (100, BLOCK))
            equal(os.pwrite(other, b"y" * 10, BLOCK - 10), 10, "what there is can be written")
            (MOUNT / "empty").touch()
            os.ftruncate(other, 100 * BLOCK)
            memory = mmap.mmap(other, 100 * BLOCK)
            addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            bus_error(lambda: ctypes.memset(addr + 50 * BLOCK, 1, 1))
            equal(ctypes.string_at(addr, 3), b"xxx")
            memory.close()
            path.unlink()
            equal(free_blocks(), 0, "while it is open")
        equal(free_blocks(), free - 1)


@check
def freed_blocks_come_back_zeroed(place: Path) -> None:
    path = place / "f"
    for _ in range(2):
        with opened(path) as fd:
            fallocate(fd, 0, 20 * BLOCK)
            equal(os.pread(fd, 20 * BLOCK, 0) == bytes(20 * BLOCK), True)
            os.pwrite(fd, b"\xee" * 20 * BLOCK, 0)
        path.unlink()


@check
def one_super_block(place: Path) -> None:
    with _directory() as second:
        for source in ("none", "pkernfs", "none"):
            mount_at(source, second)
            equal(second.stat().st_dev, MOUNT.stat().st_dev)
            (place / "f").write_text(source)
            equal((second / place.name / "f").read_text(), source)
            run("umount", str(second))
        refused(errno.EBUSY, lambda: mount_at("none", second, _MS_RDONLY))
    found = [fields[:2] for fields in mounts() if fields[2] == "pkernfs"]
    equal(found, [["pkernfs", str(MOUNT)]])


@check
def mount_refusals(place: Path) -> None:
    with _directory() as second:
        refused(errno.EINVAL, lambda: mount_at("none", second, data="nonsense"))
        refused(errno.EINVAL, lambda: mount_at("none", second, data="size=1G"))
        refused(errno.ENODEV, lambda: mount_at("other", second))

        def in_user_namespace() -> None:
            pid = os.fork()
            if pid == 0:
                call(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
                try:
                    refused(errno.EPERM, lambda: mount_at("none", second))
                except BaseException:
                    os._exit(1)
                os._exit(0)
            equal(os.waitpid(pid, 0)[1], 0, "status of the child")

        in_user_namespace()


@check
def read_only(place: Path) -> None:
    path = place / "f"
    path.write_text("x")
    with opened(place / "sparse") as fd:
        os.ftruncate(fd, BLOCK)
    mount_at("none", MOUNT, _MS_REMOUNT | _MS_RDONLY)
    try:
        refused(errno.EROFS, lambda: path.write_text("y"))
        refused(errno.EROFS, lambda: path.unlink())
        refused(errno.EROFS, lambda: (place / "g").touch())
        equal(path.read_text(), "x")
        with opened(place / "sparse", os.O_RDONLY) as fd:
            memory = mmap.mmap(fd, BLOCK, prot=mmap.PROT_READ)
            equal(memory[:] == bytes(BLOCK), True, "a hole reads zero")
            memory.close()
    finally:
        mount_at("none", MOUNT, _MS_REMOUNT)
    path.write_text("y")


@check_unmounted
def a_read_only_mount_writes_nothing(place: Path) -> None:
    """What is damaged stays so until the store may be written."""
    super_b = BLOCK // 2  # PKERNFS_SUPER_B_SLOT
    label = 80  # in struct pkernfs_super
    with small_store("64M!4G"):
        (MOUNT / "f").write_text("kept")
    right = read_range(super_b + label, 1)
    wrong = bytes([right[0] ^ 1])
    write_range(super_b + label, wrong)
    load("64M!4G")
    with kernel_log() as log:
        mount("ro")
    equal([line for line in log if "repaired" in line], [])
    equal((MOUNT / "f").read_text(), "kept")
    unload()
    equal(read_range(super_b + label, 1), wrong, "after a read-only mount")
    load("64M!4G")
    mount("ro")
    with kernel_log() as log:
        run("mount", "-o", "remount,rw", str(MOUNT))
    (MOUNT / "f").write_text("changed")
    equal(len([line for line in log if "repaired a super block" in line]), 1, f"{log}")
    unload()
    equal(read_range(super_b + label, 1), right, "after a remount")


@check
def hibernation_is_refused(place: Path) -> None:
    (place / "f").write_text("kept")
    with kernel_log() as log, opened(Path("/sys/power/state"), os.O_WRONLY) as state:
        refused(errno.EBUSY, lambda: os.write(state, b"disk"))
    equal(len([line for line in log if "hibernation would lose" in line]), 1, f"{log}")
    equal((place / "f").read_text(), "kept")


@check
def sysfs_shows_the_metadata(place: Path) -> None:
    home = SYSFS / "pkernfs"
    equal(int((home / "base").read_text(), 16), BASE)
    equal((home / "metadata").stat().st_mode & 0o777, 0o400)
    equal((home / "metadata").stat().st_size, int((home / "size").read_text()))
    first = int((home / "sequence").read_text())
    equal(int((home / "sequence").read_text()), first, "sequence with no change")
    (place / "f").write_bytes(b"\xa5" * 3 * BLOCK)
    (place / "f").chmod(0o600)
    equal(int((home / "sequence").read_text()) > first, True, "sequence after changes")
    with opened(home / "metadata", os.O_RDONLY) as fd:
        equal(os.pread(fd, 8, 0), b"PKERNFS1")
        equal(os.pread(fd, 10, int((home / "size").read_text()) - 5), bytes(5), "at the end")
        for block in range(1, os.statvfs(MOUNT).f_blocks):
            got = os.pread(fd, PAGE, block * BLOCK + 8192)
            equal(b"\xa5" in got, False, f"data in block {block}")


@check
def check_of_a_mounted_store(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d/f").write_bytes(pattern(5 * MIB))
    done = run("pkernfs", "check", ok=False)
    equal(done.returncode, 0, f"pkernfs check: {done.stdout}{done.stderr}")


@check_unmounted
def module_comes_and_goes(place: Path) -> None:
    unload()
    debugfs = Path("/sys/kernel/debug")
    if not (debugfs / "x86").exists():
        run("mount", "-t", "debugfs", "debugfs", str(debugfs))

    def memory_types() -> list[str]:
        text = (debugfs / "x86/pat_memtype_list").read_text()
        return [line for line in text.splitlines() if "0x000000010" in line]

    equal(memory_types(), [])
    forget_stores()
    for _ in range(5):
        load("a:64M!4G,b:64M!4160M")
        equal(listed(SYSFS), ["a", "b"])
        equal(
            memory_types(),
            [
                "PAT: [mem 0x0000000100000000-0x0000000104000000] write-back",
                "PAT: [mem 0x0000000104000000-0x0000000108000000] write-back",
            ],
            "write-back is reserved for all of the ranges, and nothing is mapped",
        )
        text = Path("/proc/iomem").read_text()
        equal("100000000-103ffffff : pkernfs" in text, True, "/proc/iomem")
        mount("init", "a")
        equal(run("rmmod", "pkernfs", ok=False).returncode, 1, "rmmod while it is mounted")
        with opened(Path("/dev/mem"), os.O_RDONLY) as fd:
            refused(errno.EPERM, partial(mmap.mmap, fd, PAGE, prot=mmap.PROT_READ, offset=BASE))
        unload()
        equal(memory_types(), [])
        equal("pkernfs" in Path("/proc/iomem").read_text(), False)


@check_unmounted
def region_refusals(place: Path) -> None:
    """Each with one line that says why and what to write instead."""
    unload()
    for region, why, instead in (
        ("", "no region given", "pkernfs.region=SIZE!START"),
        ("64M", "not understood", "[NAME:]SIZE!START"),
        ("64M@4G", "not understood", "region=4G!8G"),
        ("64M!4Gx", "not understood", "[NAME:]SIZE!START"),
        ("none:64M!4G", "a name is", "'none'"),
        ("a/b:64M!4G", "a name is", "letters"),
        (f"{'a' * 32}:64M!4G", "a name is", "1 to 31"),
        ("64M!4097M", "is not aligned to 2M", "write 62M!4098M"),
        ("65M!4G", "is not aligned to 2M", "write 64M!4G"),
        ("4M!4G", "4M is too small", "write at least 8M!4G"),
        ("17T!4G", "more than 16 TiB", "write at most 16384G!4G"),
        ("8M!16777214M", "ends beyond", "/proc/iomem"),
        ("18446744073705357312!8M", "more than 16 TiB", "write at most 16384G!8M"),
        ("64M!1G", "the kernel uses this range as its own RAM", "add memmap=64M$1G"),
        ("64M!3G", "not all of 64M!3G is RAM set aside", "memmap=SIZE$START"),
        ("64M!4G,64M!5G", "given twice", "NAME:SIZE!START"),
        ("a:64M!4G,b:64M!4128M", "overlaps with region a", "write 64M!4160M"),
    ):
        with kernel_log() as log:
            done = load(region, ok=False) if region else _insert_without_region()
        equal(done.returncode != 0, True, f"{region}: refused")
        said = [line for line in log if why in line and instead in line]
        equal(len(said), 1, f"{region}: lines like that in {log}")
        equal("pkernfs" in Path("/proc/iomem").read_text(), False, f"{region}: nothing claimed")
        equal(SYSFS.exists(), False, f"{region}: nothing in sysfs")


def _insert_without_region() -> subprocess.CompletedProcess[str]:
    """The module with no parameter at all: modprobe would add the boot line's."""
    name = run("modinfo", "-n", "pkernfs").stdout.strip()
    return run("insmod", name, ok=False)


@contextmanager
def _boot_line(text: str) -> Iterator[None]:
    """Another /proc/cmdline, for whoever reads that file."""
    with tempfile.NamedTemporaryFile("w", suffix=".cmdline") as file:
        file.write(text + "\n")
        file.flush()
        run("mount", "--bind", file.name, "/proc/cmdline")
        try:
            yield
        finally:
            run("umount", "/proc/cmdline")


@check_unmounted
def kaslr_refusals(place: Path) -> None:
    """What the boot stub avoids, and nothing else, is good enough."""
    unload()
    name = run("modinfo", "-n", "pkernfs").stdout.strip()
    for line, good in (
        ("quiet memmap=64M$4G", True),
        ("memmap=64M!4G", True),
        ("memmap=64M#0x100000000", True),
        ("memmap=1G$4G root=/dev/vda", True),
        ("memmap=32M$4G memmap=32M$4128M", True),
        ("memmap=1M$2G,1M$3G,64M$4G", True),
        ("nokaslr", True),
        ("nokaslr memmap=64M%4G", True),
        ('a="b c" memmap=64M$4G', True),
        ("memmap=64M%4G-1+2", False),
        ("memmap=64M@4G", False),
        ("memmap=64M", False),
        ("", False),
        ("memmap=62M$4G", False),
        ("memmap=32M$4G memmap=30M$4128M", False),
        ("memmap=1M$1G,1M$2G,1M$3G,1M$5G,64M$4G", False),
        ("memmap=1M$1G memmap=1M$2G memmap=1M$3G memmap=1M$5G memmap=64M$4G", False),
        ("memmap=exactmap,64M$4G", False),
        ('a="nokaslr memmap=64M$4G"', False),
        ("-- nokaslr", False),
        ("xnokaslr ymemmap=64M$4G", False),
    ):
        with kernel_log() as log, _boot_line(line):
            done = run("insmod", name, "region=64M!4G", ok=False)
        equal(done.returncode == 0, good, f"'{line}'")
        said = [text for text in log if "KASLR" in text and "write memmap=64M$4G" in text]
        equal(len(said), 0 if good else 1, f"'{line}': {log}")
        if good:
            run("rmmod", "pkernfs")
