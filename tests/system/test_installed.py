# SPDX-License-Identifier: GPL-2.0-only
"""An ordinary Debian host, from the first reservation to a guest that outlived two kernels.

The lab starts commands in it and reads what they print; all else is done by what is installed
there, as the documents say.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

from . import tick
from .tick import Tick

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.installed,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        not Path("/dev/loop-control").exists(), reason="no loop devices to make the disk with"
    ),
]

_DISKS = "/var/lib/vms"
_UNIT = "pkernfs-vm@web.service"
_RESUMED = "pkernfs-resume.service"
#: For what takes some ten seconds on a machine that does nothing else.
_PATIENCE_S = 600


def _shows(host: Machine, unit: str, what: str) -> str:
    return host.run(["systemctl", "show", "--value", "-p", what, unit]).check().stdout.strip()


def _wait_up(host: Machine) -> None:
    """Everything that the host starts has started, and nothing failed."""
    command = ["systemctl", "is-system-running", "--wait"]
    state = host.run(command, timeout=_PATIENCE_S).stdout.strip()
    failed = host.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert (state, failed) == ("running", "")


def _reboot(host: Machine) -> None:
    boot_id = host.hello.boot_id
    assert host.run(["systemctl", "reboot"]).status in (0, None)
    assert host.wait_reboot().boot_id != boot_id
    _wait_up(host)


def _update(guest: Tick, kernel: str, *words: str) -> None:
    """An update in which the guest goes on; one that had started anew would count from 0."""
    host = guest.host
    before = guest.count()
    result = host.run(["pkernfs", "update", *words])
    assert result.status is None, result
    host.wait_reboot()
    assert host.hello.kernel.startswith(kernel)
    _wait_up(host)
    assert _shows(host, _RESUMED, "ActiveState") == "active"
    assert before < guest.wait_count(before + 1) < before + 20000
    report = demo.report_of(host)
    assert report["outcome"] == "completed"
    assert [(vm["name"], vm["survived"]) for vm in report["vms"]] == [("web", True)]
    guest.counts_on()
    assert _shows(host, _UNIT, "ActiveState") == "active"


def test_from_the_reservation_to_the_next_kernel_and_back(new_host: HostFactory) -> None:
    host = new_host(installed=True)
    _wait_up(host)
    first = host.hello.kernel
    assert first.startswith("6.12")
    assert host.sh("findmnt -n -o SOURCE,FSTYPE /").stdout.split() == ["/dev/vda1", "ext4"]
    assert "range.none" in host.run(["pkernfs", "doctor", "--json"]).stdout

    host.run(["pkernfs", "reserve", "--size", "1G"]).check()
    _reboot(host)
    assert host.hello.kernel == first
    words = host.sh("cat /proc/cmdline").stdout.split()
    assert {"memmap=1G$0x100000000", "pkernfs.region=1G!0x100000000"} <= set(words)
    # Made by the unit, without a question, though the memory is full of what was there before.
    assert host.sh("findmnt -n -o FSTYPE /mnt/pkernfs").stdout == "pkernfs\n"
    host.run(["pkernfs", "doctor"]).check()

    host.sh(f"mkdir {_DISKS}").check()
    guest = tick.start(host, "web", disks=_DISKS)
    pid = host.sh("cut -d' ' -f1 /run/pkernfs/web/pid").check().stdout.strip()
    assert "-accel kvm" in host.sh(f"tr '\\0' ' ' </proc/{pid}/cmdline").stdout
    _update(guest, "7.3")
    _update(guest, "6.12", "--kernel", first)

    host.sh("echo stays >/mnt/pkernfs/note").check()
    host.run(["pkernfs", "vm", "stop", "web", "--force"]).check()
    _reboot(host)
    assert host.hello.kernel == first
    # A warm reboot leaves the range as it was, and the unit takes the store that is in it.
    assert host.sh("cat /mnt/pkernfs/note").stdout == "stays\n"
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)
    assert [(vm["name"], vm["state"]) for vm in listed["vms"]] == [("web", "off")]
    host.run(["pkernfs", "check"]).check()
    # It was shut down: it begins anew, from what vm start was given the first time.
    host.sh(f": >{_DISKS}/web.log").check()
    host.run(["pkernfs", "vm", "start", "web"]).check()
    guest.wait_count(3)
