# SPDX-License-Identifier: GPL-2.0-only
"""The page has what the results say, failures and winners included, and nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import page_text
from bench.figures import Figures
from bench.page import NAME, Page, write
from bench.plots import lines, stacks, step_of
from bench.results import Results, Sample

_DOCS = Path(__file__).parents[3] / "docs"
_PARTS = ("save", "leave", "kernel", "user space", "restore")


def _update(peer: str, case: str, number: int, work: float) -> Sample:
    values = {"work": work, "blackout": work * 2}
    values |= {f"work: {name}": work / 5 for name in _PARTS}
    return Sample("blackout", peer, case, number, values)


def _results() -> Results:
    samples = []
    for number in (1, 2, 3):
        samples += [
            _update("bare kexec", "", number, 4.0 + number),
            _update("pkernfs", "256M", number, 12.0 + number),
            _update("pkernfs", "1T", number, 12.0 + number),
            _update("fsdax", "256M", number, 9.0 + number),
            Sample("memory", "tmpfs", "", number, {"work: allocate": 1.0, "work: touch": 0.5}),
        ]
    samples.append(Sample("blackout", "fsdax", "16G", 1, {}, "QEMU has ended: no memory\nmore"))
    results = Results("2026-01-01 00:00 UTC", "full", 3, 600.0, samples=samples)
    results.leave_out("blackout", "save to file", "16G", "no room for it")
    return results


def test_ratios_are_medians_of_work_against_the_floor() -> None:
    results = _results()
    figures = Figures(results)
    assert figures.ratio("pkernfs", "256M") == pytest.approx(14 / 6)
    assert figures.ratio("fsdax", "16G") is None
    assert figures.flatness() == ("256M", "1T", 1.0)
    assert figures.slopes()["pkernfs"] == pytest.approx(0)
    slow = results.of("blackout", "pkernfs", "1T")
    for sample in slow:
        sample.values["work"] += 7.0
        sample.values["work: leave"] += 7.0
    assert figures.flatness() == ("256M", "1T", 1.5)
    own = figures.flatness(without="leave")
    assert own is not None
    assert own[2] == pytest.approx(1.0)


def test_a_lead_within_the_spread_is_said_to_be_one() -> None:
    results = _results()
    near = [_update("fsdax", "1T", number, 11.9 + number) for number in (1, 2, 3)]
    for sample in near:
        sample.values["work: restore"] += 1.0
    results.samples += near
    # Here the lead is as small, but it comes from what the two do themselves.
    results.samples += [_update("pkernfs", "4G", number, 12.0 + number) for number in (1, 2, 3)]
    results.samples += [_update("fsdax", "4G", number, 11.9 + number) for number in (1, 2, 3)]
    text = Page(results).text()
    assert "1 TiB, in bare kexecs: fsdax 2.32, pkernfs 2.33. The runs of pkernfs and of" in text
    assert "256 MiB, in bare kexecs: fsdax 1.83, pkernfs 2.33.\n" in text
    assert "4 GiB, in bare kexecs: fsdax 2.32, pkernfs 2.33.\n" in text


def test_failures_and_what_was_left_out_are_on_the_page() -> None:
    text = Page(_results()).text()
    assert "- blackout fsdax 16G, round 1: QEMU has ended: no memory" in text
    assert "| fsdax | 16 GiB | failed | failed | failed | failed |" in text
    assert "no room for it" in text
    assert "The aim, at most 1.05, holds." in text


def test_fewer_runs_than_rounds_are_said() -> None:
    results = _results()
    results.samples.append(_update("fsdax", "4G", 1, 9.0))
    assert "| fsdax | 4 GiB | **1.50** | 3.60, 1 run(s) | 9.00, 1 run(s) |" in Page(results).text()


def test_a_peer_that_wins_is_shown_winning_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(page_text.REASONS, ("blackout", "fsdax"), "Because it is fast.")
    text = Page(_results()).text()
    assert "in bare kexecs: fsdax 1.83, pkernfs 2.33." in text
    assert "Because it is fast." in text


def test_without_anything_measured_there_is_still_a_page() -> None:
    text = Page(Results("today", "quick", 1)).text()
    assert "## Blackout" not in text
    assert "None." in text


def test_pictures_are_xml_and_have_every_row() -> None:
    bars = stacks("T & t", "s", {"a <b>": {"x": 1.0, "y": 2.0}, "c": {"x": 4.0, "y": 0.0}})
    curve = lines("L", "r", {"p": [(1, 1.0), (4, 3.0)]}, {1: "one", 4: "four"})
    for svg in (bars, curve):
        assert ET.fromstring(svg).tag.endswith("svg")
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="18"', bars)]
    assert widths[0] * 2 == pytest.approx(widths[1], rel=0.01)
    assert widths[2] == pytest.approx(widths[0] + widths[1] + widths[0], rel=0.01)
    assert step_of(6) == 1
    assert step_of(70) == 20


def test_the_committed_page_is_what_its_results_give(tmp_path: Path) -> None:
    source = _DOCS / f"{NAME}.json"
    if not source.exists():
        pytest.skip("no results are committed yet")
    write(Results.read(source), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in _DOCS.glob(f"{NAME}*")}
    for name in names:
        assert (tmp_path / name).read_text() == (_DOCS / name).read_text(), name
