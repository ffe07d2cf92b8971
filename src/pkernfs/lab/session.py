# SPDX-License-Identifier: GPL-2.0-only
"""A host for the command line: one command, or a shell."""

from __future__ import annotations

import base64
import os
import queue
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.progress import say


def _started(host: Machine) -> None:
    say(f"host on {host.hello.kernel} after {host.boot_seconds:.1f} s, logs in {host.logs}")


def run_command(config: HostConfig, argv: Sequence[str], timeout: float) -> int:
    """Boot a host, run a command in it with its output shown, end the host.

    :param timeout: seconds for the command.
    :returns: the command's exit status; 128 + N for signal N, as a shell has it. A
        command that replaced the host's kernel counts as 0 once the next one is up.
    :raises PkernfsError: also for a bad line in the kernel log.
    """

    def show(stream: int, data: bytes) -> None:
        out = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
        out.write(data)
        out.flush()

    with Machine(config) as host:
        _started(host)
        result = host.run(argv, timeout=timeout, sink=show)
        if result.status is None:
            hello = host.wait_reboot()
            say(f"the host's kernel was replaced, now {hello.kernel}")
            return hello.resume or 0
        return result.status if result.status >= 0 else 128 - result.status


def shell(config: HostConfig) -> None:
    """Boot a host and connect this terminal to a shell in it, also after kexecs."""
    with Machine(config) as host:
        _started(host)
        while _one_shell(host):
            hello = host.wait_reboot()
            say(f"the host's kernel was replaced, now {hello.kernel}")


def _one_shell(host: Machine) -> bool:
    """Run one shell until it ends; True if the host's kernel was replaced under it."""
    environment = {"TERM": os.environ.get("TERM", "dumb"), "PS1": "\\u@\\h \\w # "}
    argv = ["bash", "--norc", "-i"]
    number, messages = host.link.start(argv, env=environment, cwd="/root", tty=True)
    ended = threading.Event()

    def feed() -> None:
        while not ended.is_set() and (data := os.read(0, 1024)):
            if not ended.is_set():
                host.link.feed(number, data)
        if not ended.is_set():
            host.link.signal(number, signal.SIGHUP)

    with _raw_terminal():
        threading.Thread(target=feed, name="terminal", daemon=True).start()
        try:
            return _show_until_end(messages) is None
        finally:
            ended.set()


def _show_until_end(messages: queue.Queue[dict[str, Any]]) -> int | None:
    while True:
        message = messages.get()
        if "stream" not in message:
            status = message.get("status", 1)
            return None if status is None else int(status)
        os.write(1, base64.b64decode(message["data"]))


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key on, as long as the block lasts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
