# SPDX-License-Identifier: GPL-2.0-only
"""Checks of the tree: names, directories, rename, symlinks, attributes, refusals."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import time
from functools import partial
from pathlib import Path

from .common import (
    BLOCK,
    MIB,
    MOUNT,
    call,
    check,
    equal,
    fork,
    free_blocks,
    in_child,
    libc,
    listed,
    opened,
    refused,
)

_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4
_AT_FDCWD = -100


def _rename(old: Path, new: Path, flags: int = 0) -> None:
    args = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)
    call(libc.renameat2(*args))


def _as_nobody() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


@check
def directories(place: Path) -> None:
    deep = place.joinpath(*["d"] * 60)
    deep.mkdir(parents=True)
    (deep / "f").write_text("x")
    equal(place.stat().st_nlink, 3)
    (place / "e").mkdir()
    equal(place.stat().st_nlink, 4)
    refused(errno.ENOTEMPTY, lambda: (place / "d").rmdir())
    refused(errno.EEXIST, lambda: (place / "e").mkdir())
    refused(errno.ENOTDIR, lambda: (deep / "f").rmdir())
    refused(errno.EISDIR, lambda: (place / "e").unlink())
    refused(errno.ENOENT, lambda: (place / "nothing").unlink())
    (place / "e").rmdir()
    equal(place.stat().st_nlink, 3)
    equal((deep / "..").stat().st_ino, deep.parent.stat().st_ino)


@check
def names(place: Path) -> None:
    for name in ("a" * 255, "\u00e4\u4f60" * 40, "with space", "new\nline", ".hidden", "-"):
        (place / name).write_text(name)
        equal((place / name).read_text(), name)
        equal(name in listed(place), True, f"{name[:9]!r} is listed")
    refused(errno.ENAMETOOLONG, lambda: (place / ("a" * 256)).touch())
    refused(errno.ENAMETOOLONG, lambda: (place / ("a" * 256)).mkdir())
    refused(errno.ENAMETOOLONG, lambda: (place / ("a" * 256)).stat())
    refused(errno.ENAMETOOLONG, lambda: _rename(place / "-", place / ("a" * 256)))
    equal(len(listed(place)), 6)


@check
def many_names(place: Path) -> None:
    count = 1500
    for i in range(count):
        (place / f"file{i}").touch()
    equal(listed(place), sorted(f"file{i}" for i in range(count)))
    with os.scandir(place) as entries:
        for entry in entries:
            equal(entry.is_file(follow_symlinks=False), True)
            Path(entry.path).unlink()
    equal(listed(place), [], "removed while listed")


def _set_up(place: Path) -> None:
    for name in ("file", "file2"):
        (place / name).write_text(name)
    for name in ("empty", "empty2", "full"):
        (place / name).mkdir()
    (place / "full/child").write_text("child")


@check
def rename_over(place: Path) -> None:
    _set_up(place)
    _rename(place / "file", place / "new")
    _rename(place / "new", place / "file")
    before = (place / "file").stat().st_ino
    _rename(place / "file", place / "file2")
    equal(((place / "file2").read_text(), (place / "file2").stat().st_ino), ("file", before))
    _rename(place / "full", place / "empty")
    equal((place / "empty/child").read_text(), "child")
    _rename(place / "empty/child", place / "file2")
    equal((place / "file2").read_text(), "child")
    _rename(place / "file2", place / "file2")
    _rename(place / "empty2", place / "empty")
    equal(listed(place), ["empty", "file2"])
    equal(place.stat().st_nlink, 3)


@check
def rename_between_directories(place: Path) -> None:
    _set_up(place)
    _rename(place / "full", place / "empty/moved")
    equal((place / "empty/moved/child").read_text(), "child")
    equal((place / "empty/moved/..").stat().st_ino, (place / "empty").stat().st_ino)
    equal(((place / "empty").stat().st_nlink, place.stat().st_nlink), (3, 4))
    os.utime(place / "empty", (1, 1))
    os.utime(place / "empty2", (1, 1))
    _rename(place / "empty/moved", place / "empty2/moved")
    for name in ("empty", "empty2"):
        equal(time.time() - (place / name).stat().st_mtime < 60, True, f"mtime of {name}")


@check
def rename_refusals(place: Path) -> None:
    _set_up(place)
    for old, new, flags, number in (
        ("file", "empty", 0, errno.EISDIR),
        ("empty", "file", 0, errno.ENOTDIR),
        ("empty", "full", 0, errno.ENOTEMPTY),
        ("full", "full/child/x", 0, errno.ENOTDIR),
        ("full", "full/inside", 0, errno.EINVAL),
        ("nothing", "file", 0, errno.ENOENT),
        ("file", "nothing/x", 0, errno.ENOENT),
        ("file", "file2", _NOREPLACE, errno.EEXIST),
        ("file", "file2", _EXCHANGE, errno.EINVAL),
        ("file", "new", _WHITEOUT, errno.EINVAL),
    ):
        refused(number, partial(_rename, place / old, place / new, flags))
    equal((place / "file").read_text() + (place / "file2").read_text(), "filefile2")
    _rename(place / "file", place / "new", _NOREPLACE)
    equal((place / "new").read_text(), "file")
    outside = Path("/mnt/scratch/x")
    refused(errno.EXDEV, lambda: _rename(place / "new", outside))


@check
def symlinks(place: Path) -> None:
    (place / "target").write_text("x")
    for i, target in enumerate(("target", "dangling", "t" * 3711, "/etc/passwd")):
        link = place / f"l{i}"
        link.symlink_to(target)
        equal(str(link.readlink()), target)
        equal((link.lstat().st_size, stat.S_ISLNK(link.lstat().st_mode)), (len(target), True))
    equal((place / "l0").read_text(), "x")
    refused(errno.ENOENT, lambda: (place / "l1").read_text())
    refused(errno.ENAMETOOLONG, lambda: (place / "m").symlink_to("t" * 3712))
    (place / "loop").symlink_to("loop")
    refused(errno.ELOOP, lambda: (place / "loop").read_text())
    _rename(place / "l0", place / "l9")
    equal((place / "l9").read_text(), "x")


@check
def refused_kinds(place: Path) -> None:
    path = place / "f"
    path.touch()
    refused(errno.EPERM, lambda: os.link(path, place / "g"))
    refused(errno.EPERM, lambda: os.mkfifo(place / "g"))
    refused(errno.EPERM, lambda: os.mknod(place / "g", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    refused(errno.EPERM, lambda: os.mknod(place / "g", stat.S_IFBLK | 0o600, os.makedev(1, 3)))
    with socket.socket(socket.AF_UNIX) as unix:
        refused(errno.EPERM, lambda: unix.bind(str(place / "g")))
    refused(errno.EOPNOTSUPP, lambda: os.setxattr(path, "user.a", b"x"))
    refused(errno.EOPNOTSUPP, lambda: os.setxattr(path, "trusted.a", b"x"))
    refused(errno.EOPNOTSUPP, lambda: os.getxattr(path, "user.a"))
    refused(errno.EOPNOTSUPP, lambda: os.open(place, os.O_TMPFILE | os.O_RDWR))
    equal(listed(place), ["f"])


@check
def attributes(place: Path) -> None:
    path = place / "f"
    path.write_text("x")
    path.chmod(0o4751)
    os.chown(path, 1234, 5678)
    got = path.stat()
    equal((got.st_mode & 0o7777, got.st_uid, got.st_gid), (0o751, 1234, 5678), "chown drops suid")
    for ns in (1_234_567_890_123_456_789, -1, 0, -(1 << 62), (1 << 62) + 7):
        os.utime(path, ns=(ns, ns + 1))
        equal((path.stat().st_atime_ns, path.stat().st_mtime_ns), (ns, ns + 1))
    os.utime(path, (2**40, 2**40))
    equal(path.stat().st_mtime_ns // 10**9, 2**63 // 10**9 - 1, "as late as there is")
    (place / "d").mkdir()
    os.chown(place / "d", 0, 77)
    (place / "d").chmod(0o2775)
    (place / "d/sub").mkdir()
    (place / "d/f").touch()
    got = (place / "d/sub").stat()
    equal((got.st_gid, got.st_mode & 0o2000, (place / "d/f").stat().st_gid), (77, 0o2000, 77))


@check
def times_follow_changes(place: Path) -> None:
    os.utime(place, (1, 1))
    (place / "f").touch()
    equal(time.time() - place.stat().st_mtime < 60, True, "mtime of the directory")
    with opened(place / "f") as fd:
        for change in (
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, 5 * MIB),
            lambda: os.ftruncate(fd, 5),
        ):
            os.utime(fd, (1, 1))
            change()
            equal(time.time() - os.fstat(fd).st_mtime < 60, True, "mtime")
            equal(os.fstat(fd).st_atime, 1, "atime")
        os.pread(fd, 1, 0)
        equal(os.fstat(fd).st_atime > 1, True, "atime after a read")


@check
def others_are_kept_out(place: Path) -> None:
    (place / "f").write_text("x")
    (place / "f").chmod(0o600)
    place.chmod(0o755)

    def nobody() -> None:
        _as_nobody()
        refused(errno.EACCES, lambda: (place / "f").read_text())
        refused(errno.EACCES, lambda: (place / "g").touch())
        refused(errno.EPERM, lambda: (place / "f").chmod(0o666))

    equal(in_child(nobody), 0)


@check
def writing_drops_suid(place: Path) -> None:
    path = place / "f"
    path.write_text("x")
    path.chmod(0o6777)
    place.chmod(0o755)

    def nobody() -> None:
        _as_nobody()
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"y")

    equal(in_child(nobody), 0)
    equal(path.stat().st_mode & 0o7000, 0)


@check
def unlinked_but_open(place: Path) -> None:
    before = free_blocks()
    path = place / "f"
    with opened(path) as fd:
        os.write(fd, b"x" * 3 * MIB)
        path.unlink()
        path.write_text("another")
        path.unlink()
        equal(os.fstat(fd).st_nlink, 0)
        os.pwrite(fd, b"more", 5 * MIB)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 5 * MIB + 2)
        equal(os.pread(fd, 10, 5 * MIB - 1), b"\0mo")
        equal(free_blocks() <= before - 3, True, "still takes space")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(again)
    equal(free_blocks(), before, "free blocks after the last close")
    with opened(place / "victim") as fd:
        os.write(fd, b"v" * BLOCK)
        (place / "winner").write_text("w")
        _rename(place / "winner", place / "victim")
        equal((os.pread(fd, 1, 5), (place / "victim").read_text()), (b"v", "w"))


@check
def removed_directory_takes_no_more(place: Path) -> None:
    (place / "d").mkdir()
    with opened(place / "d", os.O_RDONLY) as fd:
        (place / "d").rmdir()
        refused(errno.ENOENT, lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        refused(errno.ENOENT, lambda: os.mkdir("x", dir_fd=fd))
        with os.scandir(fd) as entries:
            equal(list(entries), [])
        equal(os.fstat(fd).st_nlink, 0)


@check
def the_kernels_name_is_not_for_others(place: Path) -> None:
    """What is in a directory of that name could not be opened any more."""
    (place / "d").mkdir()
    (place / "d/f").write_text("x")
    name = MOUNT / "iommu"
    refused(errno.EPERM, lambda: _rename(place / "d", name))
    refused(errno.EPERM, lambda: _rename(place / "d/f", name))
    equal((place / "d/f").read_text(), "x")
    refused(errno.EPERM, name.mkdir)
    refused(errno.EPERM, name.touch)
    refused(errno.EPERM, lambda: name.symlink_to("d"))
    equal("iommu" in listed(MOUNT), False)
    _rename(place / "d", place / "iommu")
    equal((place / "iommu/f").read_text(), "x", "further down it is a name like others")


@check
def attributes_stay_beside_faults(place: Path) -> None:
    """A fault that fills a hole takes the inode over from the store."""
    with opened(place / "f") as fd:
        os.ftruncate(fd, 512 * MIB)

        with mmap.mmap(fd, 512 * MIB) as memory:

            def touch() -> None:
                for at in range(0, 512 * MIB, BLOCK):
                    memory[at] = 1

            wait = fork(touch)
            for turn in range(2000):
                mode = 0o600 + turn % 64
                os.fchmod(fd, mode)
                os.utime(fd, ns=(turn, turn + 1))
                equal(os.fstat(fd).st_mode & 0o777, mode, f"mode, turn {turn}")
                equal(os.fstat(fd).st_atime_ns, turn, f"atime, turn {turn}")
            equal(wait(), 0)
