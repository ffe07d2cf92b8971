# SPDX-License-Identifier: GPL-2.0-only
"""Who would be lost with the kernel stops the update: late guests, and machines of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.answers import answers

from .refusal import changed, lines, refused
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.kvm, pytest.mark.timeout(1200)]

_QEMU = (
    "qemu-system-x86_64 -name guest={name},debug-threads=on -pidfile /run/{name}.pid -daemonize"
    " -nodefaults -display none -accel kvm -cpu qemu64 -m 32M"
)
_IN_STORE = (
    " -object memory-backend-file,id=ram,size=32M,mem-path=/mnt/pkernfs/{name}.ram,share=on"
    " -machine q35,memory-backend=ram"
)

# At a line of the timeline, somebody else does something.
_MEANWHILE = """
mark = Timeline.mark
def meanwhile(self, event, about, *args, **kwargs):
    mark(self, event, about, *args, **kwargs)
    if (event, about) == {when}:
        Timeline.mark = mark
        {act}
Timeline.mark = meanwhile
"""

# A guest that is started past the host's lock, as a version before it did.
_PAST_THE_LOCK = """
import sys
sys.path.insert(0, "/usr/lib/pkernfs")
from pkernfs.vmm import guests
from pkernfs.vmm.config import Places
guests.start(Places(), "late", 32 << 20, ["-cpu", "qemu64"])
"""


def _meanwhile(host: Machine, when: tuple[str, str], act: str) -> str:
    return changed(host, _MEANWHILE.format(when=when, act=act))


@contextmanager
def _foreign(host: Machine, name: str, more: str = "") -> Iterator[str]:
    """A QEMU that a script has started; its process."""
    host.sh((_QEMU + more).format(name=name)).check()
    try:
        yield lines(host, f"cat /run/{name}.pid")[0]
    finally:
        _end(host, name)


def _end(host: Machine, name: str) -> None:
    host.sh(f"kill $(cat /run/{name}.pid); rm -f /mnt/pkernfs/{name}.ram").check()


def _machines(host: Machine) -> dict[str, str]:
    """What doctor says of virtual machines, by id."""
    found = json.loads(host.run(["pkernfs", "doctor", "--json"]).stdout)["findings"]
    return {it["id"]: it["text"] for it in found if it["topic"] == "machines"}


@answers(
    phase="check",
    failure="a virtual machine of somebody else's runs (libvirt, Proxmox, a script)",
    outcome="refused and named, unless --override foreign.NAME",
)
def test_machines_of_others_stop_the_update_unless_named(guest: Tick) -> None:
    host = guest.host
    assert list(_machines(host)) == ["machines"]
    # No QEMU at all: whoever has a machine of KVM's.
    other = (
        "import fcntl, os, time; kvm = os.open('/dev/kvm', os.O_RDWR | os.O_CLOEXEC);"
        " vm = fcntl.ioctl(kvm, 0xAE01, 0); print(os.getpid(), flush=True); time.sleep(900)"
    )
    host.sh(f'setsid python3 -c "{other}" >/tmp/other </dev/null 2>&1 &').check()
    (pid,) = lines(host, "while ! [ -s /tmp/other ]; do sleep 0.2; done; cat /tmp/other")
    try:
        with _foreign(host, "web") as web, _foreign(host, "db", _IN_STORE):
            found = _machines(host)
            assert set(found) == {"foreign.web", "foreign.db", f"foreign.{pid}"}
            assert f"web (process {web}, qemu-system-x86_64)" in found["foreign.web"]
            assert "has memory of /mnt/pkernfs" in found["foreign.db"]
            refused(guest, "pkernfs update", "virtual machine web")
            words = f"--override foreign.web --override foreign.{pid}"
            refused(guest, f"pkernfs update {words}", "virtual machine db")
            host.sh(f"pkernfs update --dry-run {words} --override foreign.db").check()
    finally:
        host.sh(f"kill {pid}").check()
    assert list(_machines(host)) == ["machines"]


@answers(
    phase="up to the jump",
    failure="a guest begins to run after the check",
    outcome="given up, all guests run on, the new one too; it is named",
)
def test_a_guest_that_began_meanwhile_stops_the_update(guest: Tick) -> None:
    host = guest.host
    (host.share / "late.py").write_text(_PAST_THE_LOCK)
    act = "subprocess.run(['python3', '/mnt/share/late.py'], check=True)"
    try:
        refused(
            guest,
            _meanwhile(host, ("begin", "pause"), act),
            "guest late began to run after the update was checked",
        )
        vms = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
        assert {vm["name"]: vm["state"] for vm in vms} == {"late": "running", "tick": "running"}
        assert demo.report_of(host)["outcome"] == "rolled back"
    finally:
        host.sh("pkernfs vm stop late --force --delete").check()


@answers(
    phase="up to the jump",
    failure="a virtual machine of somebody else's begins to run after the check",
    outcome="given up, all guests run on; it is named",
)
def test_a_machine_of_others_that_began_meanwhile_stops_the_update(guest: Tick) -> None:
    host = guest.host
    command = (_QEMU + _IN_STORE).format(name="script")
    act = f"subprocess.run({command.split()!r}, check=True)"
    try:
        refused(guest, _meanwhile(host, ("begin", "pause"), act), "virtual machine script")
    finally:
        _end(host, "script")


@answers(
    phase="input",
    failure="vm start, vm stop or vm adopt during an update",
    outcome="refused at once, the update is named; resumes and dry runs are waited for",
)
def test_who_runs_does_not_change_during_an_update(guest: Tick) -> None:
    host = guest.host
    verbs = ("start late --ram 32M", "stop tick --force", "adopt --qmp /run/none.qmp")
    tries = "; ".join(f"pkernfs vm {verb}; echo $?" for verb in verbs)
    act = f"subprocess.run('({tries}) >/tmp/tries 2>&1', shell=True); os.kill(os.getpid(), 15)"
    refused(guest, _meanwhile(host, ("begin", "load"), act), "interrupted")
    said = lines(host, "cat /tmp/tries")
    assert [line for line in said if line.isdigit()] == ["1", "1", "1"]
    waits = [line for line in said if "has to wait: update " in line]
    assert [line.split(" has")[0] for line in waits] == [
        "pkernfs: vm start late",
        "pkernfs: vm stop tick",
        "pkernfs: vm adopt /run/none.qmp",
    ]
    update = lines(host, "cat /mnt/pkernfs/updates/last")[0]
    assert all(f"update {update} is going on: process " in line for line in waits)
    assert lines(host, "ls /mnt/pkernfs/vms") == ["tick"]
