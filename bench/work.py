# SPDX-License-Identifier: GPL-2.0-only
"""How much work a virtual host's emulation has done, beside the time that passed.

The wall clock of a machine that does other things as well says little: a host that gets
half of a processor takes twice the time for the same. The processor time that the
emulator has used does not depend on that. It does not count waiting, of which there is
next to none here: disks are memory.
"""

from __future__ import annotations

import bisect
import threading
import time
from types import TracebackType

_EVERY_S = 0.005


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all of its threads, in seconds.

    The clock's number is MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of
    include/linux/posix-timers_types.h.
    """
    return time.clock_gettime(~pid << 3 | 2)


class WorkClock:
    """Notes how much a process has worked by when, within a block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._times: list[float] = []
        self._work: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work clock", daemon=True)

    def __enter__(self) -> WorkClock:
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self._note()
            except OSError:  # the process is gone
                return

    def _note(self) -> None:
        work = cpu_seconds(self._pid)
        self._times.append(time.monotonic())
        self._work.append(work)

    def at(self, when: float) -> float:
        """Work done by a moment (seconds of CLOCK_MONOTONIC), in seconds of a processor."""
        return interpolate(self._times, self._work, when)

    def between(self, begin: float, end: float) -> float:
        """Work done between two moments, in seconds of a processor."""
        return self.at(end) - self.at(begin)


def interpolate(times: list[float], values: list[float], when: float) -> float:
    """The value at a moment, on the line between its neighbours."""
    index = bisect.bisect_right(times, when)
    if index == 0 or index == len(times):
        return values[min(index, len(times) - 1)]
    before, after = times[index - 1], times[index]
    share = (when - before) / (after - before)
    return values[index - 1] + share * (values[index] - values[index - 1])
