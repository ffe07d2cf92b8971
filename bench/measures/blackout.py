# SPDX-License-Identifier: GPL-2.0-only
"""How long a guest does not run while its host's kernel is replaced, and what it waits for.

Everything is timed from outside the host, by the one clock of the machine that emulates
it, and the same for every peer: the guest prints a line 18 times a second, the kernels
print theirs. What the host's own clocks say is not used. For each phase there are two
numbers: the time that passed, and the work that the emulation did (bench/meter.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.meter import Meter
from bench.peers.bare import Bare
from bench.peers.base import Peer, check_running
from bench.results import Values
from bench.stage import HOME, GuestSize, Stage
from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Console, Line
from pkernfs.lab.machine import poll

_TICK = re.compile(r"^[0-9a-f]{8}$")
#: Ends of the phases, in their order: what of the host's console says so.
_ENDS = (
    ("save", re.compile(r"Starting new kernel")),
    ("leave", re.compile(r"Linux version \d")),
    ("kernel", re.compile(r"Run /init as init process")),
    ("user space", re.compile(r"bench: restore")),
)
PHASES = ("save", "leave", "kernel", "user space", "restore")
#: What the programs in the host say of themselves.
_JUMP = re.compile(r"bench: jump")
_START_S = 180.0
_RUN_S = 240.0


@dataclass(frozen=True)
class Tick:
    """A line of the counting guest."""

    at: float
    count: int


def ticks(lines: Sequence[Line]) -> list[Tick]:
    """The guest's lines."""
    return [Tick(line.at, int(line.text, 16)) for line in lines if _TICK.match(line.text)]


def gap(found: Sequence[Tick]) -> tuple[Tick, Tick]:
    """The last tick before the longest silence, and the first one after it.

    :raises PkernfsError: there are less than two, or the guest has started anew.
    """
    pairs = list(itertools.pairwise(found))
    if not pairs:
        raise PkernfsError("the guest was not heard before and after")
    before, after = max(pairs, key=lambda pair: pair[1].at - pair[0].at)
    # It counts its own timer's ticks: a second of catching up is fine, a new start is not.
    if not before.count < after.count <= before.count + 600:
        raise PkernfsError(f"the guest counted {before.count}, and then {after.count}")
    return before, after


def phases(lines: Sequence[Line], begin: float, end: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of each phase, from the lines of the host's console.

    :param begin: when the first one begins, seconds of the lab's clock.
    :param end: when the last one ends.
    :raises PkernfsError: a mark is missing.
    """
    found = []
    at = begin
    for name, pattern in _ENDS:
        line = _first(lines, pattern, at)
        found.append((name, at, line.at))
        at = line.at
    return [*found, ("restore", at, end)]


def values_of(parts: Sequence[tuple[str, float, float]], work: Meter) -> Values:
    """Time and work of each phase, and of all of them."""
    values = {
        "blackout": parts[-1][2] - parts[0][1],
        "work": work.between(parts[0][1], parts[-1][2]),
    }
    for name, begin, end in parts:
        values[name] = end - begin
        values[f"work: {name}"] = work.between(begin, end)
    return values


def _first(lines: Sequence[Line], pattern: re.Pattern[str], since: float) -> Line:
    for line in lines:
        if line.at >= since and pattern.search(line.text):
            return line
    raise PkernfsError(f"the host's console has no {pattern.pattern!r}")


def floor(stage: Stage, peer: Bare) -> Values:
    """A bare kexec, from the jump to the first program.

    :raises PkernfsError: the host did not come up again.
    """
    peer.prepare(stage)
    start = len(stage.host.console.lines)
    with stage.work_clock() as work:
        peer.update(stage, GuestSize(0, 0))
    lines = stage.host.console.since(start)
    at = _first(lines, _JUMP, 0).at
    parts = []
    for name, pattern in _ENDS[:3]:
        end = _first(lines, pattern, at).at
        parts.append((name, at, end))
        at = end
    return values_of(parts, work)


def blackout(stage: Stage, peer: Peer, size: GuestSize) -> Values:
    """One update of a host with one guest, which is there before and gone afterwards.

    :raises PkernfsError: anything failed; a guest that lost memory is a failure.
    """
    serial = stage.host.serials[0]
    peer.prepare(stage)
    try:
        first = len(serial.lines)
        peer.start(stage, size)
        _wait_ticks(stage, serial, first, 5)
        memory = (peer.memory(size), "16", str(16 + size.filled))
        digest = _fill(stage, "write", memory)
        start, console = len(serial.lines), len(stage.host.console.lines)
        with stage.work_clock() as work:
            peer.update(stage, size)
            _wait_ticks(stage, serial, len(serial.lines), 5)
        before, again = gap(ticks(serial.since(start)))
        if _fill(stage, "digest", memory) != digest:
            raise PkernfsError("the guest's memory is not what it was")
        parts = phases(stage.host.console.since(console), before.at, again.at)
        return values_of(parts, work)
    finally:
        peer.end(stage)


def _wait_ticks(stage: Stage, serial: Console, start: int, count: int) -> None:
    def there() -> bool:
        return len(ticks(serial.since(start))) >= count

    try:
        poll(there, _RUN_S, "the guest counts")
    except PkernfsError:
        check_running(stage)
        raise


def _fill(stage: Stage, verb: str, memory: tuple[str, str, str]) -> str:
    command = ["python3", "-I", "-S", f"{HOME}/fill.py", verb, *memory]
    return stage.host.run(command, timeout=300).check().stdout.strip()
