# SPDX-License-Identifier: GPL-2.0-only
"""How much of a processor a virtual host's emulation has used, beside the time that passed.

The wall clock of a machine that does other things as well says little: a host that gets half
of a processor takes twice the time for the same. The processor time that its emulation has
used does not depend on that. It does not count waiting.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

#: Between two looks (seconds).
_STEP_S = 0.005


class Meter:
    """Notes what a process has used by when, from a thread of its own, within the block.

    :param used: tells it, in seconds; raises OSError once the process has ended.
    """

    def __init__(self, used: Callable[[], float]) -> None:
        self._read = used
        self._times: list[float] = []
        self._used: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    @classmethod
    def of_process(cls, pid: int) -> Meter:
        """All threads of an emulator: what it took to emulate the whole host."""
        return cls(lambda: cpu_seconds(pid))

    @classmethod
    def of_processor(cls, pid: int) -> Meter:
        """The busiest thread of an emulator, which is the host's (only) processor.

        What it has run is what a processor of its own would have taken, but for the moments in
        which it has nothing to do.
        """
        tasks = [task / "schedstat" for task in Path("/proc", str(pid), "task").iterdir()]
        busiest = max(tasks, key=_run_s)
        return cls(lambda: _run_s(busiest))

    def __enter__(self) -> Meter:
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_STEP_S):
            try:
                self._note()
            except OSError:
                return

    def _note(self) -> None:
        used = self._read()
        self._times.append(time.monotonic())
        self._used.append(used)

    def between(self, begin: float, end: float) -> float:
        """What was used between two moments, seconds of a processor.

        :param begin: seconds of CLOCK_MONOTONIC, as ``end``.
        """
        return self._at(end) - self._at(begin)

    def _at(self, when: float) -> float:
        return interpolate(self._times, self._used, when)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all of its threads, in seconds.

    The clock's number is MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of
    include/linux/posix-timers_types.h.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _run_s(schedstat: Path) -> float:
    """Time on a processor, seconds: the first number (Documentation/scheduler/sched-stats.rst)."""
    return int(schedstat.read_text().split()[0]) / 1e9


def interpolate(times: list[float], values: list[float], when: float) -> float:
    """The value at a moment, on the line between its neighbours."""
    index = bisect.bisect_right(times, when)
    if index == 0 or index == len(times):
        return values[min(index, len(times) - 1)]
    before, after = times[index - 1], times[index]
    share = (when - before) / (after - before)
    return values[index - 1] + share * (values[index] - values[index - 1])
