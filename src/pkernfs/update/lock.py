# SPDX-License-Identifier: GPL-2.0-only
"""One update at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from pkernfs.errors import PkernfsError
from pkernfs.vmm.config import Places

_NAME = "update.lock"


@contextlib.contextmanager
def update_lock(places: Places, what: str = "update", held: int | None = None) -> Iterator[None]:
    """Keep other updates and resumes out of the block; ends with this process at the latest.

    :param what: what the holder does, one word, for the message that others get.
    :param held: the lock file's descriptor, if this process has the lock already.
    :raises PkernfsError: another one is going on.
    """
    places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = held if held is not None else os.open(places.run / _NAME, flags, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid, other = _read(fd)
            raise PkernfsError(
                f"another {other} is going on" + (f": process {pid}" if pid else ""),
                "wait for it; pkernfs vm list shows what the guests do",
            ) from error
        _write(fd, what)
        yield
    finally:
        os.close(fd)


def _write(fd: int, what: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()} {what}\n".encode(), 0)


def announce(places: Places, what: str) -> None:
    """Say what the holder of the lock does now: a process that has it from its parent."""
    fd = os.open(places.run / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _write(fd, what)
    finally:
        os.close(fd)


def _read(fd: int) -> tuple[int | None, str]:
    pid, _, what = os.pread(fd, 100, 0).decode("utf-8", "replace").strip().partition(" ")
    return (int(pid) if pid.isdigit() else None), what or "update or resume"


def holder(places: Places) -> tuple[int | None, str] | None:
    """Who updates or resumes at the moment: process and what it does; None when nobody does."""
    try:
        fd = os.open(places.run / _NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(fd)
    finally:
        os.close(fd)
    return None
