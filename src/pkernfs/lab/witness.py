# SPDX-License-Identifier: GPL-2.0-only
"""The lab's end of a witness guest's serial line (see pkernfs.lab.inside.witness)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Console, Line

#: Time between two heartbeats, seconds (the same in the guest's program).
BEAT_S = 0.25


@dataclass(frozen=True)
class Beat:
    """One heartbeat.

    :ivar at: when the lab had it, seconds of the lab's CLOCK_MONOTONIC.
    :ivar clock: the guest's own monotonic clock, seconds.
    :ivar gap: longest time between two counts that the guest has noticed, seconds.
    """

    at: float
    number: int
    count: int
    clock: float
    boot: str
    pid: int
    gap: float


@dataclass(frozen=True)
class Proof:
    """What a witness says of itself: equal before and after means the same guest.

    :ivar bytes: memory under the digest.
    :ivar count: how far it had counted when the digest was done.
    """

    boot: str
    pid: int
    digest: str
    bytes: int
    count: int


def parse(line: Line) -> dict[str, Any] | None:
    """The message of a serial line; None for kernel messages and lines cut by a kexec."""
    start = line.text.find("{")
    if start < 0:
        return None
    try:
        message = json.loads(line.text[start:])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def beats(lines: Iterable[Line]) -> list[Beat]:
    """The heartbeats among serial lines."""
    found = []
    for line in lines:
        message = parse(line)
        if message is not None and "beat" in message:
            fields = ("beat", "count", "clock", "boot", "pid", "gap")
            found.append(Beat(line.at, *(message[name] for name in fields)))
    return found


def longest_silence(found: Iterable[Beat]) -> float:
    """The longest time without a heartbeat, on the lab's clock, in seconds."""
    times = [beat.at for beat in found]
    return max((later - before for before, later in itertools.pairwise(times)), default=0.0)


class Witness:
    """A witness guest on one of the host's serial ports."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._ids = itertools.count(1)
        self._start = len(console.lines)

    def wait_ready(self, timeout: float = 240) -> dict[str, Any]:
        """Wait until the guest has filled its memory; what it said then.

        :param timeout: seconds.
        :raises PkernfsError: it did not come, with the last lines it printed.
        """
        return self._wait(lambda message: "ready" in message, timeout, self._start)

    def beats(self) -> list[Beat]:
        """All heartbeats so far."""
        return beats(self.console.since(self._start))

    def wait_beats(self, count: int, timeout: float = 120) -> list[Beat]:
        """Wait for ``count`` more heartbeats than there are now; all of them.

        :param timeout: seconds.
        :raises PkernfsError: the guest is silent.
        """
        wanted = len(self.beats()) + count
        seen = len(self.console.lines)
        for _ in range(count):
            line = self._wait_line(lambda message: "beat" in message, timeout, seen)
            seen = self.console.lines.index(line, seen) + 1
        found = self.beats()
        assert len(found) >= wanted
        return found

    def ask(self, command: str, timeout: float = 180) -> dict[str, Any]:
        """Give the witness a command, such as ``disk-write 8 seed``; its answer.

        :param timeout: seconds.
        :raises PkernfsError: it answers with an error, or not at all.
        """
        word, _, arguments = command.partition(" ")
        number = str(next(self._ids))
        start = len(self.console.lines)
        self.console.send(f"{word} {number} {arguments}\n")
        answer = self._wait(lambda message: message.get("reply") == number, timeout, start)
        if "error" in answer:
            raise PkernfsError(f"the guest says to {command!r}: {answer['error']}")
        return answer

    def prove(self) -> Proof:
        """Have it recompute its digest from memory.

        :raises PkernfsError: it does not answer.
        """
        answer = self.ask("digest")
        beat = self.wait_beats(1)[-1]
        return Proof(beat.boot, beat.pid, answer["digest"], answer["bytes"], answer["count"])

    def _wait(self, wanted: Any, timeout: float, start: int) -> dict[str, Any]:
        return parse(self._wait_line(wanted, timeout, start)) or {}

    def _wait_line(self, wanted: Any, timeout: float, start: int) -> Line:
        def test(line: Line) -> bool:
            message = parse(line)
            return message is not None and bool(wanted(message))

        try:
            return self.console.wait_for(test, timeout, start=start)
        except PkernfsError as error:
            tail = "\n".join(line.text for line in self.console.lines[-12:])
            said = f"its last lines:\n{tail}" if tail else "it has not said a word"
            raise PkernfsError(
                f"the guest does not answer ({error.what}); {said}", error.hint
            ) from error
