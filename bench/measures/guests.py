# SPDX-License-Identifier: GPL-2.0-only
"""Several guests in one update of pkernfs."""

from __future__ import annotations

import json

from bench.measures.blackout import gap, ticks
from bench.peers.pkernfs import STORE, Pkernfs
from bench.results import Values
from bench.stage import HOME, Stage, tick_arguments
from pkernfs.errors import PkernfsError
from pkernfs.lab.machine import poll

_RAM = "32M"


def many_guests(stage: Stage, count: int) -> Values:
    """Update a host with so many counting guests: until the last one runs.

    The first guest is heard from outside, which says when it stopped. When the last one
    ran is in pkernfs's own report.

    :raises PkernfsError: a guest did not come back.
    """
    peer = Pkernfs()
    peer.prepare(stage)
    serial = stage.host.serials[0]
    names = [f"bench-{number}" for number in range(count)]
    try:
        start = len(serial.lines)
        for number, name in enumerate(names):
            words = tick_arguments(0)
            if number:
                words[-1] = f"file:/run/{name}.log"
            command = ["pkernfs", "vm", "start", name, "--ram", _RAM, "--", *words]
            stage.run(peer.name, command, timeout=180)
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
        if [vm["name"] for vm in report["vms"] if vm["survived"]] != sorted(names):
            raise PkernfsError(f"not every guest survived: {report['vms']}")
        each = [float(vm["blackout_s"]) for vm in report["vms"]]
        last = before.at + max(each)
        return {
            "blackout": max(each),
            "work": work.between(before.at, last),
            "median": sorted(each)[len(each) // 2],
            "first": again.at - before.at,
        }
    finally:
        stage.clear_early()
        for name in names:
            stage.host.sh(f"pkernfs vm stop {name} --force --delete")
        stage.host.sh(f"rm -rf {STORE}/updates")
