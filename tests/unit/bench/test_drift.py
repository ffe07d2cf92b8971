# SPDX-License-Identifier: GPL-2.0-only
"""What counts as a drift over many updates, and what is told of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench.drift import LEAST, Trend, fit
from bench.soak_report import Sample, problems, table

_MIB = 1 << 20


def _noise(count: int, size: float, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(0, size) for _ in range(count)]


def test_the_line_is_that_of_least_squares() -> None:
    trend = fit([(x, 7 + 3 * x) for x in range(1, 17, 2)])
    assert trend is not None
    assert trend.slope == pytest.approx(3)
    assert trend.error == pytest.approx(0, abs=1e-9)
    assert trend.span == 14
    assert trend.change == pytest.approx(42)
    # Symmetric, so level; the squares of the figures add up to 12, those of x - 3.5 to 42.
    crooked = fit(list(enumerate((1, -2, 1, 0, 0, 1, -2, 1))))
    assert crooked is not None
    assert crooked.slope == pytest.approx(0)
    assert crooked.error == pytest.approx((12 / 6 / 42) ** 0.5)


def test_too_few_rounds_have_no_trend() -> None:
    assert fit([(x, x) for x in range(LEAST - 1)]) is None
    assert fit([]) is None


@pytest.mark.parametrize("seed", range(50))
def test_what_varies_from_boot_to_boot_is_no_drift(seed: int) -> None:
    trend = fit(list(enumerate(_noise(50, _MIB, seed))))
    assert trend is not None
    assert not trend.drifts(0)


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_below_the_noise_is_a_drift_in_a_long_run(seed: int) -> None:
    # 150 KiB a round, where boots differ by 1 MiB.
    values = [_MIB * 0.15 * x + y for x, y in enumerate(_noise(50, _MIB, seed))]
    trend = fit(list(enumerate(values)))
    assert trend is not None
    assert trend.drifts(4 * _MIB)


def test_what_is_small_in_all_is_harmless() -> None:
    trend = Trend(slope=1000, error=1, span=49)
    assert trend.drifts(40000)
    assert not trend.drifts(50000)
    assert Trend(slope=-1000, error=1, span=49).drifts(40000)


_SAMPLE = Sample(
    round=0,
    kernel="6.12",
    available=1700 * _MIB,
    slab=40 * _MIB,
    unreclaimable=20 * _MIB,
    used=200 * _MIB,
    records=40960,
    blackout_s=9.5,
)


def _run(rounds: int, **per_round: int) -> list[Sample]:
    """Rounds on two kernels in turn, a figure growing by so much a round."""
    found = []
    for number in range(rounds):
        base = replace(_SAMPLE, round=number, kernel=("6.12", "7.3")[number % 2])
        # Another kernel has other figures: that is no drift.
        base = replace(base, slab=base.slab + 9 * _MIB * (number % 2))
        more = {name: getattr(base, name) + number * by for name, by in per_round.items()}
        found.append(replace(base, **more))
    return found


def test_a_run_that_stays_as_it_is_has_no_problem() -> None:
    assert problems(_run(20)) == []


@pytest.mark.parametrize(
    ("name", "by"),
    [("available", -_MIB), ("slab", _MIB), ("unreclaimable", _MIB)],
)
def test_a_leak_is_told_for_each_kernel(name: str, by: int) -> None:
    told = problems(_run(20, **{name: by}))
    assert len(told) == 2
    assert all("1024 KiB a round" in text for text in told)
    assert "6.12" in told[0] and "7.3" in told[1]


def test_memory_that_grows_or_slab_that_shrinks_is_no_leak() -> None:
    assert problems(_run(20, available=_MIB, slab=-_MIB)) == []


def test_a_store_that_holds_more_than_at_first_is_told_at_once() -> None:
    assert problems(_run(2)) == []
    (text,) = problems(_run(2, used=4096))
    assert "4096 bytes more" in text


def test_the_table_has_a_line_for_each_round() -> None:
    lines = table(_run(3)).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:2] == ["1", "7.3"]
