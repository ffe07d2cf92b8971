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
from pkernfs.update.waiting import KEPT, Resumed
from pkernfs.vmm import guests, launch, process
from pkernfs.vmm.config import Guest, started_guests
from tests.answers import answers
from tests.unit.update.fakes import (
    FakeKexec,
    as_before,
    kexec_to,
    qmp,
    run_update,
)
from tests.unit.update.processes import die, in_child, killed, until_free
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
    assert fine == Resumed("b")
    assert host.states() == {"a": "saved", "b": "running"}
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "partial"
    assert [vm["survived"] for vm in value["vms"]] == [False, True]
    bad.state.write_text(content)
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
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
    assert outcome.guests == [Resumed("a"), Resumed("b")]
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


def _killed_before_it_runs(host: FakeHost) -> None:
    """A resume that ends between the last step and the guest's first instruction."""

    def die_before(_: launch.Attempt) -> None:
        Guest("a", host.places).begins_to_run()
        die()

    def resume() -> None:
        launch.Attempt._let_run = die_before  # type: ignore[method-assign, assignment]
        resuming.resume(host.machine, host.places)

    killed(in_child(resume))
    until_free(host)


@answers(
    phase="resume",
    failure="killed just before a guest runs",
    outcome="resume again lets it run; what was saved is not loaded a second time",
)
def test_a_guest_that_was_about_to_run_is_let_run(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    _killed_before_it_runs(host)
    child = process.running(guest)
    assert child is not None
    assert guest.saved() is None
    assert host.states() == {"a": "paused"}
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
    assert host.states() == {"a": "running"}
    assert process.running(guest) == child
    assert list(started_guests(host.places)) == []
    as_before(guest)


@answers(
    phase="resume",
    failure="the kernel or QEMU ends when a guest may have run already",
    outcome="what was saved is older than its memory, and not loaded; vm start boots it anew",
)
def test_a_guest_that_may_have_run_is_not_loaded_again(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    _killed_before_it_runs(host)
    host.kill_all()
    for _ in range(2):
        (failed,) = resuming.resume(host.machine, host.places).guests
        assert "what was saved is too old" in failed.error
        assert failed.hint.endswith("pkernfs vm start a")
    assert _begin(host) is None
    assert process.running(guest) is None
    assert host.states() == {"a": "off"}
    guests.start(host.places, "a", None, (), machine=host.machine)
    assert not guest.state.exists()
    assert resuming.resume(host.machine, host.places).guests == []


@pytest.mark.parametrize("begun", [True, False])
def test_a_guest_that_qemu_does_not_let_run_can_be_tried_again(
    host: FakeHost, jumper: FakeKexec, begun: bool
) -> None:
    """It certainly did not run, so what was saved is good."""
    guest = host.start("a")
    kexec_to(host, jumper)
    host.misbehave("stays")
    early_one = _begin(host) if begun else None
    (failed,) = resuming.resume(host.machine, host.places, early=early_one).guests
    assert "QEMU refuses: fake disk is locked" in failed.error
    assert failed.hint == KEPT
    assert process.running(guest) is None
    assert guest.saved() is not None
    host.misbehave("")
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "running"}


def test_a_qemu_that_may_let_its_guest_run_yet_is_not_ended(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    host.misbehave("silent")
    monkeypatch.setattr(launch, "LOAD_S", 1.0)
    (failed,) = resuming.resume(host.machine, host.places).guests
    assert "did not let the guest run within 1 s" in failed.error
    child = process.running(guest)
    assert child is not None
    host.misbehave("")
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
    assert process.running(guest) == child
    assert host.states() == {"a": "running"}


def test_a_qemu_that_waits_for_its_state_is_told_to_run_as_well(
    host: FakeHost, jumper: FakeKexec
) -> None:
    """A resume that was killed before it told QEMU to load: the next one goes on with it."""
    guest = host.start("a")
    kexec_to(host, jumper)
    process.spawn(guest, guest.config(), incoming=True)
    host.misbehave("stays")
    (failed,) = resuming.resume(host.machine, host.places).guests
    assert "fake disk is locked" in failed.error
    assert guest.saved() is not None
    host.misbehave("")
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
    assert host.states() == {"a": "running"}


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


@answers(
    phase="next kernel",
    failure="a QEMU of that name was started while the guest's store was not mounted",
    outcome="it is not taken for the saved guest, whose state is kept; resume says so",
)
def test_a_qemu_with_other_memory_is_not_the_saved_guest(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    own = guest.ram.with_name("own")
    guest.ram.rename(own)
    guest.ram.write_bytes(bytes(own.stat().st_size))
    assert process.wait_mapped(process.spawn(guest, guest.config(), incoming=False), guest)
    own.replace(guest.ram)
    monkeypatch.setattr(process, "wait_mapped", process.maps_memory)
    (failed,) = resuming.resume(host.machine, host.places).guests
    assert "has not the memory" in failed.error
    assert guest.saved() is not None
    assert guest.state.exists()
    with pytest.raises(PkernfsError, match="has not the memory"):
        guests.stop(host.places, "a", force=True, delete=False)
    assert guest.saved() is not None
    host.kill_all()
    assert [one.error for one in resuming.resume(host.machine, host.places).guests] == [""]
