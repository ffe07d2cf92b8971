# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs report``: which update, and in which form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pkernfs.cli import report as showing
from pkernfs.errors import PkernfsError, UsageError
from pkernfs.update import handover, plan
from pkernfs.update import resume as resuming
from pkernfs.update.timeline import Record
from tests.unit.update.fakes import FakeKexec, jumper, kexec_to
from tests.unit.vmm.fakes import FakeHost

__all__ = ["jumper"]


@pytest.fixture(autouse=True)
def _machine(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "Machine", lambda: host.machine)


def _refused(host: FakeHost) -> str:
    with pytest.raises(PkernfsError, match="refuses to start"):
        handover.update(host.machine, host.places, handover.Request(), lambda _: None)
    update = plan.last_update(host.places, host.machine)
    assert update is not None
    return update


def test_the_list_has_every_kept_update(
    host: FakeHost, jumper: FakeKexec, capsys: pytest.CaptureFixture[str]
) -> None:
    store = host.places.store
    showing.show_list(store, as_json=False)
    assert "has no update yet" in capsys.readouterr().out
    host.start("a")
    given_up = _refused(host)
    kexec_to(host, jumper)
    resuming.resume(host.machine, host.places)
    done = plan.last_update(host.places, host.machine)
    broken = host.places.updates / "00000000-broken"
    broken.mkdir()
    (broken / "plan.json").write_text("{")
    showing.show_list(store, as_json=False)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "rolled back" in lines[given_up]
    assert "refuses to start" in lines[given_up]
    assert "completed" in lines[str(done)]
    assert "6.12.1 -> 7.3.4" in lines[str(done)]
    assert "unreadable" in lines["00000000-broken"]
    showing.show_list(store, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "pkernfs-updates/1"
    assert {report["update"] for report in value["reports"]} == {given_up, done}
    assert list(value["unreadable"]) == ["00000000-broken"]


def test_another_update_than_the_last(host: FakeHost, jumper: FakeKexec) -> None:
    first = _refused(host)
    second = _refused(host)
    assert showing.find(host.places.store, None, None)["update"] == second
    assert showing.find(host.places.store, first, None)["update"] == first
    for wrong in ("nothing", ".", "..", "../updates"):
        with pytest.raises(PkernfsError, match="there is no update"):
            showing.find(host.places.store, wrong, None)


def test_a_report_from_a_file_needs_no_store(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start("a")
    update = _refused(host)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(showing.find(host.places.store, None, None)))
    host.put("proc/self/mountinfo", "")
    with pytest.raises(PkernfsError, match="no store"):
        showing.find(host.places.store, None, None)
    value = showing.find(host.places.store, None, file)
    assert value["update"] == update
    with pytest.raises(UsageError, match="both"):
        showing.find(host.places.store, update, file)
    showing.show(value, as_json=True)
    assert json.loads(capsys.readouterr().out) == value
    showing.write(value, tmp_path / "page.html", tmp_path / "picture.svg")
    assert update in (tmp_path / "page.html").read_text()
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    with pytest.raises(PkernfsError, match="can't write"):
        showing.write(value, tmp_path / "nowhere/page.html", None)
    file.write_text("{}")
    with pytest.raises(PkernfsError, match="format None"):
        showing.find(host.places.store, None, file)


def test_what_is_tried_again_later_does_not_stretch_the_phases(
    host: FakeHost, jumper: FakeKexec
) -> None:
    """The first attempt is the update; a guest's own phases have both."""
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    state = host.places.store / "vms/a/state"
    content = state.read_text()
    state.write_text("y" * len(content))
    assert not resuming.resume(host.machine, host.places).good
    first = showing.find(host.places.store, None, None)
    state.write_text(content)
    assert resuming.resume(host.machine, host.places).good
    second = showing.find(host.places.store, None, None)
    assert (first["outcome"], second["outcome"]) == ("partial", "completed")

    def phases(report: dict[str, object]) -> dict[str, tuple[float, float]]:
        spans = report["phases"]
        assert isinstance(spans, list)
        return {span["name"]: (span["start_s"], span["end_s"]) for span in spans}

    for name in ("kernel", "interpreter", "mount", "verify"):
        assert phases(second)[name] == pytest.approx(phases(first)[name], abs=0.1)
    (guest,) = [vm for vm in second["vms"] if vm["name"] == "a"]
    starts = [span for span in guest["phases"] if span["name"] == "start"]
    assert len(starts) == 2
    assert all(span["start_s"] <= span["end_s"] for span in guest["phases"])
    assert guest["stopped_s"] < starts[0]["start_s"] < starts[1]["start_s"] < guest["running_s"]


def test_a_report_of_an_update_that_is_under_way(host: FakeHost, jumper: FakeKexec) -> None:
    """Asked when no guest is paused yet, and when it is."""
    host.start("a")
    seen: list[dict[str, Any]] = []

    def watch(news: object) -> None:
        if isinstance(news, Record) and (news.event, news.subject) in (
            ("end", "load"),
            ("moment", "state bytes"),
        ):
            seen.append(showing.find(host.places.store, None, None))

    with pytest.raises(PkernfsError, match="refuses to start"):
        handover.update(host.machine, host.places, handover.Request(), watch)
    assert [report["outcome"] for report in seen] == ["not finished", "not finished"]
    before, paused = (report["vms"][0] for report in seen)
    assert (before["survived"], before["error"]) == (True, "")
    assert (paused["survived"], paused["error"]) == (False, "not resumed")
