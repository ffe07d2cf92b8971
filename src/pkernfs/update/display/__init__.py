# SPDX-License-Identifier: GPL-2.0-only
"""Showing an update while it happens, without ever holding it up.

Guests may be paused while something is shown, and a terminal may stand still (Ctrl-S, a slow
line), as may the reader of a pipe. So a process of its own shows what happens. The update writes
to a pipe that never blocks; what does not fit waits in memory. That process is made by fork,
closes all files and locks that it inherits, has a low priority, and imports by itself what it
needs for drawing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from pkernfs.update.display.events import Event, Teller, parse_line

#: How often a display may draw anew (seconds).
TICK_S = 0.2

#: A display: gets every event, and None when :data:`TICK_S` have passed without one.
Show = Callable[[Iterator[Event | None]], None]

_END_WAIT_S = 10.0


class Feed:
    """The end of the pipe that the update writes to."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._waiting = b""
        os.set_blocking(fd, False)

    def send(self, event: Event) -> None:
        """Pass an event on. Neither blocks nor raises."""
        self._waiting += event.to_line()
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting and self._fd is not None:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:  # the display is gone: so be it
            self._shut()

    def _shut(self) -> None:
        self._waiting = b""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Pass on what waits, for some seconds at most, and end the display."""
        while self._waiting and self._fd is not None:
            if not select.select([], [self._fd], [], _END_WAIT_S)[1]:
                break
            self._write()
        self._shut()


def read_events(fd: int, tick_s: float = TICK_S) -> Iterator[Event | None]:
    """The events from a pipe until it ends; None whenever none came for ``tick_s`` seconds."""
    rest = b""
    while True:
        if not select.select([fd], [], [], tick_s)[0]:
            yield None
            continue
        chunk = os.read(fd, 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(parse_line, lines)


def _be_humble(keep: int) -> None:
    """Leave signals to the update, which ends this one by its pipe; give way; hold nothing.

    :param keep: the only file that stays open, but for the standard ones.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    # Not SCHED_IDLE: on a host whose guests are busy, the last word would come much later.
    os.nice(10)


def _display(fd: int, show: Show) -> NoReturn:
    status = 1
    try:
        _be_humble(fd)
        show(read_events(fd))
        sys.stdout.flush()
        status = 0
    except OSError:  # nobody looks any more
        pass
    except BaseException as error:
        os.write(2, f"pkernfs: nothing can be shown: {error!r}\n".encode())
    finally:
        os._exit(status)


@contextlib.contextmanager
def shown(show: Show) -> Iterator[Teller]:
    """Have what happens in the block shown by a process of its own.

    The block ends when all of it has been shown, so it must not end while guests are paused.

    :param show: runs in that process.
    """
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started this program
            stream.flush()
    child = os.fork()
    if child == 0:
        os.close(writing)
        _display(reading, show)
    os.close(reading)
    feed = Feed(writing)
    try:
        yield Teller(feed.send)
    finally:
        feed.close()
        os.waitpid(child, 0)
