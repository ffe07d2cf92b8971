# SPDX-License-Identifier: GPL-2.0-only
"""Numbered Ethernet frames at a steady pace into a virtual network device.

The device's back end is a datagram socket of QEMU (``-netdev dgram``, since QEMU 7.2): each
frame is one datagram, none is lost on the way, and when the device can't take a frame (bus
master off, receiver off, ring full) QEMU stops reading and the sender sees it. So a frame's
way into guest memory can be timed from here: the sender asks its socket how much QEMU has not
yet read (SIOCOUTQ).

``python -m pkernfs.lab.frames`` is the sender; :class:`FrameSource` runs it as a process of
its own, because the pace must hold while the lab is busy.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from pkernfs.errors import PkernfsError
from pkernfs.lab.frame_report import SourceLog, read_log
from pkernfs.vfio.frame import build, parse

#: Address of the lab's end of the wire (locally administered).
SOURCE_MAC: Final = bytes.fromhex("020000001ab0")
BROADCAST: Final = b"\xff" * 6
_CONNECT_S: Final = 30.0
#: Linux's name for the question is SIOCOUTQ, its number that of TIOCOUTQ (asm/sockios.h).
_SIOCOUTQ: Final = termios.TIOCOUTQ


@dataclass(frozen=True)
class Wire:
    """The two datagram sockets between the lab and one network device.

    :ivar directory: where the sockets lie; a short path (108 bytes in all).
    :ivar name: of the device.
    """

    directory: Path
    name: str = "nic0"

    @property
    def lab(self) -> Path:
        """The lab's socket."""
        return self.directory / f"{self.name}.lab"

    @property
    def device(self) -> Path:
        """QEMU's socket; QEMU makes it when it starts."""
        return self.directory / f"{self.name}.dev"

    def netdev(self) -> list[str]:
        """QEMU's arguments for the back end; the device says ``netdev=NAME``."""
        ends = f"local.type=unix,local.path={self.device},remote.type=unix,remote.path={self.lab}"
        return ["-netdev", f"dgram,id={self.name},{ends}"]


class Sender:
    """Sends frames on a wire and notes what happens to them.

    :param interval_s: seconds between two frames; 0 for as fast as QEMU takes them.
    :param lossy: a frame is lost when the device has not taken the one before, as on a wire:
        QEMU has patience, other hardware has none.
    """

    def __init__(
        self, wire: Wire, log: TextIO, *, run: int, interval_s: float, lossy: bool = False
    ) -> None:
        self.interval_s = interval_s
        self._lossy = lossy
        self._log = log
        self._run = run
        self._sequence = 0
        self._taken = 0  # frames below this number are known to be in the device
        self._blocked_since: int | None = None
        self._socket = _connected(wire)

    def step(self) -> float:
        """Send the next frame if QEMU takes it; returns seconds until the next step."""
        self._note_taken()
        now = time.monotonic_ns()
        if self._lossy and _unread(self._socket):
            self._note("l", self._sequence, now)
            self._sequence += 1
            return self.interval_s
        frame = build(BROADCAST, SOURCE_MAC, self._run, self._sequence, now)
        try:
            self._socket.send(frame)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise
            self._blocked_since = self._blocked_since or now
            return min(self.interval_s, 0.001)
        if self._blocked_since is not None:
            self._note("w", self._sequence, now - self._blocked_since)
            self._blocked_since = None
        self._note("s", self._sequence, now)
        self._sequence += 1
        return self.interval_s

    def wait(self, until: float, control: int) -> list[str]:
        """Receive what the device transmits, until the time ``until``.

        :param control: file descriptor that command lines come from.
        :returns: command lines, as soon as there are any; its end is the line ``stop``.
        """
        wire = self._socket.fileno()
        writers = [wire] if self._blocked_since is not None else []
        while True:
            left = max(0.0, until - time.monotonic())
            ready, writable, _ = select.select([wire, control], writers, [], left)
            if wire in ready:
                self._receive()
            if control in ready:
                return os.read(control, 4096).decode().splitlines() or ["stop"]
            if writable or time.monotonic() >= until:
                return []

    def finish(self) -> None:
        """A last look at what QEMU has read."""
        time.sleep(0.1)
        self._note_taken()
        self._log.flush()
        self._socket.close()

    def _note_taken(self) -> None:
        if _unread(self._socket) or self._sequence < 2 or self._taken >= self._sequence - 1:
            return
        # The newest frame may be held back by QEMU after it was read; the one before is not.
        self._note("t", self._sequence - 2, time.monotonic_ns())
        self._taken = self._sequence - 1

    def _receive(self) -> None:
        frame = parse(self._socket.recv(65536))
        if frame is not None:
            self._note("r", frame.run, frame.sequence, time.monotonic_ns(), int(frame.intact))

    def _note(self, word: str, *numbers: int) -> None:
        self._log.write(f"{word} {' '.join(map(str, numbers))}\n")


def _unread(sender: socket.socket) -> int:
    """Bytes that the peer has not read (unix_outq_len in net/unix/af_unix.c)."""
    answer = fcntl.ioctl(sender.fileno(), _SIOCOUTQ, bytes(4))
    return int.from_bytes(answer, "little")


def _connected(wire: Wire) -> socket.socket:
    wire.lab.unlink(missing_ok=True)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(str(wire.lab))
    end.setblocking(False)
    give_up = time.monotonic() + _CONNECT_S
    while True:
        try:
            end.connect(str(wire.device))
        except OSError as error:
            if time.monotonic() > give_up:
                raise PkernfsError(f"QEMU has no socket {wire.device}: {error.strerror}") from error
            time.sleep(0.05)
        else:
            return end


def send(sender: Sender, control: int) -> None:
    """Send until ``control`` says ``stop`` or ends; ``interval SECONDS`` changes the pace."""
    due = time.monotonic()
    while True:
        # A late step is not made up for by a burst: the pace is what is promised.
        due = max(due + sender.step(), time.monotonic())
        for line in sender.wait(due, control):
            word, _, value = line.strip().partition(" ")
            if word == "stop":
                return
            if word == "interval":
                sender.interval_s = float(value)


def main(words: Sequence[str] | None = None) -> int:
    """The sender as a program; reads its commands from standard input."""
    parser = argparse.ArgumentParser(description="Send numbered frames to a network device.")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--name", default=Wire.name)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--interval", type=float, default=0.005, help="seconds")
    parser.add_argument("--lossy", action="store_true", help="lose what is not taken at once")
    given = parser.parse_args(words)
    with given.log.open("w", buffering=1 << 16) as log:
        wire = Wire(given.directory, given.name)
        sender = Sender(wire, log, run=given.run, interval_s=given.interval, lossy=given.lossy)
        try:
            send(sender, sys.stdin.fileno())
        finally:
            sender.finish()
    return 0


class FrameSource:
    """A sender at work; a context manager.

    :param wire: where to.
    :param log: file for its notes.
    :param run: number that the frames carry; another one for every source of a store.
    :param interval_s: seconds between two frames.
    :param lossy: see :class:`Sender`.
    """

    def __init__(
        self,
        wire: Wire,
        log: Path,
        *,
        run: int = 0,
        interval_s: float = 0.005,
        lossy: bool = False,
    ) -> None:
        self.run = run
        self._log = log
        place = ["--directory", str(wire.directory), "--name", wire.name, "--log", str(log)]
        command = [sys.executable, "-m", __name__, *place]
        command += ["--run", str(run), "--interval", str(interval_s)]
        command += ["--lossy"] if lossy else []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        # The pace must hold while the emulation takes all cores; without the right to, it runs
        # at the usual priority and the report shows the longest gap.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, -10)

    def pace(self, interval_s: float) -> None:
        """Change the pace; 0 for as fast as QEMU takes frames."""
        self._say(f"interval {interval_s}")

    def stop(self) -> SourceLog:
        """Stop sending; returns what was noted.

        :raises PkernfsError: the sender had failed.
        """
        if self._process.returncode is None:
            with contextlib.suppress(BrokenPipeError):
                self._say("stop")
            status = self._process.wait(timeout=30)
            if status:
                raise PkernfsError(f"the frame source failed with status {status}")
        return read_log(self._log.read_text().splitlines())

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    sys.exit(main())
