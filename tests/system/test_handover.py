# SPDX-License-Identifier: GPL-2.0-only
"""A passed-through network device works on while the host's kernel is replaced."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pkernfs.lab.frame_report import (
    BETWEEN_KERNELS,
    DeviceReport,
    SourceLog,
    analyse,
    between_kernels,
)
from pkernfs.lab.frames import FrameSource, Wire
from pkernfs.lab.machine import HostConfig, Machine, poll
from pkernfs.vfio.landings import Landing

from . import device_host as on

pytestmark = pytest.mark.system


def nic_host(wire: Wire, kernel: str) -> Machine:
    """A host with an e1000e behind a root port, and two edu devices."""
    nic = ("-device", "e1000e,netdev=nic0,bus=rp0,mac=52:54:00:12:34:56")
    extra = (*on.PORT, *wire.netdev(), *nic, *on.EDUS)
    return Machine(HostConfig(kernel=kernel, extra=extra, allowed=on.EXPECTED))


def report(log: SourceLog, found: list[Landing], host: Machine) -> DeviceReport:
    """The device's entry in a report."""
    device = on.devices(host)[on.NIC]
    frames = analyse(log, found, 1, between_kernels(host.console.lines))
    faults = on.faults(host, on.NIC)
    return DeviceReport(on.NIC, device["model"], frames, len(faults), round(device["switch_us"]))


def check(entry: DeviceReport, updates: int) -> None:
    """Every frame landed, once, in order, intact, also while no kernel was there."""
    print(entry.to_json())
    assert entry.frames.whole, entry
    assert [phase.name for phase in entry.frames.phases] == [BETWEEN_KERNELS] * updates
    for phase in entry.frames.phases:
        assert phase.landed == phase.sent
        assert phase.landed_within > 10
    assert not entry.faults


@pytest.mark.parametrize(("before", "after"), [("6.12", "7.3"), ("7.3", "6.12")])
def test_no_frame_is_lost(tmp_path: Path, before: str, after: str) -> None:
    wire = Wire(tmp_path)
    with nic_host(wire, before) as host:
        on.receive(host, "start")
        host.run(["pkernfs", "device", "preserve", on.NIC]).check()
        with FrameSource(wire, tmp_path / "frames", run=1) as source:
            time.sleep(2)
            on.update(host, after)
            assert on.devices(host)[on.NIC]["state"] == "inherited"
            host.sh("touch /run/hold").check()
            words = ("--transmit", "20", "--run", "77", "--hold", "/run/hold")
            name = on.start_receiver(host, "adopt", *words)
            poll(lambda: bool(on.devices(host)[on.NIC]["taken"]), 120, "the device is taken")
            # As fast as it goes while the tables are switched.
            source.pace(0)
            time.sleep(0.5)
            host.sh("rm /run/hold").check()
            on.wait_log(host, name, '"ready"')
            source.pace(0.005)
            time.sleep(1)
            log = source.stop()
        found = on.wait_landed(host, log.sent[-1].sequence)
        entry = report(log, found, host)
        device = on.devices(host)[on.NIC]
        on.stop_receiver(host)
    check(entry, 1)
    assert (device["state"], device["adopted"]) == ("preserved", 1)
    returned = [frame for frame in log.returned if frame.run == 77]
    assert [frame.sequence for frame in returned] == list(range(20))
    assert all(frame.intact for frame in returned)


def test_five_updates(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    with nic_host(wire, "6.12") as host:
        on.receive(host, "start")
        host.run(["pkernfs", "device", "preserve", on.NIC]).check()
        with FrameSource(wire, tmp_path / "frames", run=1) as source:
            for kernel in ("7.3", "6.12", "7.3", "6.12", "7.3"):
                on.update(host, kernel)
                on.receive(host, "adopt")
                assert on.devices(host)[on.NIC]["state"] == "preserved"
            time.sleep(1)
            log = source.stop()
        found = on.wait_landed(host, log.sent[-1].sequence)
        entry = report(log, found, host)
        on.stop_receiver(host)
    check(entry, 5)


def test_two_devices_at_once(tmp_path: Path) -> None:
    """One behind a bridge, one not. QEMU emulates one IOMMU only, so both are behind that."""
    wire = Wire(tmp_path)
    script = Path(__file__).parent / "scripts" / "handover_edu.py"
    with nic_host(wire, "6.12") as host:
        on.receive(host, "start")
        on.start(host, "edu", f"python3 {host.upload(script)} start {on.EDU}")
        on.wait_log(host, "edu", '"ready"')
        for bdf in (on.NIC, on.EDU):
            host.run(["pkernfs", "device", "preserve", bdf]).check()
        with FrameSource(wire, tmp_path / "frames", run=1) as source:
            on.update(host, "6.12")
            states = {bdf: device["state"] for bdf, device in on.devices(host).items()}
            assert states == {on.NIC: "inherited", on.EDU: "inherited"}
            on.receive(host, "adopt")
            argv = ["python3", f"/mnt/share/{script.name}", "adopt", on.EDU]
            lines = host.run(argv, env=on.ENV).check().stdout.splitlines()
            steps = {value["step"]: value for value in map(json.loads, lines)}
            log = source.stop()
        found = on.wait_landed(host, log.sent[-1].sequence)
        entry = report(log, found, host)
        on.stop_receiver(host)
    check(entry, 1)
    assert steps["opened"]["state"] == "preserved"
    assert [step for step, v in steps.items() if v.get("landed") is False] == ["unmapped"]
