# SPDX-License-Identifier: GPL-2.0-only
"""What a long run of updates noted after each round, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.drift import fit

SCHEMA = "pkernfs-soak/1"
_MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """A host after an update, at rest.

    :ivar round: its number; 0 is before the first update.
    :ivar kernel: that runs.
    :ivar available: MemAvailable, bytes, as are the following.
    :ivar slab: Slab.
    :ivar unreclaimable: SUnreclaim.
    :ivar used: what is taken in the store, without the records of updates.
    :ivar records: what the records of this update took in the store.
    :ivar blackout_s: the longest of any guest, seconds.
    """

    round: int
    kernel: str
    available: int
    slab: int
    unreclaimable: int
    used: int
    records: int
    blackout_s: float


@dataclass(frozen=True)
class _Figure:
    """A figure of the host that must not drift.

    :ivar bad: the sign of a change that is a leak.
    :ivar harmless: change over a whole run that is none, bytes.
    """

    name: str
    text: str
    bad: int
    harmless: int


_FIGURES = (
    _Figure("available", "memory available", -1, 8 * _MIB),
    _Figure("slab", "slab", 1, 2 * _MIB),
    _Figure("unreclaimable", "slab that can't be reclaimed", 1, 2 * _MIB),
)


def problems(samples: Sequence[Sample]) -> list[str]:
    """What leaks or drifts, in words; empty when nothing does.

    Memory is compared among boots of the same kernel; what the store holds has to be the same
    after each round.
    """
    found = []
    for kernel in dict.fromkeys(sample.kernel for sample in samples):
        own = [sample for sample in samples if sample.kernel == kernel]
        for figure in _FIGURES:
            trend = fit([(sample.round, getattr(sample, figure.name)) for sample in own])
            if trend and trend.slope * figure.bad > 0 and trend.drifts(figure.harmless):
                found.append(
                    f"{kernel}: {figure.text} changes by {trend.slope / 1024:.0f} KiB a round"
                    f" (exact to {trend.error / 1024:.0f}), {trend.change / _MIB:.1f} MiB in all"
                )
    grown = max((sample.used for sample in samples), default=0) - samples[0].used if samples else 0
    if grown > 0:
        found.append(f"the store holds {grown} bytes more than before the first round")
    return found


def table(samples: Sequence[Sample]) -> str:
    """A line for each round, as plain text."""
    lines = ["round  kernel  available/MiB  slab/MiB  unreclaimable/MiB  used/B  records/B  dark/s"]
    for sample in samples:
        memory = (sample.available, sample.slab, sample.unreclaimable)
        available, slab, unreclaimable = (f"{value / _MIB:.1f}" for value in memory)
        lines.append(
            f"{sample.round:>5}  {sample.kernel:<6}  {available:>13}  {slab:>8}"
            f"  {unreclaimable:>17}  {sample.used:>6}  {sample.records:>9}"
            f"  {sample.blackout_s:>6.1f}"
        )
    return "\n".join(lines)


def to_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """All of it, as the file has it."""
    return {
        "schema": SCHEMA,
        "rounds": [asdict(sample) for sample in samples],
        "problems": problems(samples),
    }
