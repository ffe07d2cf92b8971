# SPDX-License-Identifier: GPL-2.0-only
"""A process that stands by an update and brings everything back when the update dies.

An update that fails goes back by itself. One that is killed can't: its guests would stay
paused, disks frozen, the next kernel loaded. So before anything is touched it leaves a
second process behind, which knows of its end by a pipe that only the update holds open.
That process also ends an update that hangs while guests are paused, and tries again what
could not be undone at first: a QEMU that stands still now may answer in a minute.

The guard shares the update's lock (flock(2): a lock belongs to the open file, and fork
copies that), so nobody can start another update before everything is back. It dies with
the kernel when the update succeeds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.update import recover
from pkernfs.update.lock import announce
from pkernfs.vmm.config import Places

#: How long guests may be paused before the jump until the update is taken for hung
#: (seconds). Well above all its own time limits, which let it go back by itself.
PAUSED_S = 240.0

#: For how long what can't be undone is tried again, until it is left to ``pkernfs update
#: --recover`` (seconds).
AGAIN_S = 600.0

#: Between two tries, at first and at most (seconds).
_PAUSE_S = (2.0, 30.0)

# What the update tells its guard.
_PAUSING = b"p"
_JUMPING = b"j"
_DONE = b"d"
_OVER_TO_YOU = b"o"


class Guard:
    """The update's end of the line to its guard.

    :ivar pid: the guard's process.
    """

    def __init__(self, pid: int, line: int) -> None:
        self.pid = pid
        self._line = line

    def pausing(self) -> None:
        """Guests are about to be paused.

        :raises PkernfsError: the guard is gone, so nobody would let them run on.
        """
        self._tell(_PAUSING)

    def jumping(self) -> None:
        """From here on only the kernel decides: the guard must not act on a time limit.

        :raises PkernfsError: the guard is gone.
        """
        self._tell(_JUMPING)

    def takes_over(self) -> bool:
        """What the update could not undo is tried again by the guard, when this process ends.

        :returns: False: the guard is gone.
        """
        try:
            os.write(self._line, _OVER_TO_YOU)
        except OSError:
            return False
        os.close(self._line)
        self._line = -1
        return True

    def _tell(self, what: bytes) -> None:
        try:
            os.write(self._line, what)
        except OSError as error:
            raise PkernfsError(
                f"process {self.pid}, which would let the guests run on if this one were "
                "killed, has ended",
                "try again",
            ) from error

    def end(self) -> None:
        """The update came back by itself: there is nothing to do for the guard."""
        if self._line < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._line, _DONE)
        os.close(self._line)
        self._line = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def guarded(machine: Machine, places: Places) -> Iterator[Guard]:
    """Have a guard within the block; the caller holds the update's lock."""
    theirs, ours = os.pipe()
    updater = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            status = _stand_by(machine, places, theirs, updater)
        finally:
            os._exit(status)
    os.close(theirs)
    guard = Guard(pid, ours)
    try:
        yield guard
    finally:
        guard.end()


def _settle(line: int) -> None:
    """Be nobody's child: no terminal, no signal and no shortage of memory ends this one.

    :param line: the only pipe that stays open, but for the standard ones: what reads from the
        others, the display for one, waits for the last writer to close.
    """
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        with contextlib.suppress(OSError):  # the directory's own
            if fd > 2 and fd != line and stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.close(fd)
    with contextlib.suppress(OSError):
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")


def _stand_by(machine: Machine, places: Places, line: int, updater: int) -> int:
    """The guard's life. Returns its exit status."""
    _settle(line)
    deadline: float | None = None
    jumping = False
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([line], [], [], wait)[0]:
            # Once it is killed it does not come to the jump any more, even while some
            # system call does not return.
            with contextlib.suppress(ProcessLookupError):
                os.kill(updater, signal.SIGKILL)
            if _told(line) != _JUMPING:
                return _bring_back(machine, places, f"it hung, {PAUSED_S:.0f} s with guests paused")
            deadline, jumping = None, True
            continue
        said = os.read(line, 1)
        if said == _DONE:
            return 0
        if said == b"":
            return _bring_back(machine, places, "it was killed")
        if said == _OVER_TO_YOU:
            _let_go_of_pipes()
            return _try_again(machine, places, "it was given up")
        if said == _PAUSING and not jumping:
            deadline = time.monotonic() + PAUSED_S
        if said == _JUMPING:
            deadline, jumping = None, True


def _told(line: int) -> bytes:
    """What was said and not heard yet."""
    return os.read(line, 1) if select.select([line], [], [], 0)[0] else b""


def _bring_back(machine: Machine, places: Places, why: str) -> int:
    announce(places, "recovery")
    result = recover.undo(machine, places, why)
    _say(machine, result)
    if result is not None and result.unfinished:
        return _try_again(machine, places, why)
    return 1 if result is not None and result.failed else 0


def _try_again(machine: Machine, places: Places, why: str) -> int:
    """Undo what can't be undone as soon as it can be."""
    announce(places, "recovery")
    deadline = time.monotonic() + AGAIN_S
    pause, longest = _PAUSE_S
    while True:
        time.sleep(pause)
        result = recover.undo(machine, places, why)
        if result is None or not result.unfinished or time.monotonic() > deadline:
            _say(machine, result)
            return 1 if result is not None and result.failed else 0
        pause = min(2 * pause, longest)


def _let_go_of_pipes() -> None:
    """Whoever reads the update's output shall not wait for this process too."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        if not os.isatty(standard):
            os.dup2(null, standard)
    os.close(null)


def _say(machine: Machine, result: recover.Recovered | None) -> None:
    if result is None:
        return
    line = f"pkernfs: {result.summary()}\n".encode()
    # Not by sys.stderr: its lock may have been taken when this process was forked.
    with contextlib.suppress(OSError):
        os.write(2, line)
    with contextlib.suppress(OSError):
        machine.log(line)
