# SPDX-License-Identifier: GPL-2.0-only
"""Does a figure drift over many rounds, or does it only vary from boot to boot?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: With fewer rounds of one kernel nothing is said: a line fits any two points, and few points
#: do not tell how far off the line the next one may lie.
LEAST = 8
#: So many standard errors of the slope are no chance: with LEAST rounds one in 300 runs whose
#: figures only vary from boot to boot (Student's t), with 50 one in 9000.
_ERRORS = 4.0


@dataclass(frozen=True)
class Trend:
    """The straight line through a figure's rounds, by least squares.

    :ivar slope: per round, in the figure's unit.
    :ivar error: standard error of the slope, from how far the rounds lie off the line.
    :ivar span: how many rounds lie between the first and the last.
    """

    slope: float
    error: float
    span: float

    @property
    def change(self) -> float:
        """From the first round to the last, along the line."""
        return self.slope * self.span

    def drifts(self, harmless: float) -> bool:
        """Is it a trend, and one that matters?

        :param harmless: the change over all rounds that is none, in the figure's unit: caches
            that fill up, for one.
        """
        return abs(self.change) > harmless and abs(self.slope) > _ERRORS * self.error


def fit(points: Sequence[tuple[float, float]]) -> Trend | None:
    """The trend of a figure; None with fewer than :data:`LEAST` rounds.

    :param points: number of the round, figure. Rounds may be missing: those of another kernel.
    """
    count = len(points)
    if count < LEAST:
        return None
    middle = sum(x for x, _ in points) / count
    mean = sum(y for _, y in points) / count
    width = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - mean) for x, y in points) / width
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in points)
    error = math.sqrt(rest / (count - 2) / width)
    return Trend(slope, error, points[-1][0] - points[0][0])
