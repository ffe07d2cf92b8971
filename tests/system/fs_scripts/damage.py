# SPDX-License-Identifier: GPL-2.0-only
"""Checks of stores with damaged inodes: they cost what is damaged, and are named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .common import (
    BLOCK,
    MOUNT,
    PAGE,
    SYSFS,
    check_unmounted,
    equal,
    free_blocks,
    kernel_log,
    listed,
    load,
    mount,
    opened,
    pattern,
    read_range,
    refused,
    small_store,
    unload,
    write_range,
)

GUESTS = 50
REGION = "256M!4G"
# kernel/format.h: the words of an inode slot.
INO_AT = 48
NAME_AT = 148


def _content(number: int) -> bytes:
    return pattern(3 * PAGE + 7, number + 1)


def _guests() -> None:
    for number in range(GUESTS):
        home = MOUNT / f"g{number}"
        home.mkdir()
        (home / "ram").write_bytes(_content(number))


def _expect_guests(*missing: int) -> None:
    for number in set(range(GUESTS)) - set(missing):
        path = MOUNT / f"g{number}/ram"
        equal(path.read_bytes() == _content(number), True, f"content of {path}")


def _flip(ino: int) -> None:
    """Flip one bit of the slot that an inode lies in; the module must not be loaded."""
    block = read_range(0, BLOCK)
    slots = [
        start
        for start in range(0, BLOCK, PAGE)
        if any(block[start : start + 8])
        and int.from_bytes(block[start + INO_AT : start + INO_AT + 8], "little") == ino
    ]
    equal(len(slots), 1, f"slots of inode {ino}")
    at = slots[0] + NAME_AT + 200
    write_range(at, bytes([block[at] ^ 0x10]))


def _mounted(option: str = "defaults") -> list[str]:
    """Mount. :returns: what the module said."""
    load(REGION)
    with kernel_log() as log:
        mount(option)
    return [line for line in log if "pkernfs: region" in line]


@check_unmounted
def one_damaged_inode_costs_that_one(place: Path) -> None:
    """49 of 50 guests come back, the one is named, and nothing of it is overwritten."""
    with small_store(REGION):
        _guests()
        ino = (MOUNT / "g7/ram").stat().st_ino
        free = free_blocks()
    _flip(ino)
    for option in ("defaults", "init"):
        said = _mounted(option)
        equal(
            sum(f"perhaps inode {ino} 'ram': wrong checksum" in line for line in said), 1, f"{said}"
        )
        text = (SYSFS / "pkernfs/damaged").read_text()
        equal(f"perhaps inode {ino} 'ram': wrong checksum" in text, True, text)
        equal(listed(MOUNT / "g7"), [], "the damaged file is not there")
        _expect_guests(7)
        unload()
    said = _mounted()
    equal(free_blocks(), 0, "free blocks may be those of the damaged file")
    with opened(MOUNT / "g8/ram") as fd, kernel_log() as log:
        os.pwrite(fd, _content(8)[:PAGE], 0)
        refused(errno.ENOSPC, lambda: os.pwrite(fd, b"x", BLOCK))
        refused(errno.ENOSPC, lambda: os.posix_fallocate(fd, 0, 4 * BLOCK))
    equal(sum("check --repair" in line for line in log), 1, f"{log}")
    # What a good file gives back can be used, the rest can't.
    (MOUNT / "g9/ram").unlink()
    (MOUNT / "g9/ram").write_bytes(_content(9))
    refused(errno.ENOSPC, lambda: (MOUNT / "g7/ram").write_bytes(b"x"))
    (MOUNT / "g7/ram").unlink()
    unload()
    # The same bit again: now it is as it was before.
    _flip(ino)
    equal(_mounted(), [], "nothing to say")
    equal((SYSFS / "pkernfs/damaged").read_text(), "")
    _expect_guests()
    equal(free_blocks(), free)
    unload()


@check_unmounted
def what_lay_in_a_damaged_directory_is_found(place: Path) -> None:
    with small_store(REGION):
        _guests()
        ino, child = (MOUNT / "g7").stat().st_ino, (MOUNT / "g7/ram").stat().st_ino
    _flip(ino)
    said = _mounted()
    equal(sum(f"inode {child} 'ram' is in lost+found" in line for line in said), 1, f"{said}")
    _expect_guests(7)
    equal("g7" in listed(MOUNT), False)
    lost = MOUNT / "lost+found"
    found = lost / f"{child}-ram"
    equal(listed(lost), [found.name])
    equal(lost.stat().st_mode & 0o777, 0o700)
    equal(found.read_bytes() == _content(7), True, "content")
    refused(errno.EPERM, (lost / "new").touch)
    refused(errno.EPERM, (lost / "new").mkdir)
    refused(errno.EPERM, lambda: found.rename(lost / "new"))
    refused(errno.EPERM, lambda: (MOUNT / "g1/ram").rename(lost / "new"))
    refused(errno.EPERM, lambda: lost.chmod(0o755))
    refused(errno.EBUSY, lambda: lost.rename(MOUNT / "new"))
    (MOUNT / "g7").mkdir()
    equal((MOUNT / "g7").stat().st_ino != ino, True, "a number that is still named")
    equal(listed(MOUNT / "g7"), [])
    found.rename(MOUNT / "g7/ram")
    equal(listed(lost), [])
    refused(errno.EBUSY, lost.rmdir)
    _expect_guests()
    unload()
    equal(any("lost+found: " in line for line in _mounted()), False)
    equal("lost+found" in listed(MOUNT), False)
    _expect_guests()
    unload()
