# SPDX-License-Identifier: GPL-2.0-only
"""Runs the cells round by round, peers in turn; says what it does and how long it will take."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.plan import Act, Cell
from bench.results import Results, Sample
from bench.stage import Stage
from pkernfs.errors import PkernfsError
from pkernfs.lab.emulator import emulator
from pkernfs.lab.image import host_image
from pkernfs.lab.paths import source_tree

#: From booting a host, and what a cell takes beyond its estimate on a machine like this.
_BOOT_S = 15.0


def say(text: str) -> None:
    """A line of progress."""
    print(f"bench: {text}", flush=True)


class Runner:
    """Runs acts, several at a time, into one set of results.

    :param output: where the results are written after each cell.
    """

    def __init__(self, results: Results, acts: Sequence[Act], output: Path) -> None:
        self._results = results
        self._acts = acts
        self._output = output
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._before = results.seconds
        self._total = sum(1 for _ in self._todo())
        self._done = 0
        self._planned = self._planned_done = 0.0

    def _todo(self) -> Iterator[Cell]:
        """Every run that has no sample yet."""
        for act in self._acts:
            yield from self._left(act)

    def _left(self, act: Act) -> Iterator[Cell]:
        for number in self._rounds():
            yield from (cell for cell in act.order(number - 1) if not self._has(cell, number))

    def _rounds(self) -> range:
        return range(1, self._results.rounds + 1)

    def _has(self, cell: Cell, number: int) -> bool:
        found = self._results.of(cell.measure, cell.peer, cell.case)
        return any(sample.round == number for sample in found)

    def estimate(self, jobs: int) -> float:
        """About how long all of it takes on two idle cores, seconds."""
        work = [_BOOT_S + sum(cell.seconds for cell in self._left(act)) for act in self._acts]
        return max(sum(work) / jobs, max(work, default=0.0))

    def run(self, jobs: int) -> None:
        """Run everything."""
        planned = self.estimate(jobs)
        self._planned = sum(cell.seconds for cell in self._todo())
        say(f"{self._total} runs in {len(self._acts)} hosts, about {planned / 60:.0f} min if idle")
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._act, self._acts))
        self._results.write(self._output)

    def _act(self, act: Act) -> None:
        with act.stage() as stage:
            for number in self._rounds():
                for cell in act.order(number - 1):
                    if not self._has(cell, number):
                        self._cell(stage, cell, number)

    def _cell(self, stage: Stage, cell: Cell, number: int) -> None:
        begin = time.monotonic()
        try:
            sample = Sample(cell.measure, cell.peer, cell.case, number, cell.run(stage))
            self._versions(stage)
        except PkernfsError as error:
            sample = Sample(cell.measure, cell.peer, cell.case, number, {}, error.what[-600:])
            stage.close()
        with self._lock:
            self._done += 1
            self._planned_done += cell.seconds
            self._results.add(sample)
            for who, commands in stage.commands.items():
                known = self._results.commands.setdefault(who, [])
                known += [command for command in commands if command not in known]
            self._results.seconds = round(self._before + time.monotonic() - self._started, 1)
            self._results.write(self._output)
            self._progress(cell, sample, number, time.monotonic() - begin)

    def _progress(self, cell: Cell, sample: Sample, number: int, took: float) -> None:
        passed = time.monotonic() - self._started
        left = passed * (self._planned / self._planned_done - 1)
        found = _brief(sample)
        say(
            f"[{self._done}/{self._total}] round {number} {cell}: {found}"
            f" (took {took:.0f} s, about {left / 60:.0f} min left)"
        )

    def _versions(self, stage: Stage) -> None:
        key = f"kernel of the host {stage.name!r}"
        if key in self._results.versions or not stage.running:
            return
        release = stage.host.sh("uname -r").check().stdout.strip()
        qemu = stage.host.sh("qemu-system-x86_64 -version").check().stdout.splitlines()[0]
        self._results.versions[key] = release
        self._results.versions["QEMU in the host"] = qemu.removeprefix("QEMU emulator version ")


def _brief(sample: Sample) -> str:
    if sample.error:
        return f"FAILED: {sample.error.strip().splitlines()[0][:160]}"
    names = [name for name in sample.values if f"work: {name}" in sample.values]
    shown = [n for n in ("blackout", "work") if n in sample.values] or names or [*sample.values]
    return ", ".join(f"{name} {sample.values[name]:.2f}" for name in shown[:4])


def machine_versions() -> dict[str, str]:
    """What the machine that emulates the hosts is."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    qemu = emulator(host_image()).version()
    commit = subprocess.run(
        ["git", "-C", str(source_tree()), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "pkernfs": commit or "not from a checkout",
        "QEMU that emulates the hosts": qemu.removeprefix("QEMU emulator version "),
        "processors": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
    }
