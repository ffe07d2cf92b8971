# SPDX-License-Identifier: GPL-2.0-only
"""Preserved devices in an update: armed before the kernel is loaded, taken back on the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.devices import Control
from pkernfs.host.machine import Machine
from pkernfs.update.devices import armed, check_again, note
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Record, Timeline
from tests.answers import answers

DEVICE = (
    "0000:01:00.0 state=preserved vendor=8086 device=10d3 held=0 open=1 checked=0 leaves=0 bytes=0"
    ' pages=0 dropped=0 adopted=0 switch_ns=0 adopt_ns=0 reason=""\n'
)
PLAN = Plan("u", "6", "id", "7", "/boot/vmlinuz", None, "intel_iommu=on quiet", ())


def control(home: Path, devices: str) -> Control:
    for name, text in (("devices", devices), ("arm", "0"), ("message", ""), ("record", "0x100")):
        (home / name).write_text(text)
    return Control(home)


def test_no_device_no_change(tmp_path: Path) -> None:
    with armed(PLAN, control(tmp_path, "")) as plan:
        assert plan is PLAN
        assert (tmp_path / "arm").read_text() == "0"


def test_armed_within_the_block_only(tmp_path: Path) -> None:
    orders = control(tmp_path, DEVICE)
    with armed(PLAN, orders) as plan:
        assert plan.boot_line == "quiet intel_iommu=on,sm_off elfcorehdr=0x100"
        assert orders.armed
    assert not orders.armed


@answers(
    phase="load",
    failure="a failure after preserved devices were armed",
    outcome="they are disarmed",
)
def test_a_failure_takes_it_back(tmp_path: Path) -> None:
    orders = control(tmp_path, DEVICE)
    with pytest.raises(PkernfsError, match="no kernel"), armed(PLAN, orders):
        raise PkernfsError("no kernel")
    assert not orders.armed


def test_the_last_check_is_for_what_is_armed(tmp_path: Path) -> None:
    orders = control(tmp_path, DEVICE)
    check_again(orders)
    assert not orders.armed
    (tmp_path / "arm").unlink()
    (tmp_path / "arm").mkdir()  # an order fails, if one comes
    with pytest.raises(OSError, match="directory"):
        check_again(orders)


def test_devices_are_in_the_records(tmp_path: Path) -> None:
    timeline, seen = Timeline(Machine(tmp_path)), list[Record]()
    timeline.watch(seen.append)
    note(timeline, control(tmp_path, DEVICE))
    (record,) = seen
    assert (record.event, record.subject) == ("device", "0000:01:00.0")
    told = json.loads(record.text)
    assert (told["state"], told["model"], told["adopted"]) == ("preserved", "8086:10d3", 0)
