# SPDX-License-Identifier: GPL-2.0-only
"""Updates that go through, with a fake QEMU and a fake jump."""

from __future__ import annotations

import itertools

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import BootLine
from pkernfs.host.ranges import Range
from pkernfs.update import checked, early, handover, plan, report, timeline
from pkernfs.update import resume as resuming
from pkernfs.update.waiting import Resumed
from pkernfs.vmm import guests, launch
from pkernfs.vmm.config import Guest, Places
from tests.answers import answers
from tests.unit.update.fakes import (
    FakeKexec,
    all_run_on,
    as_before,
    kexec_to,
    qmp,
)
from tests.unit.vmm.fakes import RAM, FakeHost


def test_guests_of_every_store_go_through_an_update(host: FakeHost, jumper: FakeKexec) -> None:
    second = host.add_region("node1", Range(8 << 30, 1 << 30))
    assert Places.on(host.machine, host.places.store).stores == host.places.stores
    host.start("a")
    guests.start(host.places, "b", RAM, [], machine=host.machine, store=second)
    assert (second / "vms/b/ram").stat().st_size == RAM
    kexec_to(host, jumper)
    assert (second / "vms/b/saved.json").exists()
    line = plan.read(host.places, host.machine.update_marker or "").boot_line
    assert BootLine.parse(line).regions() == host.machine.regions()
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [Resumed("a"), Resumed("b")]
    assert host.states() == {"a": "running", "b": "running"}
    assert not (second / "vms/b/state").exists()
    guests.stop(host.places, "b", force=True, delete=True)
    assert list((second / "vms").iterdir()) == []


def guests_accelerator(host: FakeHost) -> str:
    arguments = Guest("a", host.places).config().arguments
    return arguments[arguments.index("-accel") + 1]


def test_guests_go_through_an_update(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    assert host.states() == {"a": "saved", "b": "saved"}
    assert resuming.resume(host.machine, host.places).guests == [
        Resumed("a"),
        Resumed("b"),
    ]
    assert host.states() == {"a": "running", "b": "running"}
    assert not Guest("a", host.places).state.exists()
    as_before(Guest("a", host.places))
    update = host.machine.update_marker
    assert update is not None
    value = report.build(host.places, update)
    assert value["schema"] == "pkernfs-report/1"
    assert value["outcome"] == "completed"
    assert value["host"] == {
        "kernel_before": "6.12.1",
        "kernel_after": "7.3.4",
        "boot_id_before": "boot-one",
        "boot_id_after": "boot-two",
    }
    assert [(vm["name"], vm["survived"], vm["ram_bytes"]) for vm in value["vms"]] == [
        ("a", True, RAM),
        ("b", True, RAM),
    ]
    assert {vm["accelerator"] for vm in value["vms"]} == {guests_accelerator(host)}
    assert all(0 < vm["blackout_s"] < 60 for vm in value["vms"])
    names = [phase["name"] for phase in value["phases"]]
    assert names == [
        "check", "load", "pause", "save", "fingerprint", "hand over", "kernel",
        "interpreter", "mount", "verify", "start", "load state", "run",
    ]  # fmt: skip
    assert all(phase["start_s"] <= phase["end_s"] for phase in value["phases"])
    assert "7.3.4" in report.render(value)
    assert (plan.directory(host.places, update) / "report.json").exists()


@answers(
    phase="resume",
    failure="the store is damaged after the update",
    outcome="the guests run; said in report and exit status",
)
def test_a_damaged_store_is_told_after_the_guests_run(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    kexec_to(host, jumper)

    def check() -> str:
        assert host.states() == {"a": "running"}
        return "pkernfs: damaged: block 7 is used twice"

    monkeypatch.setattr(checked, "check_store", check)
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [Resumed("a")]
    assert not outcome.good
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["store"] == outcome.store
    assert outcome.store in report.render(value)


def test_a_paused_guest_stays_paused(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    qmp(guest, "stop")
    assert host.states() == {"a": "paused"}
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "paused"}
    (vm,) = report.build(host.places, host.machine.update_marker or "")["vms"]
    assert (vm["survived"], vm["blackout_s"]) == (True, None)


def _marks(host: FakeHost, event: str, subject: str) -> dict[str, int]:
    """When each guest had a mark, as numbers of lines in the timeline."""
    update = plan.last_update(host.places, host.machine) or ""
    records = timeline.load(plan.directory(host.places, update) / "timeline.jsonl")
    return {
        record.guest: number
        for number, record in enumerate(records)
        if (record.event, record.subject) == (event, subject) and record.guest is not None
    }


@pytest.mark.parametrize("order", [(), ("low",)])
def test_a_higher_priority_is_paused_later_and_runs_earlier(
    host: FakeHost, jumper: FakeKexec, order: tuple[str, ...]
) -> None:
    for name in ("high", "low", "mid"):
        host.start(name)
    guests.set_priority(host.places, "mid", 5)
    guests.set_priority(host.places, "high", 7)
    wanted = [*order, *(name for name in ("high", "mid", "low") if name not in order)]
    with pytest.raises(PkernfsError, match="refuses to start"):
        request = handover.Request(order=order)
        handover.update(host.machine, host.places, request, lambda _: None)
    begun, saved = _marks(host, "begin", "pause"), _marks(host, "end", "save")
    for first, last in itertools.pairwise(reversed(wanted)):
        assert saved[first] < begun[last]
    update = plan.last_update(host.places, host.machine) or ""
    listed = (plan.directory(host.places, update) / early.LAUNCH_FILE).read_text()
    assert [it.name for it in launch.parse(listed)] == wanted


def test_a_priority_outlives_a_stop(host: FakeHost) -> None:
    guest = host.start("a")
    guests.set_priority(host.places, "a", -3)
    guests.stop(host.places, "a", force=True, delete=False)
    guests.start(host.places, "a", None, [], machine=host.machine)
    assert guest.config().priority == -3


def test_an_order_with_a_guest_that_does_not_run_is_refused(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    with pytest.raises(PkernfsError, match="no guest b runs"):
        handover.dry_run(host.machine, host.places, handover.Request(order=("a", "b")))
    all_run_on(host, jumper, "a")
