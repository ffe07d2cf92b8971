# SPDX-License-Identifier: GPL-2.0-only
"""A host with systemd and the units of packaging/systemd, through both kinds of kexec."""

from __future__ import annotations

import json

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine, poll
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

_UNIT = "pkernfs-vm@unit.service"


def _state(host: Machine, unit: str) -> str:
    return host.run(["systemctl", "is-active", unit]).stdout.strip()


def _wait_unit(host: Machine) -> None:
    """The guest is in its unit, and so is nothing but its QEMU."""
    poll(lambda: _state(host, _UNIT) == "active", 120, "the guest's unit is up")
    poll(lambda: _state(host, "pkernfs-kexec.service") == "active", 120, "the keeper is up")
    pid = host.sh("cut -d' ' -f1 /run/pkernfs/unit/pid").check().stdout.strip()
    main = host.run(["systemctl", "show", "--value", "-p", "MainPID", _UNIT]).stdout.strip()
    assert main == pid
    group = host.sh(f"cat /proc/{pid}/cgroup").check().stdout
    assert group.strip().endswith(f"/{_UNIT}")


def _gone_on(guest: Tick, before: int, outcome: str = "completed") -> None:
    """The same guest goes on: one that had started anew would count from the beginning.

    :param outcome: what the report of the update says.
    """
    after = guest.wait_count(before + 1)
    assert before < after < before + 20000
    assert guest.host.hello.resume == 0
    report = demo.report_of(guest.host)
    assert report["outcome"] == outcome
    assert [(vm["name"], vm["survived"]) for vm in report["vms"]] == [("unit", True)]
    # Counting goes up forever, so a guest that lags is still the same one.
    guest.counts_on()
    _wait_unit(guest.host)


def test_guests_outlive_update_and_systemctl_kexec_in_their_units(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12", units=True)
    assert _state(host, "mnt-pkernfs.mount") == "active"
    assert host.sh("cat /proc/1/comm").stdout == "systemd\n"
    guest = tick.start(host, "unit")
    _wait_unit(host)
    _doctor_looks_for_the_program(host)

    demo_count = guest.count()
    demo.update(host)
    assert host.hello.kernel.startswith("7.3")
    resumed = host.run(["systemctl", "show", "-p", "ExecMainStatus", "pkernfs-resume.service"])
    assert resumed.stdout.strip() == "ExecMainStatus=0"
    _gone_on(guest, demo_count)

    _refused_kexec(guest)
    _orderly_kexec(guest)
    failed = host.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert failed == ""


def _units(host: Machine, program: str) -> tuple[str, str]:
    """What doctor says of the units: id and status."""
    found = json.loads(host.run([program, "doctor", "--json"]).stdout)["findings"]
    (it,) = [finding for finding in found if finding["topic"] == "units"]
    return it["id"], it["status"]


def _doctor_looks_for_the_program(host: Machine) -> None:
    """systemd itself says the same of it."""
    assert _units(host, "pkernfs") == ("units", "ok")
    host.sh("mv /usr/bin/pkernfs /usr/bin/pkernfs.away && systemctl daemon-reload").check()
    try:
        assert _units(host, "/usr/bin/pkernfs.away") == ("units.program", "blocker")
        host.sh("printf '#!/bin/sh\n' >/usr/bin/pkernfs && systemctl daemon-reload").check()
        assert _units(host, "/usr/bin/pkernfs.away") == ("units.program", "blocker")
    finally:
        host.sh("mv /usr/bin/pkernfs.away /usr/bin/pkernfs && systemctl daemon-reload").check()
    host.sh("systemctl mask --runtime pkernfs-resume.service").check()
    assert _units(host, "pkernfs") == ("units.masked", "blocker")
    host.sh("systemctl unmask --runtime pkernfs-resume.service").check()
    assert _units(host, "pkernfs") == ("units", "ok")


@answers(
    phase="next kernel",
    failure="systemd does not start pkernfs-resume.service",
    outcome="pkernfs-watchdog.service goes back to the kernel before, which resumes",
)
def test_the_watchdog_goes_back_when_nothing_resumes(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12", units=True)
    guest = tick.start(host, "unit")
    _wait_unit(host)
    assert _state(host, "pkernfs-watchdog.service") == "inactive"
    count = guest.count()
    words = ["--append", "systemd.mask=pkernfs-resume.service", "--watchdog", "120"]
    assert host.run(["pkernfs", "update", *words]).status is None
    host.wait_reboot()
    assert host.hello.kernel.startswith("7.3")
    assert _state(host, "pkernfs-resume.service") == "inactive"
    host.wait_reboot()
    assert host.hello.kernel.startswith("6.12")
    _gone_on(guest, count, "went back")
    assert "the watchdog left 7.3" in demo.report_of(host)["text"]
    assert host.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout == ""


def _refused_kexec(guest: Tick) -> None:
    """A kernel that pkernfs did not load: the host stays up, with everything that ran."""
    host = guest.host
    boot_id = host.hello.boot_id
    version = host.stack.host.kernel("6.12")
    files = f"/boot/vmlinuz-{version} --initrd=/boot/pkernfs-lab-initrd-{version}"
    host.sh(f"kexec -s -l {files} --reuse-cmdline").check()
    host.run(["systemctl", "kexec"])
    log = "journalctl -b -o cat --no-pager -u pkernfs-kexec.service"
    poll(lambda: "was called off" in host.sh(log).stdout, 180, "systemctl kexec is refused")
    assert "was not loaded by pkernfs" in host.sh(log).stdout
    guest.counts_on()
    _wait_unit(host)
    assert _state(host, "multi-user.target") == "active"
    assert host.sh("cat /proc/sys/kernel/random/boot_id").stdout.strip() == boot_id


def _orderly_kexec(guest: Tick) -> None:
    host = guest.host
    version = host.stack.host.kernel("6.12")
    files = ["--kernel", f"/boot/vmlinuz-{version}", "--initrd"]
    files.append(f"/boot/pkernfs-lab-initrd-{version}")
    host.run(["pkernfs", "update", "--load-only", *files]).check()
    count = guest.count()
    host.run(["systemctl", "kexec"])
    host.wait_reboot()
    assert host.hello.kernel == version
    _gone_on(guest, count)
