# SPDX-License-Identifier: GPL-2.0-only
"""Time as the emulated processor spends it: what other work on the machine takes is not in it.

An emulated processor is a thread of the emulator. The time that this thread has run is what a
processor of its own would have taken, but for the moments in which it has nothing to do.
"""

from __future__ import annotations

import bisect
import threading
import time
from pathlib import Path
from types import TracebackType

#: Between two looks (seconds).
_STEP_S = 0.01


class Meter:
    """Samples the busiest thread of a process, from a thread of its own, within the block."""

    def __init__(self, pid: int) -> None:
        tasks = Path("/proc", str(pid), "task").iterdir()
        self._file = max(tasks, key=lambda task: _run_s(task / "schedstat")) / "schedstat"
        self._at: list[float] = []
        self._run: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    def __enter__(self) -> Meter:
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
                run = _run_s(self._file)
            except OSError:  # the host has ended
                return
            self._run.append(run)
            self._at.append(time.monotonic())

    def between(self, begin: float, end: float) -> float:
        """How long the thread ran between two moments, seconds.

        :param begin: seconds of CLOCK_MONOTONIC, as ``end``.
        """
        return self._until(end) - self._until(begin)

    def _until(self, moment: float) -> float:
        index = min(max(bisect.bisect_left(self._at, moment), 1), len(self._at) - 1)
        before, after = self._at[index - 1], self._at[index]
        share = min(max((moment - before) / (after - before), 0.0), 1.0)
        return self._run[index - 1] + share * (self._run[index] - self._run[index - 1])


def _run_s(schedstat: Path) -> float:
    """Time on a processor, seconds: the first number (Documentation/scheduler/sched-stats.rst)."""
    return int(schedstat.read_text().split()[0]) / 1e9
