# SPDX-License-Identifier: GPL-2.0-only
"""An update with several guests: their order, and one that does not come back."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from pkernfs.errors import PARTLY
from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

from . import tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

#: The higher, the later paused and the earlier resumed. The broken one comes first of all.
_PRIORITIES = {"low": -1, "one": 0, "two": 0, "web": 5, "broken": 20}
_FILE = "/mnt/scratch/needed"


def _records(host: Machine) -> list[dict[str, Any]]:
    text = host.sh("cat /mnt/pkernfs/updates/*/timeline.jsonl").check().stdout
    return [json.loads(line) for line in text.splitlines()]


def _times(host: Machine, event: str, subject: str) -> dict[str, float]:
    """When each guest had this mark: ticks of the clock that goes through the kexec."""
    report = demo.report_of(host)
    hertz = report["clock"]["hertz"]
    assert report["clock"]["name"] == "tsc"
    return {
        record["guest"]: record["reading"]["tsc"] / hertz - record["ago_ns"] / 1e9
        for record in _records(host)
        if (record["event"], record["subject"]) == (event, subject) and record["guest"]
    }


def test_guests_go_by_priority_and_a_broken_one_holds_nobody_back(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    host.sh(f"echo anything >{_FILE}").check()
    guests = {}
    for name, priority in _PRIORITIES.items():
        options = ["--priority", str(priority)] if name != "web" else []
        more = ("-fw_cfg", f"name=opt/needed,file={_FILE}") if name == "broken" else ()
        guests[name] = tick.start(host, name, options=options, arguments=more)
    host.run(["pkernfs", "vm", "set", "web", "--priority", "5"]).check()
    counts = {name: guest.count() for name, guest in guests.items()}
    # In the next kernel its QEMU ends at once, as it does when that is rehearsed.
    host.sh(f"rm {_FILE}").check()

    result = host.run(["pkernfs", "update", "--override", "rehearsal.broken"])
    assert result.status is None, result
    assert host.wait_reboot().resume == PARTLY

    report = demo.report_of(host)
    assert report["outcome"] == "partial"
    errors = {vm["name"]: vm["error"] for vm in report["vms"]}
    assert _FILE in errors.pop("broken")
    assert errors == dict.fromkeys(errors, "")
    for name in errors:
        guests[name].wait_count(counts[name] + 1)
        guests[name].counts_on()

    paused, saved = _times(host, "begin", "pause"), _times(host, "end", "save")
    levels = sorted(set(_PRIORITIES.values()))
    by_level = [[name for name, own in _PRIORITIES.items() if own == level] for level in levels]
    for lower, higher in itertools.pairwise(by_level):
        assert max(saved[name] for name in lower) <= min(paused[name] for name in higher)
    begun = _times(host, "begin", "start")
    order = sorted(begun, key=lambda name: begun[name])
    assert order == ["broken", "web", "one", "two", "low"]

    # Its files are as they were: once it is repaired it goes on.
    state = host.run(["pkernfs", "vm", "list", "--json"]).check().stdout
    assert {vm["name"]: vm["state"] for vm in json.loads(state)["vms"]} == {
        name: "saved" if name == "broken" else "running" for name in _PRIORITIES
    }
    host.sh(f"echo anything >{_FILE}").check()
    host.run(["pkernfs", "resume"]).check()
    assert counts["broken"] < guests["broken"].wait_count(counts["broken"] + 1)
    assert guests["broken"].count() < counts["broken"] + 2000
    assert demo.report_of(host)["outcome"] == "completed"
    host.run(["pkernfs", "check"]).check()
