# SPDX-License-Identifier: GPL-2.0-only
"""The time axis of a picture: seconds to pixels, long waits cut out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

#: A stretch in which nothing happens is cut out when it is longer than this, in seconds and
#: as a share of the time in which something does: a resume that is tried again an hour later.
_CUT_S = 5.0
_CUT_SHARE = 0.3
#: How much the axis goes on after the last event, as a share of what is drawn.
_TAIL = 0.03
_TAIL_MIN_S = 0.001
#: What is left of a cut, pixels.
CUT_WIDTH = 34.0
#: About so many pixels are between two ticks.
_TICK_WIDTH = 90.0


@dataclass(frozen=True)
class Cut:
    """A stretch of time that is not drawn to scale: in seconds, and in pixels."""

    start_s: float
    end_s: float
    x: float


def _busy(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The time from 0 on without the stretches to be cut."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted([(0.0, 0.0), *intervals]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    total = sum(end - start for start, end in merged)
    longest = max(_CUT_S, _CUT_SHARE * total)
    kept = [merged[0]]
    for start, end in merged[1:]:
        if start - kept[-1][1] <= longest:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return kept


class Axis:
    """Seconds since the update began, to pixels.

    :param intervals: when something happens, seconds, not below 0.
    :param left: where 0 is, pixels.
    :param width: of the axis, pixels.
    """

    def __init__(self, intervals: Iterable[tuple[float, float]], left: float, width: float) -> None:
        self._kept = _busy(intervals)
        cuts = len(self._kept) - 1
        # A little more than the last event, so that one sees what goes on.
        last = self._kept[-1]
        total = sum(end - start for start, end in self._kept)
        #: Where the axis ends, seconds.
        self.end_s = last[1] + max(_TAIL * total, _TAIL_MIN_S)
        self._kept[-1] = (last[0], self.end_s)
        total += self.end_s - last[1]
        #: Pixels per second, the same everywhere but in cuts.
        self.scale = (width - cuts * CUT_WIDTH) / total if total > 0 else 0.0
        self._starts: list[float] = []
        x = left
        for start, end in self._kept:
            self._starts.append(x)
            x += (end - start) * self.scale + CUT_WIDTH
        self.left, self.right = left, left + width

    @property
    def cuts(self) -> list[Cut]:
        """The stretches that are cut out."""
        return [
            Cut(before[1], after[0], x - CUT_WIDTH)
            for (before, after), x in zip(
                itertools.pairwise(self._kept), self._starts[1:], strict=True
            )
        ]

    def x(self, time_s: float) -> float:
        """Where a time is."""
        time_s = max(time_s, 0.0)
        for (start, end), left in zip(self._kept, self._starts, strict=True):
            if time_s < start:  # in the cut before it
                return left - CUT_WIDTH / 2
            if time_s <= end:
                return left + (time_s - start) * self.scale
        return self.right

    def ticks(self) -> list[float]:
        """Round times that get a mark, seconds."""
        if self.scale <= 0:
            return [0.0]
        step = _round_up(_TICK_WIDTH / self.scale)
        found = []
        for start, end in self._kept:
            number = math.ceil(start / step - 1e-9)
            while number * step <= end:
                found.append(number * step)
                number += 1
        return found


def _round_up(step: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def label(time_s: float, step_s: float) -> str:
    """A tick in words.

    :param step_s: between two ticks, which says how many digits are worth it.
    """
    digits = max(0, -math.floor(math.log10(step_s))) if step_s > 0 else 0
    return f"{time_s:.{digits}f} s"


def duration(time_s: float) -> str:
    """A long time in words."""
    if time_s < 120:
        return f"{time_s:.0f} s"
    if time_s < 7200:
        return f"{time_s / 60:.0f} min"
    return f"{time_s / 3600:.1f} h"
