# SPDX-License-Identifier: GPL-2.0-only
"""Guests outlive their hosts' kernels: several, busy ones, several times in a row."""

from __future__ import annotations

import re

import pytest

from pkernfs.lab import demo, guest
from pkernfs.lab.guest import GuestConfig
from pkernfs.lab.machine import Machine
from pkernfs.lab.witness import BEAT_S, Witness, parse
from tests.conftest import HostFactory

pytestmark = [pytest.mark.system, pytest.mark.kvm]


def _survived(host: Machine, evidence: dict[str, demo.Evidence]) -> None:
    report = demo.merge(demo.report_of(host), evidence)
    assert [vm["problems"] for vm in report["vms"]] == [[] for _ in evidence]
    assert len(report["vms"]) == len(evidence)
    for vm in report["vms"]:
        # Two clocks, one truth: the heartbeats stop for as long as the host says.
        assert 0 < vm["blackout_s"] < vm["blackout_outside_s"] + BEAT_S
        assert vm["blackout_outside_s"] < vm["blackout_s"] + 4.0


def test_two_busy_guests_survive_an_update_and_the_one_back(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    configs = [
        GuestConfig(name="large", ram="256M", port=0),
        GuestConfig(name="small", ram="160M", port=1),
    ]
    witnesses = {config.name: guest.start(host, config) for config in configs}
    boots = {name: witness.wait_ready()["boot"] for name, witness in witnesses.items()}
    assert len(set(boots.values())) == 2
    kernels = [host.stack.host.kernel(name) for name in ("7.3", "6.12")]
    for kernel in kernels:
        witnesses["small"].ask("disk-busy on")
        evidence = demo.prove_update(host, witnesses, ["--kernel", f"/boot/vmlinuz-{kernel}"])
        assert host.run(["uname", "-r"]).stdout.strip() == kernel
        _survived(host, evidence)
        busy = witnesses["small"].ask("disk-busy off")
        assert busy["rounds"] > 0
    assert {name: witness.prove().boot for name, witness in witnesses.items()} == boots


def test_changed_memory_is_noticed(new_host: HostFactory) -> None:
    """The proof proves something: one flipped bit, and the guest counts as lost."""
    host = new_host(kernel="6.12")
    witness = guest.start(host, GuestConfig(ram="192M"))
    witness.wait_ready()
    before = witness.prove()
    witness.ask("spoil")
    after = witness.prove()
    evidence = demo.Evidence(before, after, "", "", 0.0)
    assert evidence.problems() == ["its memory differs"]


def test_stress_ng_finds_no_fault_over_an_update(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    words = "share=50% seconds=60"
    config = GuestConfig(name="stress", ram="384M", program="stress", words=words)
    console = host.serials[0]
    start = len(console.lines)
    stress: Witness = guest.start(host, config)
    stress.wait_ready()
    console.wait_for(r"dispatching hogs", 120, start=start)
    demo.update(host)
    resumed = len(console.lines)
    console.wait_for(lambda line: "stress" in (parse(line) or {}), 300, start=resumed)
    text = "\n".join(line.text for line in console.since(start))
    assert re.search(r"passed: 2: vm \(2\)", text), text
    assert re.search(r"failed: 0\b", text), text
    assert '{"stress": 0}' in text
