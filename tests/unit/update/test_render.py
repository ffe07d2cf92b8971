# SPDX-License-Identifier: GPL-2.0-only
"""Reports as text, picture and page: what is drawn is where the times say, whatever the names."""

from __future__ import annotations

import copy
import html.parser
import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.update.render import html as page
from pkernfs.update.render import svg, text
from pkernfs.update.render.axis import CUT_WIDTH, Axis
from pkernfs.update.render.view import ReportView

_NS = "{http://www.w3.org/2000/svg}"
_EXACT = 0.02  # of the numbers in the picture, pixels


def _spans(**phases: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", " "), "start_s": start, "end_s": end}
        for name, (start, end) in phases.items()
    ]


def _guest(name: str, late: float = 0.0) -> dict[str, Any]:
    return {
        "name": name,
        "ram_bytes": 256 << 20,
        "state_bytes": 323 << 10,
        "survived": True,
        "error": "",
        "blackout_s": 12.9 + late,
        "stopped_s": 3.1,
        "running_s": 16.0 + late,
        "phases": _spans(
            pause=(3.0, 3.1),
            save=(3.1, 3.5),
            start=(14.0, 15.0 + late),
            load_state=(15.0 + late, 16.0 + late),
            run=(16.0 + late, 16.0 + late),
        ),
    }


def _report(*guests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": "pkernfs-report/1",
        "update": "20261122-130535-c587",
        "outcome": "completed",
        "text": "",
        "host": {"kernel_before": "6.12.1", "kernel_after": "7.3.4"},
        "vms": list(guests),
        "devices": [],
        "store": "clean",
        "phases": _spans(
            check=(0.0, 1.0), load=(1.0, 3.0), hand_over=(3.5, 4.0), kernel=(4.0, 13.0),
            interpreter=(13.0, 13.5), mount=(13.5, 13.6), some_new_phase=(13.6, 13.7),
        ),
        "clock": {"meaning": "the time stamp counter", "exact_to_s": 0.01},
        **more,
    }  # fmt: skip


def _rects(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What is drawn: class, edges, and what the pointer is told there."""
    root = ElementTree.fromstring(svg.render(ReportView.of(report)).encode())
    found = []
    for rect in root.iter(f"{_NS}rect"):
        x, y, width, height = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        title = rect.find(f"{_NS}title")
        found.append(
            {
                "kind": rect.attrib["class"],
                "left": x,
                "right": x + width,
                "top": y,
                "bottom": y + height,
                "width": width,
                "title": title.text if title is not None else None,
            }
        )
    return found


def _bars(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """All of a kind but for the one in the legend, which has no title."""
    return [rect for rect in _rects(report) if rect["kind"] == kind and rect["title"]]


def test_every_bar_is_where_its_times_are() -> None:
    report = _report(_guest("a"), _guest("b", late=2.0))
    (kernel,) = _bars(report, "kernel")
    scale = kernel["width"] / 9.0
    zero = kernel["left"] - 4.0 * scale
    wanted: dict[str, list[tuple[float, float]]] = {
        "before": [(0, 1), (1, 3)],
        "over": [(3.5, 4)],
        "after": [(13, 13.5), (13.5, 13.6), (13.6, 13.7)],
        "pause": [(3.0, 3.1)] * 2,
        "save": [(3.1, 3.5)] * 2,
        "start": [(14, 15), (14, 17)],
        "state": [(15, 16), (17, 18)],
        "dark": [(3.1, 16), (3.1, 18)],
    }
    for kind, times in wanted.items():
        drawn = _bars(report, kind)
        assert len(drawn) == len(times), kind
        for bar, (start, end) in zip(drawn, times, strict=True):
            assert bar["left"] == pytest.approx(zero + start * scale, abs=_EXACT)
            assert bar["right"] == pytest.approx(zero + end * scale, abs=_EXACT)


def test_guests_run_before_and_after_their_blackout_and_not_in_it() -> None:
    report = _report(_guest("a"))
    (dark,) = _bars(report, "dark")
    before, after = _bars(report, "on")
    assert before["right"] == pytest.approx(dark["left"], abs=_EXACT)
    assert after["left"] == pytest.approx(dark["right"], abs=_EXACT)
    assert dark["title"] == "a: blackout 12.900 s"
    for kind in ("pause", "save", "start", "state"):
        for bar in _bars(report, kind):
            assert dark["top"] < bar["top"] < bar["bottom"] < dark["bottom"]


def test_rows_do_not_overlap() -> None:
    report = _report(*(_guest(f"g{number}") for number in range(12)))
    boxes = sorted(_bars(report, "dark"), key=lambda bar: float(bar["top"]))
    assert len(boxes) == 12
    for above, below in itertools.pairwise(boxes):
        assert above["bottom"] < below["top"]


def test_a_guest_that_does_not_run_is_dark_to_the_end() -> None:
    lost = {**_guest("a"), "survived": False, "running_s": None, "blackout_s": None}
    report = _report({**lost, "error": "QEMU did not start"}, _guest("b"))
    (bar,) = _bars(report, "lost")
    assert bar["title"] == "a: QEMU did not start"
    assert bar["right"] == pytest.approx(svg.WIDTH - 16, abs=_EXACT)
    assert len(_bars(report, "dark")) == 1
    assert "does not run" in svg.render(ReportView.of(report))
    assert "DOES NOT RUN: QEMU did not start" in text.render(ReportView.of(report))
    assert "2 guests, 1 of them running" in page.render(ReportView.of(report))


def test_a_guest_without_kvm_is_said_to_be_emulated() -> None:
    guests = [
        _guest("a") | {"accelerator": "tcg"},
        _guest("b") | {"accelerator": "kvm"},
        _guest("c"),
    ]
    said = text.render(ReportView.of(_report(*guests)))
    assert said.count("runs, emulated") == 1


def test_a_guest_that_was_not_paused_just_runs() -> None:
    quiet = {**_guest("a"), "stopped_s": None, "running_s": None, "blackout_s": None, "phases": []}
    report = _report(quiet)
    assert not _bars(report, "dark") + _bars(report, "lost")
    (bar,) = _bars(report, "on")
    assert bar["width"] > 500


def test_devices_have_a_row_each() -> None:
    seen = {
        "bdf": "0000:01:00.0", "model": "e1000e", "frames_sent": 9, "frames_landed": 9,
        "frames_landed_without_kernel": 3, "problems": [],
    }  # fmt: skip
    own = {"bdf": "0000:02:00.0", "model": "8086:10d3", "state": "inherited", "adopted": 1}
    away = {"bdf": "0000:00:11.0", "model": "edu", "dma_landed": False, "faults": 1}
    report = _report(
        _guest("a"), devices=[seen, {**own, "switch_us": 172.4, "reason": ""}], cut_off=[away]
    )
    whole, other, cut = _bars(report, "device")
    (kernel,) = _bars(report, "kernel")
    assert "9 of 9 frames landed, 3 of them while no kernel ran" in whole["title"]
    assert "adopted, switched in 172 us" in other["title"]
    assert whole["right"] > kernel["right"]
    assert cut["right"] == pytest.approx(kernel["left"], abs=_EXACT)
    assert "cut off" in cut["title"]
    seen["frames_landed"] = 8
    lost, *_ = _bars(report, "device")
    assert lost["right"] == pytest.approx(kernel["left"], abs=_EXACT)


def test_a_retry_an_hour_later_leaves_the_rest_readable() -> None:
    late = _guest("a")
    for span in late["phases"][2:]:
        span["start_s"] += 3600
        span["end_s"] += 3600
    late |= {"running_s": 3616.0, "blackout_s": 3612.9}
    report = _report(late, _guest("b"))
    (kernel,) = _bars(report, "kernel")
    assert kernel["width"] > 300
    # The same scale before and after the cut.
    for kind in ("start", "state"):
        first, second = _bars(report, kind)
        assert first["width"] == pytest.approx(second["width"], abs=_EXACT)
    assert "60 min" in svg.render(ReportView.of(report))


_TIMES = st.floats(0, 5000, allow_nan=False)
_INTERVALS = st.lists(st.tuples(_TIMES, _TIMES).map(lambda pair: (min(pair), max(pair))))


@settings(deadline=None)
@given(_INTERVALS, st.floats(0, 300), st.floats(200, 2000))
def test_the_axis_is_monotonic_to_scale_and_in_its_bounds(
    intervals: list[tuple[float, float]], left: float, width: float
) -> None:
    axis = Axis(intervals, left, width)
    times = sorted({0.0, axis.end_s, *(time for pair in intervals for time in pair)})
    points = [axis.x(time) for time in times]
    slack = 1e-6 * width
    assert points[0] == pytest.approx(left)
    assert points[-1] == pytest.approx(left + width)
    assert all(a <= b + slack for a, b in itertools.pairwise(points))
    cuts = axis.cuts
    for start, end in intervals:
        inside = axis.x(end) - axis.x(start)
        crossed = [cut for cut in cuts if start <= cut.start_s and cut.end_s <= end]
        assert not crossed, "something happens in a stretch that was cut out"
        assert inside == pytest.approx((end - start) * axis.scale, abs=slack)
    assert all(cut.x + CUT_WIDTH <= left + width + slack for cut in cuts)
    assert all(0 <= tick <= axis.end_s + slack for tick in axis.ticks())
    assert len(axis.ticks()) < 60


class _Page(html.parser.HTMLParser):
    """Which elements a browser would see, and all text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


_HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "<script>alert(1)</script>", "</style><script>", "]]>", "<!--", "a&b", '"><img src=x>',
            "&lt;", "\x00\x1b[31m", "\ud800", "</title>", "' onload='x", "\u202egnp.exe", "x" * 300,
        ]
    ),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(_HOSTILE, min_size=1, max_size=4), _HOSTILE, _HOSTILE)
def test_no_text_gets_out_of_its_place(names: list[str], error: str, kernel: str) -> None:
    lost = {"survived": False, "running_s": None, "blackout_s": None, "error": error}
    report = _report(
        *({**_guest(name), **lost} for name in names),
        text=error,
        store=error,
        update=names[0],
        host={"kernel_before": kernel, "kernel_after": error},
        devices=[{"bdf": names[-1], "model": kernel, "state": error}],
    )
    view = ReportView.of(report)
    tame = _report(
        *({**_guest("x"), **lost, "error": "e"} for _ in names),
        text="e" if error else "",
        store="e",
        host={"kernel_before": "k", "kernel_after": "k" if kernel == error else "l"},
        devices=[{"bdf": "b", "model": "m", "state": "s"}],
    )
    root = ElementTree.fromstring(svg.render(view).encode())
    allowed = {f"{_NS}{tag}" for tag in ("svg", "style", "rect", "line", "text", "title")}
    assert {element.tag for element in root.iter()} <= allowed
    titles = [element.text for element in root.iter(f"{_NS}title")]
    for name in names:
        assert any(svg.clean(name).replace("\r", "\n") in (title or "") for title in titles)
    whole = page.render(view)
    assert whole.encode()
    seen, other = _Page(whole), _Page(page.render(ReportView.of(tame)))
    assert set(seen.tags) == set(other.tags)
    # Nothing is fetched, nothing runs.
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name in ("src", "href") or name[:2] == "on"]
    assert "url(" not in whole.replace(svg.clean(error), "")
    text.render(view)


def test_the_page_has_every_figure() -> None:
    report = _report(_guest("a"), _guest("b", late=2.0))
    words = _Page(page.render(ReportView.of(report))).words
    for word in ("6.12.1 -> 7.3.4", "completed", "12.900", "14.900", "256 MiB", "323 KiB", "clean"):
        assert word in words
    assert page.render(ReportView.of(report)).startswith("<!DOCTYPE html>")


def test_the_table_has_a_column_for_every_phase_of_guests() -> None:
    rendered = text.render(ReportView.of(_report(_guest("a"), _guest("b", late=2.0))))
    head = next(line for line in rendered.splitlines() if line.startswith("guest"))
    assert head.split() == [
        "guest", "memory", "state", "pause", "save", "start", "load", "state", "run", "blackout",
    ]  # fmt: skip
    (row,) = [line for line in rendered.splitlines() if line.startswith("b ")]
    assert row.split() == [
        "b", "256", "MiB", "323", "KiB", "0.100", "0.400", "3.000", "1.000", "0.000", "14.900",
        "runs",
    ]  # fmt: skip
    assert "blackout from 12.900 s (a) to 14.900 s (b)" in rendered


def test_a_report_of_an_older_version_is_shown() -> None:
    report = _report(_guest("a"))
    del report["devices"]
    for name in ("phases", "stopped_s", "running_s"):
        del report["vms"][0][name]
    view = ReportView.of(report)
    assert "12.900" in text.render(view)
    assert "12.900" in page.render(view)


@pytest.mark.parametrize("damage", ["vms", "host", "clock", "phases"])
def test_a_report_that_is_none_is_refused(damage: str) -> None:
    report = copy.deepcopy(_report(_guest("a")))
    report[damage] = [7]
    with pytest.raises(PkernfsError, match="can't be shown"):
        ReportView.of(report)


def test_an_update_that_was_given_up_says_which_kernel_stayed() -> None:
    host = {"kernel_before": "6.12.1", "kernel_after": "6.12.1"}
    report = _report(_guest("a"), outcome="rolled back", text="no room", host=host)
    rendered = text.render(ReportView.of(report))
    assert rendered.startswith("update 20261122-130535-c587: rolled back (no room)\n")
    assert "kernel 6.12.1, which was not replaced" in rendered
    assert re.search(r"^a .*  runs$", rendered, re.M)


def test_an_update_that_is_under_way_says_what_it_is_up_to() -> None:
    host = {"kernel_before": "6.12.1", "kernel_after": "6.12.1"}
    report = _report(_guest("a"), outcome="not finished", kernel_planned="7.3.4", host=host)
    rendered = text.render(ReportView.of(report))
    assert "kernel 6.12.1 -> 7.3.4, which has not reported yet" in rendered
