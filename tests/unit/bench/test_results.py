# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of samples: medians, failures, slopes, and the file they are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.meter import interpolate
from bench.plan import FULL, QUICK, Act, Cell, acts
from bench.results import Results, Sample, slope, spread
from bench.run import Runner
from bench.stage import Room, Stage
from pkernfs.errors import PkernfsError


def _results(*samples: Sample) -> Results:
    return Results("today", "full", 3, samples=list(samples))


def _sample(number: int, value: float | None) -> Sample:
    values = {} if value is None else {"work": value}
    return Sample("blackout", "pkernfs", "256M", number, values, "broke" if value is None else "")


def test_a_failed_run_is_counted_and_has_no_part_in_the_median() -> None:
    results = _results(_sample(1, 3.0), _sample(2, None), _sample(3, 1.0), _sample(4, 2.0))
    found = results.spread("blackout", "pkernfs", "256M", "work")
    assert found is not None
    assert (found.median, found.low, found.high, found.count, found.failed) == (2, 1, 3, 3, 1)
    assert [sample.round for sample in results.errors()] == [2]
    assert results.hopeless() == []


def test_a_cell_that_never_worked_makes_the_run_fail() -> None:
    results = _results(_sample(1, None), _sample(2, None))
    assert results.spread("blackout", "pkernfs", "256M", "work") is None
    assert results.hopeless() == [("blackout", "pkernfs", "256M")]


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    results = _results(_sample(1, 1.25), _sample(2, None))
    results.leave_out("blackout", "pkernfs", "1T", "no room")
    results.leave_out("blackout", "pkernfs", "1T", "no room")
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    assert len(results.not_run) == 1
    (tmp_path / "other.json").write_text('{"schema": "else"}')
    with pytest.raises(PkernfsError, match="is not a pkernfs-bench/1"):
        Results.read(tmp_path / "other.json")


def test_parts_of_a_run_are_put_together_once() -> None:
    first, second = (
        _results(_sample(1, 1.0)),
        _results(Sample("store", "pkernfs", "1", 1, {"a": 1})),
    )
    second.commands["pkernfs"] = ["mount"]
    first.merge(second)
    assert [s.measure for s in first.samples] == ["blackout", "store"]
    assert first.commands == {"pkernfs": ["mount"]}
    assert first.parts == 2
    with pytest.raises(PkernfsError, match="is in both runs"):
        first.merge(second)
    with pytest.raises(PkernfsError, match="different plans"):
        first.merge(Results("today", "quick", 1))


def test_slopes() -> None:
    assert slope([(1, 5), (3, 9)]) == pytest.approx(2)
    assert slope([(1, 5), (1, 6)]) is None
    assert spread([]) is None


def test_work_is_taken_from_the_line_between_its_neighbours() -> None:
    times, work = [10.0, 11.0, 13.0], [0.0, 1.0, 2.0]
    assert interpolate(times, work, 10.5) == pytest.approx(0.5)
    assert interpolate(times, work, 12.0) == pytest.approx(1.5)
    assert interpolate(times, work, 9.0) == 0.0
    assert interpolate(times, work, 14.0) == 2.0


def test_each_round_begins_with_another_cell() -> None:
    cells = tuple(Cell("m", name, "", 1, lambda stage: {}) for name in "abc")
    act = Act("x", lambda: Stage("x", Room()), cells)
    firsts = ["".join(cell.peer for cell in act.order(number)) for number in range(4)]
    assert firsts == ["abc", "bca", "cab", "abc"]


def test_a_cell_of_the_first_round_is_not_in_the_others() -> None:
    usual, once = (Cell("m", name, "", 1, lambda stage: {}, name == "o") for name in "uo")
    act = Act("x", lambda: Stage("x", Room()), (usual, once))
    assert [[cell.peer for cell in act.order(number)] for number in range(3)] == [
        ["u", "o"],
        ["u"],
        ["u"],
    ]
    assert Act("x", lambda: Stage("x", Room()), (once,)).order(1) == ()
    booted_once = Runner(Results("today", "full", 3), [act], Path("unused")).estimate(1)
    assert booted_once == 15.0 + 4


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_no_cell_is_planned_twice(sizes: object) -> None:
    assert sizes in (FULL, QUICK)
    found = [str(cell) for act in acts(FULL if sizes is FULL else QUICK) for cell in act.cells]
    assert len(found) == len(set(found))
    assert "blackout bare kexec" in found


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    ran: list[str] = []

    def cell(name: str) -> Cell:
        def run(stage: Stage) -> dict[str, float]:
            ran.append(name)
            if name == "broken":
                raise PkernfsError("it broke")
            return {"work": 1.0}

        return Cell("blackout", name, "", 1, run)

    act = Act("x", lambda: Stage("x", Room()), (cell("good"), cell("broken")))
    results = Results("today", "full", 2, samples=[Sample("blackout", "good", "", 1, {"work": 2})])
    Runner(results, [act], tmp_path / "results.json").run(1)
    assert sorted(ran) == ["broken", "broken", "good"]
    assert Results.read(tmp_path / "results.json") == results
    assert results.hopeless() == [("blackout", "broken", "")]
    assert {(s.peer, s.round) for s in results.samples if not s.error} == {("good", 1), ("good", 2)}
