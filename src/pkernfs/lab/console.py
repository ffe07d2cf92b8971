# SPDX-License-Identifier: GPL-2.0-only
"""Serial lines of a virtual host: each line with the time at which the lab saw it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pkernfs.errors import PkernfsError
from pkernfs.lab.patience import patient


@dataclass(frozen=True)
class Line:
    """A line of a serial console.

    :ivar at: when its end arrived, seconds of the lab's CLOCK_MONOTONIC.
    """

    at: float
    text: str


class Console:
    """Reads one serial line in a thread, keeps every line, writes them to a file."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._connection = connection
        self._log = log
        self._lines: list[Line] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._read, name=f"console {log.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines so far."""
        with self._changed:
            return tuple(self._lines)

    def since(self, index: int) -> tuple[Line, ...]:
        """Lines from number ``index`` (0 is the first one) on."""
        with self._changed:
            return tuple(self._lines[index:])

    def send(self, text: str) -> None:
        """Type ``text`` at the other end."""
        self._connection.sendall(text.encode())

    def wait_for(
        self,
        wanted: Callable[[Line], bool] | str,
        timeout: float,
        *,
        start: int = 0,
        alive: Callable[[], None] = lambda: None,
    ) -> Line:
        """The first line from number ``start`` on that is wanted.

        :param wanted: a predicate, or a regular expression to search for.
        :param timeout: seconds.
        :param alive: called now and then; raises when waiting is in vain.
        :raises PkernfsError: it did not come in time.
        """
        test = wanted if callable(wanted) else _matcher(wanted)
        limit = patient(timeout)
        deadline = time.monotonic() + limit
        index = start
        while True:
            with self._changed:
                if index == len(self._lines) and not self._closed:
                    self._changed.wait(timeout=0.5)
                fresh = self._lines[index:]
                closed = self._closed
            for line in fresh:
                if test(line):
                    return line
            index += len(fresh)
            alive()
            if (closed and not fresh) or time.monotonic() > deadline:
                sought = "such line" if callable(wanted) else f"line like {wanted!r}"
                raise PkernfsError(
                    f"{self._log.name}: no {sought} within {limit:.0f} s",
                    f"the log is {self._log}",
                )

    def close(self) -> None:
        """Hang up; the lines stay."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)
        self._connection.close()

    def _read(self) -> None:
        pending = b""
        with self._log.open("w", buffering=1) as log:
            while True:
                try:
                    chunk = self._connection.recv(65536)
                except OSError:
                    chunk = b""
                at = time.monotonic()
                *complete, pending = (pending + chunk).split(b"\n")
                if not chunk and pending:
                    complete, pending = [pending], b""
                fresh = [Line(at, raw.decode("utf-8", "replace").rstrip("\r")) for raw in complete]
                for line in fresh:
                    log.write(f"{line.at:12.3f} {line.text}\n")
                with self._changed:
                    self._lines += fresh
                    self._closed = not chunk
                    self._changed.notify_all()
                if not chunk:
                    return


def _matcher(pattern: str) -> Callable[[Line], bool]:
    compiled = re.compile(pattern)
    return lambda line: compiled.search(line.text) is not None
