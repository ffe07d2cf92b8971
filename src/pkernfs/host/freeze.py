# SPDX-License-Identifier: GPL-2.0-only
"""Having every filesystem on a disk written out and at rest, for as long as a disk allows.

A call that freezes or thaws may never return, whatever is wrong with the disk, and a process
in it can't be killed. So each is made in a process of its own (a thread that hangs would keep
its whole process from ending), and nobody waits for it longer than a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pkernfs.errors import PartlyError, PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.host.mounts import Mount, in_layers

# include/uapi/linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int)
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878

#: How long freezing all of them may take until the update is given up (seconds).
FREEZE_S = 30.0

#: How long a network filesystem may take to be opened, which is nothing unless its server
#: does not answer: then it has nothing to be written, or the sync before had not ended.
OPEN_S = 1.0

#: How long paused guests wait for filesystems to be thawed (seconds).
THAW_S = 2.0

# What a child says: opened, synced only, frozen, thawed, can't be reached.
_OPEN, _SYNCED, _FROZEN, _THAWED, _FAILED = b"o", b"s", b"f", b"t", b"x"
# What is found out without its word.
_SILENT, _ENDED = b"", b"-"

#: Is told of a filesystem: None before it is frozen, then whether it is.
NoteFreeze = Callable[[Path, bool | None], None]


class StillFrozenError(PartlyError):
    """The update was given up, and a filesystem may have stayed frozen."""


def _open(point: Path) -> int:
    return os.open(point, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _sync(fd: int) -> None:
    """Write out the filesystem of an open file. What fails is known to who wrote it."""
    ctypes.CDLL(None).syncfs(fd)


class _Child:
    """A process that makes calls which may hang.

    :ivar point: the filesystem's mount point.
    :ivar freezes: may it have frozen it?
    :ivar state: the last that it said.
    """

    def __init__(
        self, point: Path, life: Callable[[int, int], None], *, freezes: bool = True
    ) -> None:
        """Start it.

        :param life: gets the end of a pipe from which it is told to go back, which is done by
            closing it, and the one where it says how far it is.
        """
        self.point = point
        self.freezes = freezes
        self.state = _SILENT
        theirs, self._line = os.pipe()
        self._said, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # The update's lock, its line to its guard, the terminal: all of them would be
                # held for as long as this one hangs.
                low, high = sorted((theirs, says))
                os.closerange(0, low)
                os.closerange(low + 1, high)
                os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
                os.setsid()
                life(theirs, says)
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(says)

    def go_back(self) -> None:
        """Tell it to thaw what it froze, also when it gets to that later."""
        if self._line >= 0:
            os.close(self._line)
            self._line = -1

    def wait(self, deadline: float, *states: bytes) -> bool:
        """Has it said one of these by the deadline, or ended?"""
        poll = select.poll()
        poll.register(self._said, select.POLLIN)
        while self.state not in (*states, _ENDED):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            self.state = os.read(self._said, 1) or _ENDED
        return True

    def forget(self) -> None:
        """Have no more to do with it; it may go on hanging."""
        self.go_back()
        with contextlib.suppress(ChildProcessError):
            # One that has said its last word is about to end.
            os.waitpid(self.pid, 0 if self.state in (_THAWED, _FAILED, _ENDED) else os.WNOHANG)
        os.close(self._said)


def _keep_frozen(mount: Mount) -> Callable[[int, int], None]:
    """Freezes a filesystem, and thaws it when it is told to or its parent is dead."""

    def life(line: int, says: int) -> None:
        try:
            fd = _open(mount.point)
        except OSError:
            os.write(says, _FAILED)
            return
        # With nobody there to hear it a write would end this one.
        _tell(says, _OPEN)
        try:
            if not mount.on_disk:
                raise OSError(errno.EOPNOTSUPP, "")
            fcntl.ioctl(fd, _FIFREEZE, 0)
        except OSError as error:
            # EBUSY: somebody else has frozen it; it is left to him, and to sync may hang.
            if error.errno != errno.EBUSY:
                _sync(fd)
            _tell(says, _SYNCED)
            return
        _tell(says, _FROZEN)
        os.read(line, 1)
        fcntl.ioctl(fd, _FITHAW, 0)
        _tell(says, _THAWED)

    return life


def _tell(says: int, what: bytes) -> None:
    with contextlib.suppress(OSError):  # Python ignores SIGPIPE
        os.write(says, what)


def _thaw(point: Path) -> Callable[[int, int], None]:
    def life(_: int, says: int) -> None:
        try:
            fcntl.ioctl(_open(point), _FITHAW, 0)
        except OSError as error:
            # EINVAL: it was not frozen (thaw_super_locked() in fs/super.c).
            if error.errno != errno.EINVAL:
                _tell(says, _FAILED)
                return
        _tell(says, _THAWED)

    return life


def _late(layer: Sequence[Mount], children: Sequence[_Child], deadline: float) -> Path | None:
    """Wait until a layer is at rest; one that is not in time."""
    opened = min(deadline, time.monotonic() + OPEN_S)
    for mount, child in zip(layer, children, strict=True):
        final = (_FROZEN, _SYNCED, _FAILED)
        if not mount.on_disk and not child.wait(opened, _OPEN, *final):
            continue
        if not child.wait(deadline, *final) or child.state == _ENDED:
            return mount.point
    return None


@contextlib.contextmanager
def frozen_filesystems(
    machine: Machine, note: NoteFreeze = lambda point, frozen: None
) -> Iterator[None]:
    """Have every filesystem on a disk written out and at rest within the block.

    Like a clean unmount for the next kernel (no journal to replay), but it can be
    undone when the jump fails. Nobody, this program included, may write to a disk
    within the block. A filesystem that can't be frozen is synced only, one that somebody
    else has frozen is left to him. Each is frozen before what it rests on, and thawed after.

    :param note: keeps what :func:`thaw` has to undo if this process is killed.
    :raises PkernfsError: one was not at rest in time. All are as before.
    :raises StillFrozenError: after the block, or instead of it, one did not thaw in time.
    """
    deadline = time.monotonic() + FREEZE_S
    done: list[list[_Child]] = []
    try:
        for layer in in_layers(machine):
            for mount in layer:
                if mount.on_disk:
                    note(mount.point, None)
            done.append([])
            for mount in layer:
                done[-1].append(_Child(mount.point, _keep_frozen(mount), freezes=mount.on_disk))
            late = _late(layer, done[-1], deadline)
            if late is not None:
                raise PkernfsError(
                    f"the filesystem at {late} was not at rest after {FREEZE_S:.0f} s",
                    "the kernel log may say what its disk does; fsfreeze tries it alone",
                )
            for mount, child in zip(layer, done[-1], strict=True):
                if mount.on_disk:
                    note(mount.point, child.state == _FROZEN)
        yield
    except BaseException as error:
        stuck = _go_back(done)
        if stuck:
            where = ", ".join(map(str, stuck))
            what = f"{error}; {where} may still be frozen"
            raise StillFrozenError(what, "pkernfs update --recover tries again") from error
        raise
    stuck = _go_back(done)
    if stuck:
        raise StillFrozenError(f"{', '.join(map(str, stuck))} may still be frozen")


def _go_back(layers: Sequence[Sequence[_Child]]) -> list[Path]:
    """Thaw in the opposite order; those that may still be frozen."""
    deadline = time.monotonic() + THAW_S
    # One that hangs goes back by itself, when it can.
    for layer in reversed(layers):
        for child in layer:
            child.go_back()
        # If one hangs those below in the list may be what it waits for.
        share = time.monotonic() + max(0.0, deadline - time.monotonic()) / 2
        for child in layer:
            if child.state == _FROZEN:
                child.wait(share, _THAWED)
    stuck, dead = [], []
    for child in (child for layer in layers for child in layer):
        if not child.freezes:
            child.forget()
            continue
        # What had hung may have come to its end when others were thawed.
        if child.state in (_SILENT, _OPEN):
            child.wait(deadline, _FROZEN, _SYNCED, _FAILED)
        if child.state == _FROZEN:
            child.wait(deadline, _THAWED)
        if child.state == _ENDED:
            dead.append(child.point)
        elif child.state not in (_THAWED, _SYNCED, _FAILED):
            stuck.append(child.point)
        child.forget()
    return stuck + (thaw(dead) if dead else [])


def thaw(points: Sequence[Path], limit: float | None = None) -> list[Path]:
    """Let filesystems be written again that a process froze which is dead.

    :param points: their mount points, in the order in which they were frozen.
    :param limit: seconds to wait for all of them; :data:`THAW_S` unless given.
    :returns: those that can't be reached, or are not thawed in time. One that is not frozen
        is fine.
    """
    deadline = time.monotonic() + (THAW_S if limit is None else limit)
    children = []
    for point in reversed(points):
        child = _Child(point, _thaw(point))
        children.append(child)
        # If it hangs the others may be what it waits for.
        share = time.monotonic() + max(0.0, deadline - time.monotonic()) / 2
        child.wait(share, _THAWED, _FAILED)
    failed = []
    for child in children:
        child.wait(deadline, _THAWED, _FAILED)
        if child.state != _THAWED:
            failed.append(child.point)
        child.forget()
    return failed
