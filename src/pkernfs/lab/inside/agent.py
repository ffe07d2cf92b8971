# SPDX-License-Identifier: GPL-2.0-only
"""Runs commands inside a lab host, for the lab outside.

Talks JSON lines over a virtio-serial port. Standard library only and started with
``python3 -I -S``: it is part of every boot. See pkernfs.lab.link for the other end.

To the agent:
  {"op": "run", "id": N, "argv": [...], "env": {...}, "cwd": "/", "tty": false}
  {"op": "input", "id": N, "data": BASE64 or null for the end}
  {"op": "signal", "id": N, "signal": 15}
From the agent:
  {"hello": BOOT_ID, "kernel": RELEASE, "uptime": S, "problems": TEXT, "resume": STATUS or null}
  {"id": N, "stream": 1 or 2, "data": BASE64}
  {"id": N, "status": EXIT STATUS, negative for a signal}
  {"id": N, "error": TEXT} when the command can't be started
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = "pkernfs.agent"
STATE = Path("/run/pkernfs-lab")
#: So many reads in a row without data, with a pause between, mean that the lab hung up.
_EMPTY_READS = 20
_EMPTY_PAUSE_S = 0.05


@dataclass
class Job:
    """A running command."""

    process: subprocess.Popen[bytes]
    pidfd: int
    input: int | None
    outputs: dict[int, int] = field(default_factory=dict)


class Agent:
    """Serves one port until it closes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[int, Job] = {}
        self._pending = b""
        self._empty_reads = 0

    def serve(self) -> None:
        """Say hello, then handle requests and output until the port ends."""
        self._send(hello())
        self._selector.register(self._port, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    if not self._receive():
                        return
                else:
                    number, stream = key.data
                    self._advance(number, stream, key.fd)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    def _receive(self) -> bool:
        chunk = os.read(self._port, 65536)
        if not chunk:
            # Now and then a virtio port has nothing to read although it said so, and the
            # lab is still there: only if that goes on has the lab hung up.
            self._empty_reads += 1
            time.sleep(_EMPTY_PAUSE_S)
            return self._empty_reads < _EMPTY_READS
        self._empty_reads = 0
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                self._handle(json.loads(line))
        return True

    def _handle(self, request: dict[str, Any]) -> None:
        number = int(request["id"])
        if request["op"] == "run":
            try:
                self._start(number, request)
            except OSError as error:
                self._send({"id": number, "error": str(error)})
            return
        job = self._jobs.get(number)
        if job is None:
            return
        if request["op"] == "signal":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, int(request["signal"]))
        elif request["op"] == "input" and job.input is not None:
            self._feed(job, request["data"])

    def _feed(self, job: Job, data: str | None) -> None:
        assert job.input is not None
        if data is not None:
            with contextlib.suppress(OSError):
                os.write(job.input, base64.b64decode(data))
        elif job.input not in job.outputs.values():
            os.close(job.input)
            job.input = None

    def _start(self, number: int, request: dict[str, Any]) -> None:
        environment = {**os.environ, **request.get("env", {})}
        common: dict[str, Any] = {
            "cwd": request.get("cwd", "/"),
            "env": environment,
            "start_new_session": True,
        }
        if request.get("tty"):
            outer, inner = pty.openpty()
            argv = ["setsid", "--ctty", *request["argv"]]
            del common["start_new_session"]
            process = subprocess.Popen(argv, stdin=inner, stdout=inner, stderr=inner, **common)
            os.close(inner)
            job = Job(process, os.pidfd_open(process.pid), outer, {1: outer})
        else:
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                request["argv"], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, **common
            )
            assert process.stdin and process.stdout and process.stderr
            outputs = {1: os.dup(process.stdout.fileno()), 2: os.dup(process.stderr.fileno())}
            job = Job(process, os.pidfd_open(process.pid), os.dup(process.stdin.fileno()), outputs)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()
        for stream_number, fd in job.outputs.items():
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, (number, stream_number))
        self._selector.register(job.pidfd, selectors.EVENT_READ, (number, 0))
        self._jobs[number] = job

    def _advance(self, number: int, stream: int, fd: int) -> None:
        """Forward output, or finish a job whose process ended (stream 0)."""
        job = self._jobs.get(number)
        if job is None:
            return
        if stream != 0:
            self._forward(number, job, stream, fd)
            return
        # What is in the pipes still belongs to the command; who else holds them (a
        # daemon that it started) does not keep the command alive.
        for output, output_fd in list(job.outputs.items()):
            while self._forward(number, job, output, output_fd):
                pass
        status = job.process.wait()
        self._close(number, job)
        self._send({"id": number, "status": status})

    def _forward(self, number: int, job: Job, stream: int, fd: int) -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        except OSError:  # a pty whose last user is gone
            data = b""
        if data:
            encoded = base64.b64encode(data).decode()
            self._send({"id": number, "stream": stream, "data": encoded})
            return True
        self._selector.unregister(fd)
        if job.input == fd:
            job.input = None
        os.close(job.outputs.pop(stream))
        return False

    def _close(self, number: int, job: Job) -> None:
        del self._jobs[number]
        self._selector.unregister(job.pidfd)
        for fd in job.outputs.values():
            self._selector.unregister(fd)
        for fd in {job.pidfd, *job.outputs.values(), *([] if job.input is None else [job.input])}:
            os.close(fd)


def hello() -> dict[str, Any]:
    """What the lab wants to know about this boot."""
    resume = STATE / "resume.status"
    problems = STATE / "problems"
    return {
        "hello": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "kernel": os.uname().release,
        "uptime": time.clock_gettime(time.CLOCK_BOOTTIME),
        "problems": problems.read_text() if problems.exists() else "",
        "resume": int(resume.read_text()) if resume.exists() else None,
    }


def find_port() -> Path | None:
    """The device of the lab's virtio-serial port (udev is not there to name it)."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return Path("/dev") / name.parent.name
    return None


def main() -> int:
    """Serve the port; returns when the lab hangs up."""
    deadline = time.monotonic() + 10
    while (port := find_port()) is None:
        if time.monotonic() > deadline:
            print("agent: no port", file=sys.stderr)
            return 1
        time.sleep(0.05)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    descriptor = os.open(port, os.O_RDWR | os.O_CLOEXEC)
    Agent(descriptor).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
