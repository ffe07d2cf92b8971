# SPDX-License-Identifier: GPL-2.0-only
"""The lab's end of the line to the agent in a host (protocol: pkernfs.lab.inside.agent)."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pkernfs.errors import PkernfsError


@dataclass(frozen=True)
class Result:
    """How a command in a host ended.

    :ivar status: exit status, negative for a signal; None when the host's kernel was
        replaced or the host went away while it ran.
    """

    argv: tuple[str, ...]
    status: int | None
    stdout: str
    stderr: str

    def check(self) -> Result:
        """This result.

        :raises PkernfsError: the command failed.
        """
        if self.status != 0:
            tail = (self.stderr or self.stdout).strip()[-2000:]
            raise PkernfsError(f"{' '.join(self.argv)}: status {self.status} in the host: {tail}")
        return self


@dataclass(frozen=True)
class Hello:
    """What the agent said when it came up.

    :ivar at: when, seconds of the lab's CLOCK_MONOTONIC.
    :ivar uptime: seconds since this kernel started.
    :ivar problems: what failed on the way, one line each; empty when all is well.
    :ivar resume: exit status of ``pkernfs resume``; None when there was none to do.
    """

    at: float
    boot_id: str
    kernel: str
    uptime: float
    problems: str
    resume: int | None


Sink = Callable[[int, bytes], None]


class Link:
    """Sends commands to the agent; one reader thread sorts what comes back."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._next = 1
        self._sending = threading.Lock()
        self._state = threading.Condition()
        self._hellos: list[Hello] = []
        self._queues: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="agent link", daemon=True)
        self._thread.start()

    @property
    def hellos(self) -> tuple[Hello, ...]:
        """One for every start of the agent so far."""
        with self._state:
            return tuple(self._hellos)

    def wait_hello(
        self, count: int, timeout: float, alive: Callable[[], None] = lambda: None
    ) -> Hello:
        """Wait until the agent has started ``count`` times.

        :param timeout: seconds.
        :param alive: called now and then; raises when waiting is in vain.
        :raises PkernfsError: it did not come in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._state:
                if len(self._hellos) < count:
                    self._state.wait(0.5)
                if len(self._hellos) >= count:
                    return self._hellos[count - 1]
            alive()
            if time.monotonic() > deadline:
                raise PkernfsError(f"the host's agent did not answer within {timeout:.0f} s")

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: bytes = b"",
        timeout: float = 600,
        sink: Sink | None = None,
    ) -> Result:
        """Run a command in the host.

        :param stdin: its whole input.
        :param timeout: seconds; then the command is killed.
        :param sink: gets output as it comes, with the stream's number (1 or 2).
        :raises PkernfsError: it could not be started, or took too long.
        """
        number, messages = self.start(argv, env=env, cwd=cwd)
        if stdin:
            self.feed(number, stdin)
        self.feed(number, None)
        streams = {1: bytearray(), 2: bytearray()}
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.signal(number, 9)
                raise PkernfsError(
                    f"{' '.join(argv)}: not done in the host within {timeout:.0f} s; output: "
                    + bytes(streams[1] + streams[2])[-2000:].decode("utf-8", "replace")
                ) from None
            if "stream" in message:
                data = base64.b64decode(message["data"])
                streams[message["stream"]] += data
                if sink is not None:
                    sink(message["stream"], data)
            elif "error" in message:
                raise PkernfsError(f"{' '.join(argv)}: {message['error']}")
            else:
                texts = [streams[n].decode("utf-8", "replace") for n in (1, 2)]
                return Result(tuple(argv), message["status"], *texts)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        tty: bool = False,
    ) -> tuple[int, queue.Queue[dict[str, Any]]]:
        """Start a command; its number, and the queue of what the agent says about it."""
        messages: queue.Queue[dict[str, Any]] = queue.Queue()
        with self._state:
            number = self._next
            self._next += 1
            if self._closed:
                raise PkernfsError("the host is gone")
            self._queues[number] = messages
        request = {"op": "run", "id": number, "argv": list(argv), "cwd": cwd, "tty": tty}
        self._send({**request, "env": dict(env or {})})
        return number, messages

    def feed(self, number: int, data: bytes | None) -> None:
        """Give a command input; None ends it."""
        # Small pieces: the agent writes them to a pipe without waiting for its reader.
        for piece in [None] if data is None else _pieces(data):
            encoded = None if piece is None else base64.b64encode(piece).decode()
            self._send({"op": "input", "id": number, "data": encoded})

    def signal(self, number: int, value: int) -> None:
        """Send a signal to a command's session."""
        self._send({"op": "signal", "id": number, "signal": value})

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)
        self._connection.close()

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                raise PkernfsError(f"the host is gone: {error}") from error

    def _read(self) -> None:
        pending = b""
        while True:
            try:
                chunk = self._connection.recv(1 << 16)
            except OSError:
                chunk = b""
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                # A kernel that dies in the middle of a line leaves half of it.
                start = line.find(b'{"hello"')
                self._dispatch(line[max(start, 0) :])
            if not chunk:
                self._end_all()
                with self._state:
                    self._closed = True
                return

    def _dispatch(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        if "hello" not in message:
            with self._state:
                messages = self._queues.get(message["id"])
                if "stream" not in message:
                    self._queues.pop(message["id"], None)
            if messages is not None:
                messages.put(message)
            return
        self._end_all()
        fields = ("kernel", "uptime", "problems", "resume")
        hello = Hello(time.monotonic(), message["hello"], *(message[name] for name in fields))
        with self._state:
            self._hellos.append(hello)
            self._state.notify_all()

    def _end_all(self) -> None:
        """No command outlives the agent that started it."""
        with self._state:
            queues = list(self._queues.values())
            self._queues.clear()
        for messages in queues:
            messages.put({"status": None})


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 32768] for start in range(0, len(data), 32768)]
