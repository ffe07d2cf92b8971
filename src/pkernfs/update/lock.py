# SPDX-License-Identifier: GPL-2.0-only
"""The host's lock: one update at a time, and nobody starts or stops guests meanwhile.

Who replaces the kernel, or brings guests back after that, holds it alone: update, resume,
recovery, the watchdog. Who starts, adopts or stops a guest shares it with others of that kind.
Who only looks holds it never, but for the moment in which he asks whether somebody does.
"""

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

#: What ends before long, and leaves its kernel in place.
_PASSING = _SHORT | {"resume", "recovery"}

#: Beside these a guest may be switched off by force: it may be the one that they wait for.
BRINGING_BACK = frozenset({"resume", "recovery"})

#: For how long somebody waits for that, and an update or a resume for those who start or stop
#: guests (seconds).
WAIT_S = 60.0

_POLL_S = 0.02


@contextlib.contextmanager
def update_lock(
    places: Places,
    what: str = "update",
    held: int | None = None,
    waits: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Keep everybody else out of the block; ends with this process at the latest.

    :param what: what the holder does, one word, for the message that others get.
    :param held: the lock file's descriptor, if this process has the lock already.
    :param waits: wait for a holder that is soon done, such as a dry run; is told that, once,
        and what else is waited for.
    :raises PkernfsError: another one is going on, or guests are being started or stopped.
    """
    fd = held if held is not None else _open(places)
    try:
        _take(fd, waits)
        _write(fd, what)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def changing_guests(
    places: Places,
    what: str,
    waits: Callable[[str], None] = lambda _: None,
    *,
    beside: frozenset[str] = frozenset(),
    patient: bool = False,
) -> Iterator[None]:
    """Keep updates, resumes and recoveries out of the block, which changes who runs.

    :param what: the verb and the guest, for the message that others get.
    :param waits: is told, once, for whom this waits.
    :param beside: holders that the block may work beside of.
    :param patient: wait for an update as well: it may be given up.
    :raises PkernfsError: an update is going on; or something else, for too long.
    """
    fd = _open(places)
    try:
        if _share(fd, places, what, waits, beside, patient=patient):
            _write(fd, what)
        yield
    finally:
        os.close(fd)


def _open(places: Places) -> int:
    places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(places.run / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class _Patience:
    """Waits, as long as each kind of holder is worth, and says so once."""

    def __init__(self, waits: Callable[[str], None]) -> None:
        self._waits = waits
        self._began = self._since = time.monotonic()
        self._limit = 0.0
        self._told = False

    def allows(self, limit: float, who: str = "", after: float = 0.0) -> bool:
        """Wait a little, unless that has been long enough.

        :param limit: seconds in all.
        :param who: for whom; empty: not worth a word.
        :param after: seconds from which on it is.
        """
        if limit != self._limit:
            # A moment begins with the holder that it is granted to.
            self._limit = limit
            self._since = self._began if limit == WAIT_S else time.monotonic()
        age = time.monotonic() - self._since
        if age >= limit:
            return False
        if who and age >= after and not self._told:
            self._waits(f"{who}; waiting for it for up to {limit:.0f} s")
            self._told = True
        time.sleep(_POLL_S)
        return True


def _take(fd: int, waits: Callable[[str], None] | None) -> None:
    patience = _Patience(waits or (lambda _: None))
    while not _try(fd, fcntl.LOCK_EX):
        pid, other = _read(fd)
        if only_read(fd):
            # Those who look whether there is a holder are gone in a moment. Those who start or
            # stop a guest take longer.
            who = _changes(pid, other)
            if not patience.allows(WAIT_S, who, after=READ_S):
                raise PkernfsError(who, _SEE)
        elif not _lives(pid):
            # A holder that has not said its name yet; what is written is of one that has ended.
            if not patience.allows(READ_S):
                raise _refusal(pid, other)
        else:
            soon = waits is not None and other in _SHORT
            if not (soon and patience.allows(WAIT_S, _named(pid, other))):
                raise _refusal(pid, other)


def _share(
    fd: int,
    places: Places,
    what: str,
    waits: Callable[[str], None],
    beside: frozenset[str],
    *,
    patient: bool,
) -> bool:
    """Take the lock together with others; False: somebody has it beside whom one may work."""
    patience = _Patience(waits)
    while not _try(fd, fcntl.LOCK_SH):
        pid, other = _read(fd)
        if not _lives(pid):
            limit = READ_S
        elif other in beside:
            return False
        else:
            limit = WAIT_S if patient or other in _PASSING else 0.0
        who = _named(pid, other, _update_of(places), another=False)
        if not patience.allows(limit, who if limit == WAIT_S else ""):
            hint = _LATER if other == "update" else _SEE
            raise PkernfsError(f"{what} has to wait: {who}", hint)
    return True


_SEE = "wait for it; pkernfs vm list shows what the guests do"
_LATER = (
    "try again when it is over: a guest that begins, or ends, now would be lost with this kernel,"
    " or stop the update"
)


def _update_of(places: Places) -> str:
    from pkernfs.update import journal  # resume has no use for it before its guests run

    begun = journal.read(places)
    return begun.update if begun is not None else ""


def _changes(pid: int | None, what: str) -> str:
    """Who shares the lock. Only the last one of them has left its name."""
    if _lives(pid) and what.startswith("vm "):
        return f"pkernfs {what} is going on: process {pid}"
    return "guests are being started or stopped"


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


def _named(pid: int | None, what: str, update: str = "", *, another: bool = True) -> str:
    name = f"{what} {update}" if update and what == "update" else what
    article = "another " if another else ""
    return f"{article}{name} is going on" + (f": process {pid}" if pid else "")


def _refusal(pid: int | None, what: str) -> PkernfsError:
    return PkernfsError(_named(pid, what), _SEE)


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
