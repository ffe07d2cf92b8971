# SPDX-License-Identifier: GPL-2.0-only
"""How blackouts become multiples of a bare kexec, and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ratios import Bare, Results, Update, _between
from bench.ratios_page import page
from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Line

_PHASES = {"pause": (1.0, 1.1), "kernel": (1.5, 11.5), "init": (11.5, 13.0), "start": (13.5, 14.5)}


def _bare(seconds: float) -> Bare:
    return Bare(seconds, seconds / 2)


def _update(guests: int, ram: int, *blackouts: float) -> Update:
    return Update(guests, ram, blackouts, tuple(it / 2 for it in blackouts), 10.0, 5.0, _PHASES)


def _results(part: str, *steps: Bare | Update) -> Results:
    versions = {
        "kernel": "7.3.4",
        "host's QEMU": "QEMU 11.1.3",
        "emulator": "QEMU 7.2",
        "machine": "x86_64, 2 processors",
        "date": "2026-01-02 03:04 UTC",
    }
    return Results(part, 1, "python -m bench.ratios", list(steps), versions, [0.5, 1.25])


def test_an_update_is_compared_with_the_shortest_bare_kexec() -> None:
    steps: list[Bare | Update] = [
        _bare(12.0),
        _update(1, 1, 12.0),
        _bare(10.0),
        _update(2, 1, 15.0, 30.0),
        _bare(38.0),
    ]
    one, two = _results("guests", *steps).to_json()["ratios"]
    assert (one["floor_s"], one["ratio"], one["first_ratio"]) == (10.0, 1.2, 1.2)
    assert (two["floor_s"], two["ratio"], two["first_ratio"]) == (10.0, 3.0, 1.5)
    assert one["outside_kernel"] == {"pause": 0.1, "init": 1.5, "start": 1.0}


def test_the_time_between_two_lines() -> None:
    texts = ["first", "jump", "something", "jump", "first", "first"]
    lines = [Line(float(number), text) for number, text in enumerate(texts)]
    assert _between(lines, "jump", "first") == (1.0, 4.0)
    with pytest.raises(PkernfsError, match="no 'other'"):
        _between(lines, "other", "first")


def test_the_page_has_what_was_measured(tmp_path: Path) -> None:
    guests = _results("guests", _bare(10.0), _update(1, 32 << 20, 13.37), _bare(10.0))
    small, large = _update(1, 256 << 20, 20.0), _update(1, 64 << 30, 21.0)
    size = _results("size", _bare(10.0), small, _bare(10.0), large, _bare(10.0))
    for results in (guests, size):
        file = tmp_path / f"ratios-{results.part}.json"
        file.write_text(json.dumps(results.to_json()))
    text = page(tmp_path)
    assert (
        "| 1 | 10.00 s | 10.00 s | 13.37 s | 13.37 s | 1.34 | 1.34 | 1.34 | 1.00 | 0.34 |" in text
    )
    assert "- 1 guest(s): 1.34, NOT met" in text
    assert "| 65536 MiB | 10.00 s | 21.00 s | 2.10 | 2.10 |" in text
    assert "medians: 1.050. Target, within 10 %: met." in text
    assert "2026-01-02" in text


def test_a_page_of_nothing_says_how_it_is_made(tmp_path: Path) -> None:
    assert "bench.ratios --docs" in page(tmp_path)
