# SPDX-License-Identifier: GPL-2.0-only
"""Figures that are made of several samples: ratios to the floor, slopes, who is ahead."""

from __future__ import annotations

from collections.abc import Callable

from bench.page_text import ABOUT
from bench.results import Results, Spread, slope, spread
from pkernfs.host.ranges import parse_size
from pkernfs.lab.memory import GIB

BARE = "bare kexec"
#: Peers that have another floor than that.
FLOORS = {"LUO memfd": "bare kexec, LUO's kernel"}


class Figures:
    """What the results of a run say."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def median(self, measure: str, peer: str, case: str, name: str) -> float | None:
        """Median of a number; None when no run gave it."""
        found = self._results.spread(measure, peer, case, name)
        return found.median if found else None

    def getter(self, measure: str, peer: str, case: str) -> Callable[[str], Spread | None]:
        """Median and range by name, of one cell."""
        return lambda name: self._results.spread(measure, peer, case, name)

    def floor(self, peer: str, name: str = "work") -> float | None:
        """The bare kexec of the peer's kernel, seconds."""
        return self.median("blackout", FLOORS.get(peer, BARE), "", name)

    def ratio(self, peer: str, case: str, name: str = "work") -> float | None:
        """Blackout to the bare kexec of the same kernel, by work."""
        blackout, floor = self.median("blackout", peer, case, name), self.floor(peer, name)
        return blackout / floor if blackout and floor else None

    def update_cells(self) -> list[tuple[str, str]]:
        """Peer and size of the guest, in the order of the page."""
        pairs = dict.fromkeys(
            (s.peer, s.case) for s in self._results.samples if s.measure == "blackout" and s.case
        )
        order = list(ABOUT)
        return sorted(pairs, key=lambda pair: (order.index(pair[0]), parse_size(pair[1])))

    def flatness(self, without: str = "") -> tuple[str, str, float] | None:
        """pkernfs: the smallest and the largest guest, and how many times longer it takes.

        :param without: a phase that is not counted.
        """
        cases = [case for peer, case in self.update_cells() if peer == "pkernfs"]
        if len(cases) < 2:
            return None
        first, last = (
            spread(
                s.values["work"] - s.values.get(f"work: {without}", 0.0)
                for s in self._results.of("blackout", "pkernfs", case)
                if not s.error
            )
            for case in (cases[0], cases[-1])
        )
        return (cases[0], cases[-1], last.median / first.median) if first and last else None

    def slopes(self) -> dict[str, float]:
        """How much a GiB of guest memory adds to the blackout, in bare kexecs."""
        found = {}
        for peer in dict.fromkeys(peer for peer, _ in self.update_cells()):
            points = []
            for name, case in self.update_cells():
                ratio = self.ratio(name, case)
                if name == peer and ratio is not None:
                    points.append((parse_size(case) / GIB, ratio))
            if (value := slope(points)) is not None:
                found[peer] = value
        return found

    def own(self, peer: str, case: str) -> Spread | None:
        """What is the peer's own, not the kernel's or the host's: saving and restoring."""
        samples = self._results.of("blackout", peer, case)
        names = ("work: save", "work: restore")
        good = [s for s in samples if all(name in s.values for name in names)]
        failed = len(samples) - len(good)
        return spread([sum(s.values[name] for name in names) for s in good], failed)

    def best(self, measure: str, names: tuple[str, ...]) -> str | None:
        """The peer with the least of these numbers together."""
        sums = {}
        for peer in self._results.peers(measure):
            values = [self.median(measure, peer, "", name) for name in names]
            if all(value is not None for value in values):
                sums[peer] = sum(value for value in values if value is not None)
        return min(sums, key=lambda peer: sums[peer]) if sums else None
