# SPDX-License-Identifier: GPL-2.0-only
"""The way back after the jump, and what is started early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.update import early, report
from pkernfs.update import resume as resuming
from pkernfs.update.lock import update_lock
from pkernfs.vmm import launch, process
from pkernfs.vmm.config import Guest
from tests.answers import answers
from tests.unit.update.fakes import (
    FakeKexec,
    as_before,
    kexec_to,
    qmp,
    run_update,
)
from tests.unit.vmm.fakes import FakeHost


def test_a_state_that_does_not_load_keeps_its_files_and_can_be_tried_again(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    bad = Guest("a", host.places)
    content = bad.state.read_text()
    bad.state.write_text("y" * len(content))
    (failed, fine) = resuming.resume(host.machine, host.places).guests
    assert "fake state does not fit" in failed.error
    assert fine == resuming.Resumed("b")
    assert host.states() == {"a": "saved", "b": "running"}
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "partial"
    assert [vm["survived"] for vm in value["vms"]] == [False, True]
    bad.state.write_text(content)
    assert resuming.resume(host.machine, host.places).guests == [resuming.Resumed("a")]
    assert host.states() == {"a": "running", "b": "running"}
    assert report.build(host.places, host.machine.update_marker or "")["outcome"] == "completed"


@answers(
    phase="resume",
    failure="a guest's file is missing or has another size",
    outcome="set aside with its files, the others run",
)
@pytest.mark.parametrize("file", ["ram", "state", "config.json", "saved.json"])
def test_a_damaged_file_sets_only_its_guest_aside(
    host: FakeHost, jumper: FakeKexec, file: str
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    path = Guest("a", host.places).directory / file
    path.write_bytes(path.read_bytes()[:-7])
    results = resuming.resume(host.machine, host.places).guests
    assert [(result.name, bool(result.error)) for result in results] == [("a", True), ("b", False)]
    assert process.running(Guest("b", host.places)) is not None
    assert process.running(Guest("a", host.places)) is None
    assert path.exists()


def _begin(host: FakeHost) -> early.Early | None:
    line = host.root / "proc/cmdline"
    return early.begin(str(host.places.store), str(host.places.run), str(line))


def test_guests_are_started_before_the_rest_of_the_program(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    paused = host.start("b")
    qmp(paused, "stop")
    kexec_to(host, jumper)
    begun = _begin(host)
    assert begun is not None
    assert [it.launch.name for it in begun.launcher.attempts if it.done] == ["a", "b"]
    # A state that is older than the guest's memory can't be taken for a saved one.
    assert Guest("a", host.places).saved() is None
    outcome = resuming.resume(host.machine, host.places, early=begun)
    assert outcome.guests == [resuming.Resumed("a"), resuming.Resumed("b")]
    assert host.states() == {"a": "running", "b": "paused"}
    assert not Guest("a", host.places).state.exists()
    as_before(Guest("a", host.places))
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "completed"
    assert [vm["blackout_s"] is not None for vm in value["vms"]] == [True, False]
    names = {phase["name"] for phase in value["phases"]}
    assert names >= {"kernel", "interpreter", "verify", "start", "load state", "run"}


@answers(
    phase="resume",
    failure="a guest's QEMU does not start",
    outcome="set aside with its files, the others run; resume tries again",
)
@pytest.mark.parametrize("how", ["refuses", "dies"])
def test_what_can_not_be_started_early_is_told_and_can_be_tried_again(
    host: FakeHost, jumper: FakeKexec, how: str
) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    host.misbehave(how)
    (failed,) = resuming.resume(host.machine, host.places, early=_begin(host)).guests
    assert ("fake state does not fit" if how == "refuses" else "not a valid device") in failed.error
    assert process.running(guest) is None
    assert host.states() == {"a": "saved"}
    host.misbehave("")
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "running"}


@pytest.mark.parametrize("file", ["ram", "state", "saved.json"])
def test_nothing_is_started_early_from_files_that_are_not_as_they_were(
    host: FakeHost, jumper: FakeKexec, file: str
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    path = Guest("a", host.places).directory / file
    path.write_bytes(path.read_bytes()[:-7])
    begun = _begin(host)
    assert begun is not None
    assert [it.launch.name for it in begun.launcher.attempts] == ["b"]
    results = resuming.resume(host.machine, host.places, early=begun).guests
    assert [(result.name, bool(result.error)) for result in results] == [("a", True), ("b", False)]


@answers(
    phase="resume",
    failure="a guest's QEMU hangs at its start",
    outcome="the others run long before it is given up; resume tries again",
)
def test_a_guest_that_does_not_start_holds_nobody_back(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slot, and the first guest never greets: the second runs long before that is given up."""
    host.start("a", "-mute-when-incoming")
    host.start("b")
    kexec_to(host, jumper)
    monkeypatch.setattr(launch, "SLOT_S", 2.0)
    monkeypatch.setattr(launch, "START_S", 6.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    begun = _begin(host)
    assert begun is not None
    assert [(it.launch.name, it.over) for it in begun.launcher.attempts] == [
        ("a", False),
        ("b", True),
    ]
    bad, good = resuming.resume(host.machine, host.places, early=begun).guests
    assert "did not start within 6 s" in bad.error
    assert not good.error
    assert host.states() == {"a": "saved", "b": "running"}


def test_a_second_resume_keeps_off(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    kexec_to(host, jumper)
    with update_lock(host.places):
        assert _begin(host) is None


def test_nothing_is_started_early_without_an_update(host: FakeHost) -> None:
    assert _begin(host) is None


def test_starting_early_imports_next_to_nothing() -> None:
    """Each of these costs paused guests more than starting QEMU does."""
    import subprocess
    import sys

    code = (
        f"import sys; sys.path.insert(0, {str(Path(early.__file__).parents[2])!r});"
        "import pkernfs.cli, pkernfs.update.early;"
        "slow = {'re', 'json', 'typing', 'pathlib', 'contextlib', 'collections', 'enum',"
        " 'dataclasses', 'subprocess', 'socket', 'ctypes'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_resume_without_anything_to_do(host: FakeHost) -> None:
    assert resuming.resume(host.machine, host.places).guests == []


def test_old_updates_are_forgotten(host: FakeHost, jumper: FakeKexec) -> None:
    for _ in range(7):
        with pytest.raises(PkernfsError):
            run_update(host)
    assert len([path for path in host.places.updates.iterdir() if path.is_dir()]) == 5


def test_resume_imports_nothing_slow_before_qemu_starts() -> None:
    """typing to start QEMU: neither the QMP client nor asyncio nor rich may be loaded."""
    import subprocess
    import sys

    code = (
        "import sys, pkernfs.cli, pkernfs.cli.resume;"
        "slow = {'asyncio', 'qemu.qmp', 'rich', 'typer', 'dissect', 'hashlib'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
