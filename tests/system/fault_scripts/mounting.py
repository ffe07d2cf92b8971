# SPDX-License-Identifier: GPL-2.0-only
"""The store as a whole: mounted, unmounted, made, looked at from outside."""

from __future__ import annotations

import os

from ..fs_scripts.common import (
    MOUNT,
    SYSFS,
    call,
    equal,
    libc,
    listed,
    load,
    mount,
    mount_at,
    opened,
    unload,
)
from .base import SMALL, as_before, new_store, operation, tree, wipe
from .inject import Outcome, arrange, sweep


@operation
def read_metadata() -> Outcome:
    (region,) = listed(SYSFS)

    def act() -> None:
        with opened(SYSFS / region / "metadata", os.O_RDONLY) as fd:
            os.pread(fd, 4096, 0)

    return as_before(act)


def umount() -> None:
    call(libc.umount2(os.fsencode(MOUNT), 0))


@operation
def mount_again() -> Outcome:
    """The store that is there; and reading it anew finds what was in it."""
    before = tree()
    umount()

    def undo(succeeded: bool) -> None:
        if not succeeded:
            mount()
        equal(tree(), before, "the store afterwards")
        umount()

    outcome = sweep(lambda: None, lambda: mount_at("none", MOUNT), undo)
    mount()
    return outcome


@operation
def unmount() -> Outcome:
    def undo(succeeded: bool) -> None:
        if succeeded:
            mount()

    before = tree()
    outcome = sweep(lambda: tree(), umount, undo)
    equal(tree(), before, "the store afterwards")
    return outcome


@operation
def mount_unmounted_metadata() -> Outcome:
    """The metadata of a store that is not mounted."""
    umount()
    (region,) = listed(SYSFS)

    def act() -> None:
        with opened(SYSFS / region / "metadata", os.O_RDONLY) as fd:
            os.pread(fd, 8192, 0)

    try:
        return sweep(lambda: None, act, lambda succeeded: None)
    finally:
        mount()


@operation
def make_store() -> Outcome:
    """In place of the one that is there. What failed half-way can be made again."""

    def prepare() -> None:
        unload()
        wipe()
        load(SMALL)
        arrange("pkernfs")

    def undo(succeeded: bool) -> None:
        if not succeeded:
            mount("init")
        equal(listed(MOUNT), [], "a new store")
        umount()

    outcome = sweep(prepare, lambda: mount_at("none", MOUNT, 0, "init"), undo)
    new_store()
    return outcome
