# SPDX-License-Identifier: GPL-2.0-only
"""A passed-through network device works on while the host's kernel is replaced."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pkernfs.lab import devices
from pkernfs.lab.devices import NIC, Proof
from pkernfs.lab.frame_report import BETWEEN_KERNELS, DeviceReport
from pkernfs.lab.frames import Wire
from pkernfs.lab.machine import HostConfig, Machine
from tests.kernels import KERNELS, successor

from . import device_host as on

pytestmark = pytest.mark.system


def nic_host(wire: Wire, kernel: str) -> Machine:
    """A host with an e1000e behind a root port, and two edu devices."""
    extra = (*devices.nic_arguments(wire), *on.EDUS)
    return Machine(HostConfig(kernel=kernel, extra=extra, allowed=devices.EXPECTED))


def check(entry: DeviceReport, updates: int) -> None:
    """Every frame landed, once, in order, intact, also while no kernel was there."""
    print(entry.to_json())
    assert entry.frames.whole, entry
    assert [phase.name for phase in entry.frames.phases] == [BETWEEN_KERNELS] * updates
    for phase in entry.frames.phases:
        assert phase.landed == phase.sent
        assert phase.landed_within > 10
    assert not entry.faults


@pytest.mark.parametrize(("before", "after"), [(kernel, successor(kernel)) for kernel in KERNELS])
def test_no_frame_is_lost(tmp_path: Path, before: str, after: str) -> None:
    wire = Wire(tmp_path)
    proof = Proof(wire, tmp_path / "frames")
    with nic_host(wire, before) as host, proof.frames(host) as source:
        time.sleep(2)
        on.update(host, after)
        assert devices.listed(host)[NIC]["state"] == "inherited"
        entry, problems = proof.finish(host, source)
        device = devices.listed(host)[NIC]
    check(entry, 1)
    assert problems == []
    assert (device["state"], device["adopted"]) == ("preserved", 1)


def test_five_updates(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    proof = Proof(wire, tmp_path / "frames")
    with nic_host(wire, "6.12") as host, proof.frames(host) as source:
        for kernel in ("7.3", "6.12", "7.3", "6.12"):
            on.update(host, kernel)
            devices.receive(host, "adopt")
            assert devices.listed(host)[NIC]["state"] == "preserved"
        on.update(host, "7.3")
        entry, problems = proof.finish(host, source)
        # A reset is one again: a new driver starts from a device that does nothing.
        devices.receive(host, "start")
        devices.stop_receiver(host)
    check(entry, 5)
    assert problems == []


def test_two_devices_at_once(tmp_path: Path) -> None:
    """One behind a bridge, one not. QEMU emulates one IOMMU only, so both are behind that."""
    wire = Wire(tmp_path)
    proof = Proof(wire, tmp_path / "frames")
    script = Path(__file__).parent / "scripts" / "handover_edu.py"
    with nic_host(wire, "6.12") as host:
        host.upload(script)
        devices.start_edu(host, on.EDU)
        host.run(["pkernfs", "device", "preserve", on.EDU]).check()
        with proof.frames(host) as source:
            on.update(host, "6.12")
            states = {bdf: device["state"] for bdf, device in devices.listed(host).items()}
            assert states == {NIC: "inherited", on.EDU: "inherited"}
            argv = ["python3", f"/mnt/share/{script.name}", devices.EDU_FILE, on.EDU]
            lines = host.run(argv, env=devices.ENV).check().stdout.splitlines()
            steps = {value["step"]: value for value in map(json.loads, lines)}
            entry, problems = proof.finish(host, source)
    check(entry, 1)
    assert problems == []
    assert steps["opened"]["state"] == "preserved"
    assert [step for step, v in steps.items() if v.get("landed") is False] == ["unmapped"]
