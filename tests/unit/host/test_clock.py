# SPDX-License-Identifier: GPL-2.0-only
"""One scale from the readings of two kernels."""

from __future__ import annotations

import time

import pytest

from pkernfs.host.clock import Reading, calibrate, read


def _side(start_tsc: int, hertz: float, seconds: float) -> list[Reading]:
    """Two readings of one kernel, whose own clock begins at zero."""
    return [
        Reading(start_tsc, 0, 10**18),
        Reading(start_tsc + int(hertz * seconds), int(seconds * 1e9), 10**18),
    ]


def test_both_sides_give_the_frequency_and_how_exact_it_is() -> None:
    before, after = _side(10**6, 1e9, 2), _side(10**11, 1.0001e9, 2)
    scale = calibrate(before, after)
    assert scale.name == "tsc"
    assert scale.hertz == pytest.approx(1.00005e9)
    assert scale.spread == pytest.approx(1e-4, rel=1e-3)
    assert scale.seconds(before[0], after[0]) == pytest.approx(100, rel=1e-3)
    assert scale.exactness(10) == pytest.approx(1.1e-3, rel=1e-2)


def test_a_side_that_is_too_short_does_not_count() -> None:
    scale = calibrate(_side(1, 1e9, 1), _side(10**10, 5e8, 0.01))
    assert scale.hertz == pytest.approx(1e9)
    assert scale.spread is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_side(10**12, 1e9, 1), _side(5, 1e9, 1)),  # reset in between
        (_side(0, 0, 1), _side(0, 0, 1)),  # can't be read
        (_side(1, 1e9, 0.01), _side(10**10, 1e9, 0.01)),  # no span to measure over
    ],
)
def test_without_a_usable_counter_the_calendar_clock_counts(
    first: list[Reading], second: list[Reading]
) -> None:
    scale = calibrate(first, second)
    assert scale.name == "realtime"
    assert scale.exactness(3) == 1.0
    assert scale.seconds(Reading(0, 0, 10**9), Reading(0, 0, 4 * 10**9)) == 3


def test_this_machine_measures_a_pause() -> None:
    readings = [read()]
    time.sleep(0.25)
    readings.append(read())
    assert calibrate(readings).seconds(*readings) == pytest.approx(0.25, abs=0.1)
