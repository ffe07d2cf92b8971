# SPDX-License-Identifier: GPL-2.0-only
"""Checks of what a range holds over mounts: content, memory of others, damaged stores."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path

from .common import (
    BLOCK,
    MIB,
    MOUNT,
    SYSFS,
    check_unmounted,
    equal,
    forget_stores,
    free_blocks,
    kernel_log,
    listed,
    load,
    mount,
    mount_at,
    opened,
    pattern,
    read_range,
    refused,
    run,
    small_store,
    unload,
    write_range,
)


def _fill(root: Path) -> str:
    """Some of everything; a digest of what can be seen of it."""
    (root / "d/e").mkdir(parents=True)
    (root / "d/f").write_bytes(pattern(5 * MIB + 7))
    (root / "d/e/empty").touch(mode=0o751)
    (root / "link").symlink_to("d/f")
    with opened(root / "sparse") as fd:
        os.ftruncate(fd, 20 * MIB)
        os.pwrite(fd, b"end", 20 * MIB - 3)
    os.chown(root / "d/f", 11, 22)
    os.utime(root / "d", ns=(123, 456))
    return _digest(root)


def _digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        facts = (path, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns)
        total.update(repr((*facts, info.st_ino, info.st_blocks, info.st_nlink)).encode())
        if path.is_file() and not path.is_symlink():
            total.update(path.read_bytes())
        if path.is_symlink():
            total.update(bytes(path.readlink()))
    return total.hexdigest()


@check_unmounted
def content_outlives_the_module(place: Path) -> None:
    with small_store("256M!4G"):
        before = _fill(MOUNT)
        run("umount", str(MOUNT))
        mount()
        equal(_digest(MOUNT), before, "after a mount")
        unload()
        load("256M!4G")
        with kernel_log() as log:
            mount("init")
        equal([line for line in log if "pkernfs" in line], [], "nothing to say")
        equal(_digest(MOUNT), before, "after loading the module again, and -o init")


@check_unmounted
def unlinked_files_go_with_themount_at(place: Path) -> None:
    """A file that is open and has no name takes no space once the store is opened anew."""
    with small_store():
        free = free_blocks()
        with opened(MOUNT / "f") as fd:
            os.write(fd, b"x" * 5 * MIB)
            (MOUNT / "f").unlink()
            equal(free_blocks(), free - 3)
            # What a kexec would find now, seen through the range's own bytes.
            image = (SYSFS / "pkernfs/metadata").read_bytes()
        unload()
        write_range(0, image[:BLOCK])
        load("64M!4G")
        mount()
        equal((free_blocks(), listed(MOUNT)), (free, []))


@check_unmounted
def only_init_makes_a_store(place: Path) -> None:
    unload()
    forget_stores()
    load("64M!4G")
    with kernel_log() as log:
        refused(errno.EINVAL, lambda: mount_at("none", MOUNT))
    equal(len([line for line in log if "pkernfs" in line]), 1, f"{log}")
    unload()
    equal(read_range(0, BLOCK) == bytes(BLOCK), True, "nothing was written")
    load("64M!4G")
    mount("init")
    equal(listed(MOUNT), [])
    unload()


@check_unmounted
def memory_that_was_in_use_gets_a_store(place: Path) -> None:
    """What a warm reboot leaves is not zero, and nothing of ours: a store without a question."""
    unload()
    junk = random.Random(2).randbytes(BLOCK)
    forget_stores(junk)
    load("64M!4G")
    refused(errno.EINVAL, lambda: mount_at("none", MOUNT))
    unload()
    equal(read_range(0, BLOCK) == junk, True, "nothing was written")
    load("64M!4G")
    mount("init")
    equal(listed(MOUNT), [])
    _fill(MOUNT)
    digest = _digest(MOUNT)
    unload()
    load("64M!4G")
    mount("init")
    equal(_digest(MOUNT), digest, "init leaves a store alone")
    unload()


@check_unmounted
def damaged_stores_are_left_alone(place: Path) -> None:
    with small_store():
        _fill(MOUNT)
    good = read_range(0, BLOCK)
    flip = bytes([good[100] ^ 0xFF])
    for name, number, changes in (
        ("both super blocks damaged", errno.EUCLEAN, ((100, flip), (MIB + 100, flip))),
        ("no magic, but files", errno.EUCLEAN, ((0, b"GARBAGE!"), (MIB, b"GARBAGE!"))),
        ("no super blocks, but files", errno.EUCLEAN, ((0, b"\1" * 8192), (MIB, b"\1" * 8192))),
    ):
        write_range(0, good)
        for offset, data in changes:
            write_range(offset, data)
        bad = read_range(0, BLOCK)
        load("64M!4G")
        for option in ("", "init"):
            with kernel_log() as log:
                try:
                    mount_at("none", MOUNT, data=option)
                except OSError as error:
                    equal(error.errno, number, f"{name}: {error}")
                else:
                    raise AssertionError(f"{name}: mounted with '{option}'")
            equal(bool([line for line in log if "pkernfs: region" in line]), True, "says why")
        unload()
        equal(read_range(0, BLOCK) == bad, True, f"{name}: unchanged")
    write_range(0, good)
    write_range(100, flip)
    load("64M!4G")
    mount()
    equal(len(listed(MOUNT)), 3, "one good super block is enough")
    unload()
    load("32M!4G")
    refused(errno.ENXIO, lambda: mount_at("none", MOUNT))
    unload()
