# SPDX-License-Identifier: GPL-2.0-only
"""``python -m bench``: the comparison (``make bench``), and its page."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from bench import page, plan
from bench.results import Results
from bench.run import Runner, machine_versions, say
from pkernfs.errors import PkernfsError
from pkernfs.lab.paths import build_root, source_tree


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, small, some minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each cell is run")
    parser.add_argument("--jobs", type=int, metavar="N", default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="only hosts of this name"
    )
    parser.add_argument("--go-on", action="store_true", help="with a run that was interrupted")
    parser.add_argument(
        "--page", type=Path, nargs="+", metavar="JSON", help="only write docs/ from these results"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of build/bench")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md, too")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, output: Path) -> Results:
    sizes = plan.QUICK if arguments.quick else plan.FULL
    if arguments.rounds:
        sizes = dataclasses.replace(sizes, rounds=arguments.rounds)
    acts = plan.acts(sizes)
    if arguments.only:
        acts = [act for act in acts if act.name in arguments.only]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    results = Results(when, "quick" if arguments.quick else "full", sizes.rounds)
    if arguments.go_on and output.exists():
        results = dataclasses.replace(Results.read(output), rounds=sizes.rounds, not_run=[])
    results.versions |= machine_versions()
    for entry in sizes.left_out:
        results.leave_out(*entry)
    Runner(results, acts, output).run(max(1, arguments.jobs))
    return results


def _page(files: list[Path]) -> int:
    """Write the page from the results of a run, or of its parts."""
    results, *others = (Results.read(path) for path in files)
    for other in others:
        results.merge(other)
    for act in plan.acts(plan.QUICK if results.profile == "quick" else plan.FULL):
        for cell in act.cells:
            if not results.of(cell.measure, cell.peer, cell.case):
                reason = "planned, but this run was ended before it"
                results.leave_out(cell.measure, cell.peer, cell.case, reason)
    page.write(results, source_tree() / "docs")
    return 0


def main() -> int:
    """Run the comparison; 1 when a cell failed in every round."""
    arguments = _arguments()
    if arguments.page:
        return _page(arguments.page)
    home = arguments.output or build_root() / "bench"
    try:
        results = _run(arguments, home / "results.json")
        page.write(results, home)
        if arguments.docs:
            page.write(results, source_tree() / "docs")
    except PkernfsError as error:
        print(f"error: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    for sample in results.errors():
        say(f"failed: round {sample.round} {sample.measure} {sample.peer} {sample.case}")
    say(f"results: {home / 'results.json'}, page: {home / 'benchmarks.md'}")
    return 1 if results.hopeless() else 0


if __name__ == "__main__":
    sys.exit(main())
