# SPDX-License-Identifier: GPL-2.0-only
"""Several guests in one update of pkernfs."""

from __future__ import annotations

import json
from collections.abc import Iterator

from bench.measures.blackout import gap, ticks
from bench.peers.pkernfs import STORE, Pkernfs
from bench.results import Values
from bench.stage import HOME, QUIET, Stage, tick_arguments
from pkernfs.errors import PkernfsError
from pkernfs.lab.machine import poll

_RAM = "32M"
#: What ``pkernfs vm start`` says when the store is full.
_FULL = "no room for"
#: What ``pkernfs update`` says when there is room for the guests, but not for their states.
_NO_STATE = "the state of its guests may take"


def many_guests(stage: Stage, count: int | None) -> Values:
    """Update a host with so many counting guests: until the last one runs.

    The first guest is heard from outside, which says when it stopped. When the last one
    ran is in pkernfs's own report. The others are heard once a second, for what a guest
    prints is work for the host.

    :param count: how many; None: as many as the store has room for.
    :raises PkernfsError: a guest did not come back.
    """
    peer = Pkernfs()
    peer.prepare(stage)
    serial = stage.host.serials[0]
    names: list[str] = []
    try:
        start = len(serial.lines)
        for name in _started(stage, count):
            names.append(name)
        if count is None:
            _leave_room(stage, names)
        poll(lambda: len(ticks(serial.since(start))) >= 5, 120, "the first guest counts")
        start = len(serial.lines)
        stage.write_early(peer.name, f"exec pkernfs resume >{HOME}/resume.log 2>&1")
        with stage.work_clock() as work:
            result = stage.host.run(["pkernfs", "update", "--kernel", stage.image_path])
            if result.status is not None:
                result.check()
                raise PkernfsError("pkernfs update came back without an error")
            stage.host.wait_reboot()
            after = len(serial.lines)
            poll(lambda: len(ticks(serial.since(after))) >= 3, 120, "the first guest counts on")
        before, again = gap(ticks(serial.since(start)))
        report = json.loads(stage.host.run(["pkernfs", "report", "--json"]).check().stdout)
        if sorted(vm["name"] for vm in report["vms"] if vm["survived"]) != sorted(names):
            raise PkernfsError(f"not every guest survived: {report['vms']}")
        each = [float(vm["blackout_s"]) for vm in report["vms"]]
        last = before.at + max(each)
        return {
            "blackout": max(each),
            "work": work.between(before.at, last),
            "median": sorted(each)[len(each) // 2],
            "first": again.at - before.at,
            "guests": float(len(names)),
        }
    finally:
        stage.clear_early()
        for name in names:
            stage.host.sh(f"pkernfs vm stop {name} --force --delete")
        stage.host.sh(f"rm -rf {STORE}/updates")


def _leave_room(stage: Stage, names: list[str]) -> None:
    """Stop guests, the last one first, until an update has room for what it saves of them.

    :raises PkernfsError: an update is refused for another reason.
    """
    command = ["pkernfs", "update", "--dry-run", "--kernel", stage.image_path]
    while (result := stage.host.run(command)).status != 0:
        if _NO_STATE not in result.stderr or len(names) < 2:
            result.check()
        stage.run(Pkernfs.name, ["pkernfs", "vm", "stop", names.pop(), "--force", "--delete"])


def _started(stage: Stage, count: int | None) -> Iterator[str]:
    """Start guests, one by one; the name of each that runs.

    :raises PkernfsError: one can't be started, and it is not that there is no room for more.
    """
    number = 0
    while count is None or number < count:
        name = f"bench-{number:03}"
        words = tick_arguments(0, f"file:/run/{name}.log", QUIET) if number else tick_arguments(0)
        command = ["pkernfs", "vm", "start", name, "--ram", _RAM, "--", *words]
        stage.note(Pkernfs.name, " ".join(command))
        result = stage.host.run(command, timeout=180)
        if count is None and number and result.status == 1 and _FULL in result.stderr:
            return
        result.check()
        yield name
        number += 1
