# SPDX-License-Identifier: GPL-2.0-only
"""One update at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.update.early import READ_S, only_read
from pkernfs.vmm.config import Places

_NAME = "update.lock"


#: What is over soon by itself. Only versions before this one hold the lock for doctor.
_SHORT = frozenset({"dry run", "doctor"})

#: For how long a resume waits for that (seconds).
WAIT_S = 60.0

_POLL_S = 0.02


@contextlib.contextmanager
def update_lock(
    places: Places,
    what: str = "update",
    held: int | None = None,
    waits: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Keep other updates and resumes out of the block; ends with this process at the latest.

    :param what: what the holder does, one word, for the message that others get.
    :param held: the lock file's descriptor, if this process has the lock already.
    :param waits: wait for a holder that is soon done, such as a dry run; is told that, once.
    :raises PkernfsError: another one is going on.
    """
    places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = held if held is not None else os.open(places.run / _NAME, flags, 0o600)
    try:
        _take(fd, waits)
        _write(fd, what)
        yield
    finally:
        os.close(fd)


def _take(fd: int, waits: Callable[[str], None] | None) -> None:
    until = time.monotonic() + WAIT_S
    told = False
    moment: float | None = None
    while not _try(fd, fcntl.LOCK_EX):
        pid, other = _read(fd)
        now = time.monotonic()
        # Those who look whether there is a holder, and a holder that has not said its name yet
        # (what is written is of one that has ended), are gone in a moment.
        if only_read(fd) or not _lives(pid):
            moment = now if moment is None else moment
            limit = moment + READ_S
        elif waits is not None and other in _SHORT:
            moment, limit = None, until
            if not told:
                waits(f"{_named(pid, other)}; waiting for it for up to {WAIT_S:.0f} s")
                told = True
        else:
            limit = now
        if now >= limit:
            raise _refusal(pid, other)
        time.sleep(_POLL_S)


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


def _named(pid: int | None, what: str) -> str:
    return f"another {what} is going on" + (f": process {pid}" if pid else "")


def _refusal(pid: int | None, what: str) -> PkernfsError:
    return PkernfsError(_named(pid, what), "wait for it; pkernfs vm list shows what the guests do")


def check_free(places: Places) -> None:
    """For those who only look: nobody is kept out by this.

    :raises PkernfsError: somebody updates or resumes.
    """
    found = holder(places)
    if found is not None:
        raise _refusal(*found)


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
    """Who updates or resumes at the moment: process and what it does; None when nobody does.

    Those who take the lock wait for this to return, so it is no reason for them to fail.
    """
    try:
        fd = os.open(places.run / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if only_read(fd) else _read(fd)
    finally:
        os.close(fd)
