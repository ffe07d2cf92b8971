# SPDX-License-Identifier: GPL-2.0-only
"""Nobody is lost with the kernel who was not there when the update was checked, or not named."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, Status, default_kernel
from pkernfs.update import doctor, handover, plan, report
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Record
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on, kexec_to, run_update
from tests.unit.vmm.fakes import FakeHost
from tests.unit.vmm.test_census import add

_QEMU = "/usr/bin/qemu-system-x86_64"


def _machines(host: FakeHost) -> list[Finding]:
    found = doctor.examine(host.machine, host.places, default_kernel(host.machine))
    return [finding for finding in found if finding.topic == "machines"]


@answers(
    phase="check",
    failure="a virtual machine of somebody else's runs (libvirt, Proxmox, a script)",
    outcome="refused and named, unless --override foreign.NAME",
)
def test_machines_of_others_are_named(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    assert [it.status for it in _machines(host)] == [Status.OK]
    add(host.root, 4001, _QEMU, ("-name", "guest=web,debug-threads=on"))
    add(host.root, 4002, "/opt/firecracker", opened="anon_inode:kvm-vm")
    add(host.root, 4003, _QEMU, ("-name", "twin"), maps="7f0-7f1 rw-s 0 00:14 9 /x\n")
    add(host.root, 4004, _QEMU, ("-name", "twin"))
    ids = ["foreign.web", "foreign.4002", "foreign.twin.4003", "foreign.twin.4004"]
    found = _machines(host)
    assert [(it.id, it.status, it.overridable) for it in found] == [
        (id, Status.BLOCKER, True) for id in ids
    ]
    assert "web (process 4001, qemu-system-x86_64)" in found[0].text
    assert "it ends with this kernel" in found[0].text
    assert f"has memory of {host.places.store}" in found[2].text
    assert "vm adopt" in found[2].hint

    with pytest.raises(PkernfsError) as caught:
        run_update(host)
    for id, name in zip(ids, ("web", "4002", "4003", "4004"), strict=True):
        assert name in caught.value.what
        assert f"--override {id}" in caught.value.hint
    all_run_on(host, jumper, "a")
    # One that was named and has ended since is nobody's loss any more.
    named = frozenset({*ids, "foreign.gone"})
    kexec_to(host, jumper, override=named)


def _when(host: FakeHost, event: str, subject: str, act: Callable[[], object]) -> None:
    """Update, and have somebody else do something at a line of its timeline."""

    def watch(what: Plan | Record) -> None:
        if isinstance(what, Record) and (what.event, what.subject) == (event, subject):
            somebody = threading.Thread(target=act)
            somebody.start()
            somebody.join()

    handover.update(host.machine, host.places, handover.Request(), watch)


@answers(
    phase="up to the jump",
    failure="a guest begins to run after the check",
    outcome="given up, all guests run on, the new one too; it is named",
)
@pytest.mark.parametrize(("event", "subject"), [("end", "check"), ("begin", "pause")])
def test_a_guest_that_began_meanwhile_is_not_lost(
    host: FakeHost, jumper: FakeKexec, event: str, subject: str
) -> None:
    host.start("a")
    jumped: list[bool] = []
    jumper.jump = lambda: jumped.append(True)
    with pytest.raises(PkernfsError, match="guest b began to run after the update was checked"):
        _when(host, event, subject, lambda: host.start("b"))
    assert not jumped
    all_run_on(host, jumper, "a", "b")
    update = plan.last_update(host.places, host.machine)
    assert update is not None
    value = report.build(host.places, update)
    assert value["outcome"] == "rolled back"
    assert "guest b" in value["text"]


@pytest.mark.parametrize("maps", ["", "7f0-7f1 rw-s 0 00:14 9 /x\n"])
def test_a_machine_of_somebody_else_that_began_meanwhile_is_not_lost(
    host: FakeHost, jumper: FakeKexec, maps: str
) -> None:
    host.start("a")
    jumped: list[bool] = []
    jumper.jump = lambda: jumped.append(True)
    with pytest.raises(PkernfsError, match="virtual machine late") as caught:
        _when(
            host,
            "begin",
            "save",
            lambda: add(host.root, 4001, _QEMU, ("-name", "late"), maps=maps),
        )
    assert "foreign.late" in caught.value.hint
    assert not jumped
    all_run_on(host, jumper, "a")
    shutil.rmtree(host.root / "proc/4001")
    kexec_to(host, jumper)
