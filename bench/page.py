# SPDX-License-Identifier: GPL-2.0-only
"""``docs/benchmarks.md`` from the results: every figure on it comes from there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench import plots
from bench.figures import BARE, FLOORS, Figures
from bench.measures import memory
from bench.measures.blackout import PHASES
from bench.page_text import ABOUT, HEAD, REASONS, TAIL
from bench.results import Results, Spread
from pkernfs.host.ranges import parse_size
from pkernfs.lab.memory import GIB

NAME = "benchmarks"
_FLAT = 1.05


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def _cell(found: Spread | None, rounds: int = 0) -> str:
    """Median and range; failures are said, and when there were fewer runs than rounds."""
    if found is None:
        return "failed"
    text = _figure(found.median)
    if found.low != found.high:
        text += f" ({_figure(found.low)} to {_figure(found.high)})"
    if found.failed:
        text += f", {found.failed} failed"
    ran = found.count + found.failed
    return text + (f", {ran} run(s)" if ran < rounds else "")


def _named(peer: str) -> str:
    return f"{peer} (of its own kernel)" if peer in FLOORS else peer


def _size(text: str) -> str:
    return f"{text[:-1]} {text[-1]}iB" if text else ""


class Page:
    """The page and its pictures."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._figures = Figures(results)
        self.pictures: dict[str, str] = {}

    def text(self) -> str:
        """The page as Markdown."""
        parts = [
            HEAD.format(when=self._results.when, rounds=self._results.rounds).strip(),
            "",
            *self._summary(),
            *self._updates(),
            *self._phases(),
            *self._guests(),
            *self._devices(),
            *self._memory(),
            *self._store(),
            *self._files(),
            *self._left_out(),
            *self._failures(),
            *self._how(),
            TAIL.strip(),
        ]
        return "\n".join(parts).rstrip() + "\n"

    def _cell(self, found: Spread | None) -> str:
        return _cell(found, self._results.rounds)

    def _reasons(self, measure: str, winner: str) -> list[str]:
        text = REASONS.get((measure, winner))
        return [text.strip(), ""] if text and winner != "pkernfs" else []

    # Sections

    def _summary(self) -> list[str]:
        lines = ["## In short", ""]
        flat = self._figures.flatness()
        if flat:
            verdict = "holds" if flat[2] <= _FLAT else "does NOT hold"
            lines.append(
                f"- pkernfs, a guest of {_size(flat[1])} against one of {_size(flat[0])}:"
                f" {flat[2]:.3f} times the blackout. The aim, at most {_FLAT}, {verdict}."
            )
            own = self._figures.flatness(without="leave")
            if own:
                lines[-1] += f" Without the phase *leave*, which varies by chance: {own[2]:.3f}."
        for case in dict.fromkeys(case for _, case in self._figures.update_cells()):
            ranked = sorted(
                (ratio, peer)
                for peer, c in self._figures.update_cells()
                if c == case and (ratio := self._figures.ratio(peer, case)) is not None
            )
            if len(ranked) > 1:
                words = ", ".join(f"{_named(peer)} {ratio:.2f}" for ratio, peer in ranked)
                lines.append(f"- Blackout of a guest of {_size(case)}, in bare kexecs: {words}.")
                lines[-1] += self._close(case, ranked[0][1])
        return [*lines, ""]

    def _close(self, case: str, winner: str) -> str:
        """What to know about a peer that is ahead of pkernfs by less than runs differ."""
        ours, theirs = (
            self._results.spread("blackout", peer, case, "work") for peer in ("pkernfs", winner)
        )
        own, other = (self._figures.own(peer, case) for peer in ("pkernfs", winner))
        # With a floor of its own its work can't be held against ours.
        if winner == "pkernfs" or winner in FLOORS or not (ours and theirs and own and other):
            return ""
        if ours.low > theirs.high or own.median > other.median:
            return ""
        return " " + ABOUT["close"].format(peer=winner)

    def _updates(self) -> list[str]:
        if not self._figures.update_cells():
            return []
        lines = ["## Blackout by size of the guest", "", *self._floors()]
        rows = []
        for peer, case in self._figures.update_cells():
            ratio = self._figures.ratio(peer, case)
            rows.append(
                [
                    peer,
                    _size(case),
                    f"**{ratio:.2f}**" if ratio else "failed",
                    self._cell(self._figures.own(peer, case)),
                    self._cell(self._results.spread("blackout", peer, case, "work")),
                    self._cell(self._results.spread("blackout", peer, case, "blackout")),
                ]
            )
        head = ["", "guest", "ratio to the bare kexec", "save and restore, s of work"]
        head += ["work, s", "time, s"]
        lines += _table(head, rows)
        if any(peer in FLOORS for peer, _ in self._figures.update_cells()):
            lines += [ABOUT["own floor"], ""]
        flat = self._figures.flatness()
        if flat:
            lines += [ABOUT["large"], ""]
        slopes = self._figures.slopes()
        if slopes:
            lines += ["What each GiB of guest memory adds, in bare kexecs:", ""]
            lines += _table(["", "per GiB"], [[p, f"{v:z.4f}"] for p, v in slopes.items()])
        lines += self._ratio_picture()
        smallest = min((case for _, case in self._figures.update_cells()), key=parse_size)
        ranked = [
            (found.median, peer)
            for peer, case in self._figures.update_cells()
            if case == smallest and (found := self._figures.own(peer, case))
        ]
        if not ranked:
            return lines
        winner = min(ranked)[1]
        ours, theirs = (self._figures.own(peer, smallest) for peer in ("pkernfs", winner))
        if winner != "pkernfs" and ours and theirs and ours.low <= theirs.high:
            lines += [ABOUT["within"].format(peer=winner, size=_size(smallest)), ""]
        return lines + self._reasons("blackout", winner)

    def _floors(self) -> list[str]:
        lines = []
        for peer in (BARE, "bare kexec, LUO's kernel"):
            found = self._results.spread("blackout", peer, "", "work")
            if found:
                time = self._results.spread("blackout", peer, "", "blackout")
                lines.append(f"- {peer}: work {self._cell(found)} s, time {self._cell(time)} s")
        return [*lines, ""] if lines else []

    def _ratio_picture(self) -> list[str]:
        series: dict[str, list[tuple[float, float]]] = {}
        names: dict[float, str] = {}
        for peer, case in self._figures.update_cells():
            ratio = self._figures.ratio(peer, case)
            if ratio is not None:
                series.setdefault(peer, []).append((float(parse_size(case)), ratio))
                names[float(parse_size(case))] = _size(case)
        if not names:
            return []
        title = "Blackout by size of the guest's memory"
        return self._picture("blackout", title, plots.lines(title, "bare kexecs", series, names))

    def _picture(self, name: str, title: str, svg: str) -> list[str]:
        self.pictures[f"{NAME}-{name}.svg"] = svg
        return [f"![{title}]({NAME}-{name}.svg)", ""]

    def _phases(self) -> list[str]:
        rows = {}
        for peer, case in self._figures.update_cells():
            parts = {}
            for name in PHASES:
                value = self._figures.median("blackout", peer, case, f"work: {name}")
                if value is not None:
                    parts[name] = value
            if parts:
                rows[f"{peer}, {_size(case)}"] = parts
        for peer in (BARE, "bare kexec, LUO's kernel"):
            found = {n: self._figures.median("blackout", peer, "", f"work: {n}") for n in PHASES}
            if any(found.values()):
                rows[peer] = {n: v for n, v in found.items() if v is not None}
        if not rows:
            return []
        title = "Where the blackout goes, seconds of work"
        lines = ["## Where the time goes", "", ABOUT["phases"], ""]
        table = [
            [label, *(_figure(parts[n]) if n in parts else "" for n in PHASES)]
            for label, parts in rows.items()
        ]
        lines += _table(["work, s (median)", *PHASES], table)
        return lines + self._picture("phases", title, plots.stacks(title, "s", rows))

    def _guests(self) -> list[str]:
        cases = self._results.cases("guests")
        if not cases:
            return []
        one = self._figures.median("guests", "pkernfs", cases[0], "work")
        rows = []
        for case in cases:
            work = self._results.spread("guests", "pkernfs", case, "work")
            ratio = f"**{work.median / one:.2f}**" if work and one else "failed"
            time = self._results.spread("guests", "pkernfs", case, "blackout")
            number = self._results.spread("guests", "pkernfs", case, "guests")
            label = case if case.isdigit() or not number else f"{case}: {number.median:.0f}"
            rows.append([label, ratio, self._cell(work), self._cell(time)])
        head = ["guests", f"to {cases[0]} guest", "work until the last runs, s", "time, s"]
        return ["## Number of guests", "", ABOUT["guests"], "", *_table(head, rows)]

    def _devices(self) -> list[str]:
        rows = []
        for peer in self._results.peers("device"):
            get = self._figures.getter("device", peer, "")
            rows.append(
                [peer, self._cell(get("sent")), self._cell(get("lost")), self._cell(get("silence"))]
            )
        if not rows:
            return []
        head = ["", "frames sent", "frames lost", "longest time without one landing, s"]
        return ["## An assigned device", "", ABOUT["device"], "", *_table(head, rows)]

    def _memory(self) -> list[str]:
        order = [kind.name for kind in (*memory.KINDS, *memory.OPTIMIZED)]
        found = self._results.peers("memory")
        peers = [name for name in order if name in found]
        if not peers:
            return []
        rows = []
        for peer in peers:
            get = self._figures.getter("memory", peer, "")
            beside = [
                self._figures.median("memory", peer, "", n)
                for n in ("struct_pages", "slab", "tables")
            ]
            whole = [value for value in beside if value is not None]
            rows.append(
                [
                    peer,
                    self._cell(get("work: allocate")),
                    self._cell(get("work: touch")),
                    self._cell(get("faults")),
                    *("failed" if v is None else _figure(v / 1024) for v in beside),
                    f"{sum(whole) / GIB:.4%}" if len(whole) == len(beside) else "failed",
                ]
            )
        head = ["1 GiB of guest memory", "allocate, s of work", "first touch, s of work", "faults"]
        head += ["struct pages, KiB", "slab, KiB", "page tables, KiB", "beside, in all"]
        lines = ["## Memory", "", ABOUT["memory"], "", *_table(head, rows)]
        best = self._figures.best("memory", ("work: allocate", "work: touch"))
        return lines + (self._reasons("memory", best) if best else [])

    def _store(self) -> list[str]:
        cases = self._results.cases("store")
        rows = []
        for case in cases:
            get = self._figures.getter("store", "pkernfs", case)
            taken, total = get("metadata"), get("range")
            share = f"{taken.median / total.median:.4%}" if taken and total else "failed"
            rows.append(
                [
                    f"{int(case):,}",
                    self._cell(get("work: mount")),
                    self._cell(get("work: check")),
                    share,
                ]
            )
        if not rows:
            return []
        total = self._results.spread("store", "pkernfs", cases[0], "range")
        size = f"{total.median / GIB:,.0f} GiB" if total else "a range"
        head = ["files", "mount, s of work", "`pkernfs check`, s of work", "metadata of the range"]
        return [
            f"## Mounting and checking a store of {size}",
            "",
            ABOUT["store"],
            "",
            *_table(head, rows),
        ]

    def _files(self) -> list[str]:
        lines: list[str] = []
        names = {
            "metadata": ("create", "truncate", "unlink"),
            "sequential": ("write", "read"),
        }
        for measure, operations in names.items():
            rows = []
            for peer in self._results.peers(measure):
                found = [self._results.spread(measure, peer, "", f"work: {n}") for n in operations]
                rows.append([peer, *(self._cell(entry) for entry in found)])
            if not rows:
                continue
            head = [ABOUT[f"{measure} head"], *(f"{name}, s of work" for name in operations)]
            lines += _table(head, rows)
            best = self._figures.best(measure, tuple(f"work: {n}" for n in operations))
            lines += self._reasons(measure, best) if best else []
        return ["## Operations on files", "", ABOUT["files"], "", *lines] if lines else []

    def _left_out(self) -> list[str]:
        rows = [[e["measure"], e["peer"], e["case"], e["reason"]] for e in self._results.not_run]
        if not rows:
            return []
        return ["## Not run", "", *_table(["measure", "by", "at", "why"], rows)]

    def _failures(self) -> list[str]:
        lines = ["## Runs that failed", ""]
        for sample in self._results.errors():
            what = " ".join(filter(None, (sample.measure, sample.peer, sample.case)))
            said = sample.error.strip().splitlines()[0][:300]
            lines.append(f"- {what}, round {sample.round}: {said}")
        if len(lines) == 2:
            lines.append("None.")
        return [*lines, ""]

    def _how(self) -> list[str]:
        lines = ["## How it was done", ""]
        present = dict.fromkeys(s.peer for s in self._results.samples if s.measure == "blackout")
        lines += [f"- **{peer}**: {ABOUT[peer]}." for peer in present]
        lines += ["", *_table(["", "version"], [[k, v] for k, v in self._results.versions.items()])]
        samples = len(self._results.samples)
        minutes = self._results.seconds / 60
        lines += [f"{samples} runs in {minutes:.0f} minutes.", ""]
        if self._results.parts > 1:
            lines += [ABOUT["parts"].format(parts=self._results.parts), ""]
        lines += ["Command lines, by peer:", ""]
        for who, commands in self._results.commands.items():
            lines += [f"<details><summary>{who}</summary>", "", "```"]
            lines += [line for command in commands for line in command.splitlines()]
            lines += ["```", "", "</details>", ""]
        return lines


def write(results: Results, folder: Path) -> None:
    """Write the page, its pictures and the results that it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(results)
    (folder / f"{NAME}.md").write_text(page.text())
    for name, svg in page.pictures.items():
        (folder / name).write_text(svg + "\n")
    results.write(folder / f"{NAME}.json")
