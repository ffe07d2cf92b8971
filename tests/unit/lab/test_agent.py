# SPDX-License-Identifier: GPL-2.0-only
"""The agent and the lab's end of its line, over a socket pair in one process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.lab.inside.agent import Agent
from pkernfs.lab.link import Link


@pytest.fixture
def link() -> Iterator[Link]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Agent(theirs.fileno()).serve, daemon=True)
    thread.start()
    link = Link(ours)
    link.wait_hello(1, 10)
    yield link
    link.close()
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()


def test_hello_names_the_kernel(link: Link) -> None:
    hello = link.hellos[0]
    assert hello.kernel == os.uname().release
    assert hello.resume is None
    assert hello.uptime > 0


def test_output_status_and_input(link: Link) -> None:
    result = link.run(["sh", "-c", "cat; echo err >&2; exit 7"], stdin=b"\xff in\n" * 20000)
    assert result.status == 7
    assert result.stdout.count(" in\n") == 20000
    assert result.stderr == "err\n"
    with pytest.raises(PkernfsError, match="status 7"):
        result.check()


def test_environment_and_directory(link: Link) -> None:
    result = link.run(["sh", "-c", "echo $WORD; pwd"], env={"WORD": "x y"}, cwd="/usr")
    assert result.stdout == "x y\n/usr\n"


def test_output_comes_while_the_command_runs(link: Link) -> None:
    seen: list[tuple[float, bytes]] = []
    script = "echo one; sleep 0.4; echo two"
    link.run(["sh", "-c", script], sink=lambda _, data: seen.append((time.monotonic(), data)))
    assert [data for _, data in seen] == [b"one\n", b"two\n"]
    assert seen[1][0] - seen[0][0] > 0.3


def test_daemon_does_not_keep_its_starter_alive(link: Link) -> None:
    start = time.monotonic()
    result = link.run(["sh", "-c", "sleep 5 & echo started"], timeout=4)
    assert result.stdout == "started\n"
    assert time.monotonic() - start < 3


def test_commands_run_side_by_side(link: Link) -> None:
    number, messages = link.start(["sleep", "60"])
    assert link.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
    link.signal(number, 15)
    assert messages.get(timeout=5) == {"id": number, "status": -15}


def test_too_long_a_command_is_killed(link: Link) -> None:
    with pytest.raises(PkernfsError, match=r"not done in the host within 0 s; output: early"):
        link.run(["sh", "-c", "echo early; sleep 60"], timeout=0.4)


def test_missing_command(link: Link) -> None:
    with pytest.raises(PkernfsError, match="No such file"):
        link.run(["/nonexistent"])
    assert link.run(["true"]).status == 0


def test_terminal(link: Link) -> None:
    number, messages = link.start(["sh", "-c", "test -t 0 && read x && echo got $x"], tty=True)
    link.feed(number, b"word\n")
    output = b""
    import base64

    while "status" not in (message := messages.get(timeout=5)):
        output += base64.b64decode(message["data"])
    assert message["status"] == 0
    assert b"got word" in output


def test_new_agent_ends_the_commands_of_the_old_one() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours)
    _, messages = link.start(["pkernfs", "update"])
    hello = b'{"hello": "b", "kernel": "k", "uptime": 1.0, "problems": "", "resume": 0}\n'
    # What the old kernel had begun to say when it ended.
    theirs.sendall(b'{"id": 1, "stream": 1, "da' + hello)
    assert messages.get(timeout=5) == {"status": None}
    assert link.wait_hello(1, 5).resume == 0
    theirs.close()
    link.close()


def test_host_that_is_gone() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours)
    _, messages = link.start(["sleep", "9"])
    theirs.close()
    assert messages.get(timeout=5) == {"status": None}
    with pytest.raises(PkernfsError, match="gone"):
        link.run(["true"])
    link.close()
