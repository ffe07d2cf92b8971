# SPDX-License-Identifier: GPL-2.0-only
"""What became of the numbered frames: the sender's notes against the receivers' log."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pkernfs.lab.console import Line
from pkernfs.vfio.landings import Kind, Landing

#: Name of the phases of :func:`between_kernels`.
BETWEEN_KERNELS: Final = "between kernels"
_FIRST_WORD = re.compile(r"\] Linux version \d")


@dataclass(frozen=True)
class Sent:
    """A frame that was sent.

    :ivar sequence: its number.
    :ivar sent_ns: when (CLOCK_MONOTONIC, ns).
    :ivar taken_ns: when the device had it for certain: QEMU had then read the frame after it
        as well, so this one was no longer held back. None if that was never seen.
    """

    sequence: int
    sent_ns: int
    taken_ns: int | None = None


@dataclass(frozen=True)
class Returned:
    """A frame that the device transmitted.

    :ivar run: run number of its sender.
    :ivar sequence: its number.
    :ivar seen_ns: when it came out (CLOCK_MONOTONIC, ns).
    """

    run: int
    sequence: int
    seen_ns: int
    intact: bool


@dataclass(frozen=True)
class SourceLog:
    """Everything the sender noted.

    :ivar longest_stall_ns: the longest that QEMU took no frame.
    :ivar lost: numbers of frames that a lossy sender did not send, and when it would have.
    """

    sent: tuple[Sent, ...] = ()
    returned: tuple[Returned, ...] = ()
    longest_stall_ns: int = 0
    lost: tuple[tuple[int, int], ...] = ()


def read_log(lines: Sequence[str]) -> SourceLog:
    """Read the sender's log.

    ``s`` sent, ``t`` taken up to, ``w`` waited, ``r`` returned, ``l`` lost.
    """
    sent: dict[int, int] = {}
    taken: dict[int, int] = {}
    returned: list[Returned] = []
    lost: list[tuple[int, int]] = []
    stall = next_taken = 0
    for line in lines:
        word, *numbers = line.split()
        values = [int(number) for number in numbers]
        if word == "s":
            sent[values[0]] = values[1]
        elif word == "t":
            for sequence in range(next_taken, values[0] + 1):
                taken[sequence] = values[1]
            next_taken = max(next_taken, values[0] + 1)
        elif word == "l":
            lost.append((values[0], values[1]))
        elif word == "w":
            stall = max(stall, values[1])
        elif word == "r":
            returned.append(Returned(values[0], values[1], values[2], bool(values[3])))
    frames = tuple(Sent(number, when, taken.get(number)) for number, when in sent.items())
    return SourceLog(frames, tuple(returned), stall, tuple(lost))


@dataclass(frozen=True)
class Phase:
    """A stretch of time, by the lab's monotonic clock, ns; the end is not part of it."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class PhaseCount:
    """Frames of a phase.

    :ivar sent: sent in it.
    :ivar landed: of these, found intact in memory.
    :ivar landed_within: of these, known to be in the device before the phase was over.
    """

    name: str
    sent: int
    landed: int
    landed_within: int


@dataclass(frozen=True)
class FrameReport:
    """What became of the frames of one source.

    :ivar missing: ranges of numbers that were sent and did not land, first and last.
    :ivar duplicated: landed more than once.
    :ivar out_of_order: landed after a higher number.
    :ivar damaged: landed with wrong bytes (and are missing, unless they also landed intact).
    :ivar unsent: landed but never sent.
    :ivar longest_gap_ns: longest time between two frames sent: the pace that really held.
    :ivar longest_wait_ns: longest time from sending to being known in the device.
    """

    frames_sent: int
    frames_landed: int
    missing: tuple[tuple[int, int], ...]
    duplicated: int
    out_of_order: int
    damaged: int
    unsent: int
    longest_gap_ns: int
    longest_wait_ns: int
    phases: tuple[PhaseCount, ...] = field(default=())

    @property
    def whole(self) -> bool:
        """Whether every frame landed, once, in order, intact."""
        faults = self.duplicated + self.out_of_order + self.damaged + self.unsent
        return not self.missing and not faults and self.frames_sent > 0

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {**asdict(self), "whole": self.whole}


def analyse(
    log: SourceLog, landings: Sequence[Landing], run: int, phases: Sequence[Phase] = ()
) -> FrameReport:
    """Compare what was sent with what the receivers found in memory.

    :param landings: the entries of the receivers' log, in order.
    :param run: the source's run number.
    :param phases: stretches of time to count by.
    """
    sent = {frame.sequence: frame for frame in log.sent}
    landed: set[int] = set()
    duplicated = out_of_order = damaged = 0
    newest = -1
    for entry in landings:
        if entry.kind is Kind.ADOPTED or entry.run != run:
            continue
        numbers = range(entry.first, entry.last + 1)
        if entry.kind is Kind.DAMAGED:
            damaged += 1
            continue
        for number in numbers:
            if number in landed:
                duplicated += 1
            elif number < newest:
                out_of_order += 1
            landed.add(number)
            newest = max(newest, number)
    times = [frame.sent_ns for frame in log.sent]
    waits = [frame.taken_ns - frame.sent_ns for frame in log.sent if frame.taken_ns is not None]
    return FrameReport(
        frames_sent=len(sent),
        frames_landed=len(landed & sent.keys()),
        missing=tuple(_ranges(sorted(sent.keys() - landed))),
        duplicated=duplicated,
        out_of_order=out_of_order,
        damaged=damaged,
        unsent=len(landed - sent.keys()),
        longest_gap_ns=max(map(int.__sub__, times[1:], times[:-1]), default=0),
        longest_wait_ns=max(waits, default=0),
        phases=tuple(_count(phase, log.sent, landed) for phase in phases),
    )


def _count(phase: Phase, sent: Sequence[Sent], landed: set[int]) -> PhaseCount:
    inside = [frame for frame in sent if phase.start_ns <= frame.sent_ns < phase.end_ns]
    found = [frame for frame in inside if frame.sequence in landed]
    within = sum(frame.taken_ns is not None and frame.taken_ns < phase.end_ns for frame in found)
    return PhaseCount(phase.name, len(inside), len(found), within)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = None
    for index, number in enumerate(numbers):
        start = number if start is None else start
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield start, number
            start = None


def between_kernels(lines: Sequence[Line]) -> list[Phase]:
    """The time between the last word of a kernel and the first of the next, for each kexec.

    The old kernel still stops its processors and devices after its last word, and the new one
    speaks only once it has a console: no kernel serves a device in this time, but it is a
    little longer than the time in which none runs.

    :param lines: the host's console, from the start.
    """
    pairs = itertools.pairwise(lines)
    return [
        Phase(BETWEEN_KERNELS, int(before.at * 1e9), int(after.at * 1e9))
        for before, after in pairs
        if _FIRST_WORD.search(after.text)
    ]


@dataclass(frozen=True)
class DeviceReport:
    """A device in report.json.

    :ivar bdf: its name in sysfs.
    :ivar model: such as ``e1000e``.
    :ivar faults: DMA faults of this device in the kernel log.
    :ivar switch_us: how long the switch to the new tables took, microseconds.
    """

    bdf: str
    model: str
    frames: FrameReport
    faults: int
    switch_us: int | None

    def to_json(self) -> dict[str, Any]:
        """The entry of ``devices[]``; the details under ``frames``."""
        between = (phase for phase in self.frames.phases if phase.name == BETWEEN_KERNELS)
        return {
            "bdf": self.bdf,
            "model": self.model,
            "frames_sent": self.frames.frames_sent,
            "frames_landed": self.frames.frames_landed,
            "frames_landed_without_kernel": sum(phase.landed_within for phase in between),
            "faults": self.faults,
            "switch_us": self.switch_us,
            "frames": self.frames.to_json(),
        }
