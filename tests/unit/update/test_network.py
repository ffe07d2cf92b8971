# SPDX-License-Identifier: GPL-2.0-only
"""Guests' interfaces over an update: noted with the plan, put back when the guests run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pkernfs.host import ports
from pkernfs.host.ports import Port
from pkernfs.update import network, plan, report
from pkernfs.update import resume as resuming
from pkernfs.vmm.monitor import Monitor
from tests.unit.update.fakes import FakeKexec, jumper, kexec_to
from tests.unit.vmm.fakes import FakeHost, host

__all__ = ["host", "jumper"]

_NET = "sys/class/net"


def test_a_tap_waits_for_its_bridge_and_is_announced_once(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ports_of", lambda _: (Port("tap0", "br0", up=True),))
    host.start("a")
    kexec_to(host, jumper)
    told: list[str] = []
    execute = Monitor.execute

    async def noted(
        self: Monitor,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float = 30.0,
    ) -> Any:
        told.append(command)
        return await execute(self, command, arguments, timeout)

    def run(*command: str) -> str:
        if "master" in command:
            (host.root / _NET / "tap0/master").symlink_to("../br0")
        if command[-1] == "up":
            host.put(f"{_NET}/tap0/flags", "0x1003\n")
        return ""

    monkeypatch.setattr(Monitor, "execute", noted)
    monkeypatch.setattr(ports, "_run", run)
    # The next kernel's QEMU has made the tap; the bridge comes later.
    host.put(f"{_NET}/tap0/flags", "0x1002\n")
    outcome = resuming.resume(host.machine, host.places)
    assert [(it.interface, it.state) for it in outcome.interfaces] == [("tap0", "waits")]
    assert outcome.good
    assert "announce-self" not in told

    def back() -> tuple[str, float | None]:
        network.wait_for_bridges(host.machine, host.places, [], 0)
        (vm,) = report.build(host.places, host.machine.update_marker or "")["vms"]
        (found,) = vm["network"]
        return found["state"], found["dark_s"]

    assert back() == ("waits", None)
    host.put(f"{_NET}/br0/bridge/bridge_id", "8000.0\n")
    state, dark = back()
    assert (state, told.count("announce-self")) == ("back", 1)
    assert dark is not None
    # Asked again, nothing is new, but for how two clocks are compared each time.
    state, again = back()
    assert state == "back"
    assert again == pytest.approx(dark, abs=1e-3)
    assert told.count("announce-self") == 1
