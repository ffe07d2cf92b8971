# SPDX-License-Identifier: GPL-2.0-only
"""What a run found: samples, each with its round; failures among them; how it was done."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError

SCHEMA = "pkernfs-bench/1"
#: Numbers by name; times in seconds, sizes in bytes.
Values = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One cell of the comparison in one round.

    :ivar measure: what was measured, such as "blackout".
    :ivar peer: by whom.
    :ivar case: at what, such as "256M"; "" if there is only one.
    :ivar round: from 1 on.
    :ivar error: why there are no values; "" when there are.
    """

    measure: str
    peer: str
    case: str
    round: int
    values: Values
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """Several runs of one number.

    :ivar failed: runs that gave none.
    """

    median: float
    low: float
    high: float
    count: int
    failed: int = 0


@dataclass
class Results:
    """All of a run.

    :ivar when: date of the run, UTC.
    :ivar profile: "full" or "quick".
    :ivar rounds: how often each cell was run.
    :ivar parts: how many runs this was put together from.
    :ivar versions: of what was compared and what it ran on.
    :ivar commands: command lines by peer.
    :ivar not_run: what was left out, and why.
    """

    when: str
    profile: str
    rounds: int
    seconds: float = 0.0
    parts: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    not_run: list[dict[str, str]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Take a sample."""
        self.samples.append(sample)

    def leave_out(self, measure: str, peer: str, case: str, reason: str) -> None:
        """Note what was not run."""
        entry = {"measure": measure, "peer": peer, "case": case, "reason": reason}
        if entry not in self.not_run:
            self.not_run.append(entry)

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {"schema": SCHEMA, **dataclasses.asdict(self)}
        value["samples"] = [_rounded(sample) for sample in value["samples"]]
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(value, indent=1) + "\n")
        fresh.rename(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what :meth:`write` wrote.

        :raises PkernfsError: it is something else.
        """
        value = json.loads(path.read_text())
        if value.pop("schema", None) != SCHEMA:
            raise PkernfsError(f"{path} is not a {SCHEMA}")
        value["samples"] = [Sample(**sample) for sample in value["samples"]]
        return cls(**value)

    def merge(self, other: Results) -> None:
        """Take what another run of the same plan found: other measures, or other peers.

        :raises PkernfsError: the runs do not fit together.
        """
        if (self.profile, self.rounds) != (other.profile, other.rounds):
            raise PkernfsError("runs of different plans can't be put together")
        cells = {(s.measure, s.peer, s.case) for s in self.samples}
        if twice := cells & {(s.measure, s.peer, s.case) for s in other.samples}:
            raise PkernfsError(f"{sorted(twice)[0]} is in both runs")
        self.seconds += other.seconds
        self.parts += other.parts
        self.versions |= {k: v for k, v in other.versions.items() if k not in self.versions}
        for who, commands in other.commands.items():
            known = self.commands.setdefault(who, [])
            known += [command for command in commands if command not in known]
        self.samples += other.samples

    # What was found

    def cases(self, measure: str) -> list[str]:
        """The cases of a measure, in the order of their first sample."""
        return list(dict.fromkeys(s.case for s in self.samples if s.measure == measure))

    def peers(self, measure: str) -> list[str]:
        """The peers of a measure, in the order of their first sample."""
        return list(dict.fromkeys(s.peer for s in self.samples if s.measure == measure))

    def of(self, measure: str, peer: str, case: str | None = None) -> list[Sample]:
        """The samples of a cell."""
        return [
            s
            for s in self.samples
            if s.measure == measure and s.peer == peer and case in (None, s.case)
        ]

    def spread(self, measure: str, peer: str, case: str, name: str) -> Spread | None:
        """Median and range of a number; None when no run gave it."""
        samples = self.of(measure, peer, case)
        found = [s.values[name] for s in samples if not s.error and name in s.values]
        failed = sum(1 for s in samples if s.error)
        return spread(found, failed)

    def errors(self) -> list[Sample]:
        """The runs that failed."""
        return [sample for sample in self.samples if sample.error]

    def hopeless(self) -> list[tuple[str, str, str]]:
        """Cells that failed in every round."""
        cells = dict.fromkeys((s.measure, s.peer, s.case) for s in self.samples)
        return [cell for cell in cells if all(s.error for s in self.of(*cell))]


def spread(found: Iterable[float], failed: int = 0) -> Spread | None:
    """Median and range of numbers; None without any."""
    numbers = sorted(found)
    if not numbers:
        return None
    return Spread(statistics.median(numbers), numbers[0], numbers[-1], len(numbers), failed)


def slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Least squares: how much the second number grows with the first; None for one point."""
    pairs = list(points)
    if len({x for x, _ in pairs}) < 2:
        return None
    return statistics.linear_regression([x for x, _ in pairs], [y for _, y in pairs]).slope


def _rounded(sample: dict[str, Any]) -> dict[str, Any]:
    sample["values"] = {name: round(value, 6) for name, value in sample["values"].items()}
    return sample
