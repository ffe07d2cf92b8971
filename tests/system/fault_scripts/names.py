# SPDX-License-Identifier: GPL-2.0-only
"""Names: created, looked up, moved, removed."""

from __future__ import annotations

import os

from ..fs_scripts.common import equal, listed
from .base import DATA, HOME, as_before, forget_names, operation, scattered, twice
from .inject import Outcome, sweep


@operation
def create() -> Outcome:
    path = HOME / "new"
    return as_before(lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL)), path.unlink)


@operation
def many_names() -> Outcome:
    """So many that the directory's index has to grow."""
    folder = HOME / "many"
    folder.mkdir()
    names = [folder / f"{number:03}" for number in range(40)]

    def act() -> None:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL))

    def undo(succeeded: bool) -> None:
        have = listed(folder)
        equal(have, [name.name for name in names][: len(have)], "what was created")
        equal(succeeded <= (len(have) == len(names)), True, "all of it on success")
        for name in have:
            (folder / name).unlink()

    outcome = sweep(forget_names, act, undo)
    folder.rmdir()
    return outcome


@operation
def make_directory() -> Outcome:
    path = HOME / "new"
    return as_before(path.mkdir, path.rmdir)


@operation
def symlink() -> Outcome:
    path = HOME / "new"
    return as_before(lambda: path.symlink_to("x" * 3000), path.unlink)


@operation
def read_symlink() -> Outcome:
    path = HOME / "link"
    path.symlink_to("y" * 3000)
    try:
        return as_before(lambda: str(path.readlink()))
    finally:
        path.unlink()


@operation
def look_up() -> Outcome:
    return as_before((HOME / "kept").stat)


@operation
def list_directory() -> Outcome:
    return as_before(lambda: listed(HOME))


@operation
def rename() -> Outcome:
    before, after = HOME / "kept", HOME / "folder/moved"
    return as_before(lambda: before.rename(after), lambda: after.rename(before))


@operation
def replace() -> Outcome:
    """Over a file that is there."""
    source, target = HOME / "new", HOME / "old"

    def prepare() -> None:
        source.write_bytes(DATA)
        target.write_bytes(b"old")

    def undo(succeeded: bool) -> None:
        equal(target.read_bytes(), DATA if succeeded else b"old", "content")
        target.unlink()
        source.unlink(missing_ok=succeeded)

    return twice(prepare, lambda: source.rename(target), undo)


@operation
def remove() -> Outcome:
    path = HOME / "new"

    def undo(succeeded: bool) -> None:
        equal(path.exists(), not succeeded, "the file is there")
        path.unlink(missing_ok=True)

    return twice(lambda: scattered(path), path.unlink, undo)


@operation
def remove_directory() -> Outcome:
    path = HOME / "new"

    def undo(succeeded: bool) -> None:
        equal(path.exists(), not succeeded, "the directory is there")
        if path.exists():
            path.rmdir()

    return twice(path.mkdir, path.rmdir, undo)
