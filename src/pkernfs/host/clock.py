# SPDX-License-Identifier: GPL-2.0-only
"""One clock through the kexec.

The processor's time stamp counter is set to zero by a reset, not by kexec: the next
kernel reads on where the old one stopped (Intel SDM vol. 3, "Time-Stamp Counter").
Its frequency is measured on both sides against CLOCK_MONOTONIC_RAW; how much the two
results differ says how exact times across the kexec are.

Where there is no such counter (or no permission to run the one instruction), the
clock is CLOCK_REALTIME: it goes through the battery-backed clock, which counts seconds.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: lfence; rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0faee8 0f31 48c1e220 4809d0 c3")

#: A frequency needs two readings at least this far apart (seconds).
MIN_SPAN_S = 0.2


def _make_tsc_reader() -> Callable[[], int] | None:
    """A function that reads the time stamp counter; None where that is not possible."""
    if os.uname().machine != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a policy forbids memory that is both writable and executable
        return None
    code.write(_RDTSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)

    def read() -> int:
        _ = code  # keeps the page mapped as long as the function can be called
        return int(function())

    return read


_read_tsc = _make_tsc_reader()


@dataclass(frozen=True)
class Reading:
    """All clocks at one moment.

    :ivar tsc: ticks of the time stamp counter; 0 where it can't be read.
    :ivar raw_ns: CLOCK_MONOTONIC_RAW, nanoseconds since this kernel started.
    :ivar real_ns: CLOCK_REALTIME, nanoseconds since the epoch.
    """

    tsc: int
    raw_ns: int
    real_ns: int


def read() -> Reading:
    """Read all clocks, as close together as it gets."""
    raw = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    tsc = _read_tsc() if _read_tsc is not None else 0
    return Reading(tsc, raw, time.time_ns())


@dataclass(frozen=True)
class Scale:
    """How readings become seconds.

    :ivar name: "tsc" or "realtime".
    :ivar hertz: ticks per second.
    :ivar spread: relative difference of the frequencies measured on both sides, or None
        when only one side could be measured.
    """

    name: str
    hertz: float
    spread: float | None

    def seconds(self, earlier: Reading, later: Reading) -> float:
        """Time between two readings, also of different kernels, in seconds."""
        if self.name == "tsc":
            return (later.tsc - earlier.tsc) / self.hertz
        return (later.real_ns - earlier.real_ns) / 1e9

    def exactness(self, span_s: float) -> float:
        """How wrong a duration of ``span_s`` seconds across the kexec may be, in seconds."""
        if self.name != "tsc":
            return 1.0
        # Reading the two clocks one after the other costs some microseconds each time.
        return abs(span_s) * (self.spread if self.spread is not None else 1e-4) + 1e-4


def _measure(readings: Sequence[Reading]) -> tuple[float, float] | None:
    """Frequency (Hz) and span (s) of one kernel's readings; None if they are too close."""
    if len(readings) < 2:
        return None
    first, last = readings[0], readings[-1]
    span = (last.raw_ns - first.raw_ns) / 1e9
    ticks = last.tsc - first.tsc
    if span < MIN_SPAN_S or ticks <= 0:
        return None
    return ticks / span, span


def calibrate(*sides: Sequence[Reading]) -> Scale:
    """Find the scale from the readings of each kernel.

    :param sides: readings in order of time, one sequence for each kernel that ran.
    """
    every = [reading for side in sides for reading in side]
    measured = [result for side in sides if (result := _measure(side)) is not None]
    rising = all(a.tsc <= b.tsc for a, b in itertools.pairwise(every))
    if not measured or not rising or any(reading.tsc == 0 for reading in every):
        return Scale("realtime", 1e9, None)
    total = sum(span for _, span in measured)
    hertz = sum(frequency * span for frequency, span in measured) / total
    frequencies = [frequency for frequency, _ in measured]
    spread = (max(frequencies) - min(frequencies)) / hertz if len(measured) > 1 else None
    return Scale("tsc", hertz, spread)
