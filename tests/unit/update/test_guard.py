# SPDX-License-Identifier: GPL-2.0-only
"""The guard of an update: what it does by itself, and what it goes on trying."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec
from pkernfs.update import guard, handover, journal, lock, plan, quiesce, recover, report
from pkernfs.update.timeline import Timeline
from pkernfs.vmm.config import Guest
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on, guard_of, run_update
from tests.unit.update.processes import die, in_child, killed, until_free
from tests.unit.vmm.fakes import FakeHost


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard tries again in no time."""
    monkeypatch.setattr(guard, "_PAUSE_S", (0.05, 0.2))


@answers(
    phase="up to the jump",
    failure="it hangs with guests paused",
    outcome="its guard ends it after 240 s and brings everything back",
)
def test_an_update_that_hangs_with_guests_paused_is_ended(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own time limit is the longer one here, so the guard's counts."""
    monkeypatch.setattr(guard, "PAUSED_S", 0.5)
    host.start("a")
    host.misbehave("hangs")
    child = in_child(lambda: run_update(host))
    killed(child)
    host.misbehave("")
    until_free(host)
    all_run_on(host, jumper, "a")


def test_the_time_limit_ends_with_the_jump(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that ran on while the kernel is on its way to the next one would be lost."""
    monkeypatch.setattr(guard, "PAUSED_S", 0.3)
    jumped = host.root / "jumped"

    def jump() -> None:
        time.sleep(1)
        jumped.touch()
        os.kill(guard_of(host), signal.SIGKILL)
        os._exit(0)

    jumper.jump = jump
    host.start("a")
    child = in_child(lambda: run_update(host))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert jumped.exists()
    assert host.states() == {"a": "postmigrate"}


@answers(
    phase="up to the jump",
    failure="a guest does not run on when the update goes back",
    outcome="tried once more; then its guard tries again for ten minutes; then --recover",
)
def test_a_guest_that_did_not_run_on_is_tried_once_more(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update's own way back fails for a guest; the same code as --recover goes on."""
    host.start("a")
    _never_lets_run(monkeypatch)
    with pytest.raises(PkernfsError, match=r"not every guest runs on.*now it is undone"):
        run_update(host)
    all_run_on(host, jumper, "a")


def _never_lets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise PkernfsError("guest a: QEMU refuses cont")

    monkeypatch.setattr(quiesce, "let_run", fail)


def _away(guest: Guest) -> Path:
    """Take a guest's socket away, as if its QEMU did not answer; where it is now."""
    away = guest.socket.with_suffix(".away")
    guest.socket.rename(away)
    return away


def _given_up(host: FakeHost, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An update whose guest does not answer when it goes back; where its socket is."""
    undo = recover.undo
    updater = os.getpid()
    moved = []

    def without_socket(*arguments: Any) -> recover.Recovered | None:
        if os.getpid() == updater:
            moved.append(_away(guest))
        return undo(*arguments)

    _never_lets_run(monkeypatch)
    monkeypatch.setattr(recover, "undo", without_socket)
    with pytest.raises(PkernfsError, match="not every guest runs on") as caught:
        run_update(host)
    assert caught.value.hint.startswith(f"process {guard_of(host)} tries again for 10 minutes")
    return moved[0]


def test_a_guest_that_answers_later_runs_on_without_anybody(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    guest = host.start("a")
    host.put("dev/kmsg", "")
    with monkeypatch.context() as patched:
        away = _given_up(host, guest, patched)
    says = f"another recovery is going on: process {guard_of(host)}"
    time.sleep(0.5)  # some tries
    with pytest.raises(PkernfsError, match=says):
        run_update(host)
    away.rename(guest.socket)
    until_free(host)
    all_run_on(host, jumper, "a")
    assert journal.read(host.places) is None
    value = report.build(host.places, plan.last_update(host.places, host.machine) or "")
    assert value["outcome"] == "rolled back"
    assert "refuses cont" in value["text"]
    assert "was ended and is undone; as before: a" in (host.root / "dev/kmsg").read_text()
    assert [vm["survived"] for vm in value["vms"]] == [True]


def test_what_never_answers_is_left_to_recover(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setattr(guard, "AGAIN_S", 0.3)
    monkeypatch.setattr(handover, "AGAIN_S", 600.0)
    guest = host.start("a")
    with monkeypatch.context() as patched:
        away = _given_up(host, guest, patched)
    until_free(host)
    with pytest.raises(PkernfsError, match=r"was given up and is not undone \(guests a\)"):
        run_update(host)
    away.rename(guest.socket)
    done = recover.recover(host.machine, host.places)
    assert done is not None
    assert done.failed == ()
    all_run_on(host, jumper, "a")


def test_a_killed_updates_guest_that_answers_later_runs_on(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    guest = host.start("a")
    with monkeypatch.context() as patched:
        mark = Timeline.mark

        def deadly(self: Timeline, event: str, about: str, *args: Any, **kwargs: Any) -> None:
            mark(self, event, about, *args, **kwargs)
            if (event, about) == ("end", "save"):
                _away(guest)
                die()

        patched.setattr(Timeline, "mark", deadly)
        killed(in_child(lambda: run_update(host)))
    time.sleep(0.5)
    assert lock.holder(host.places) is not None
    guest.socket.with_suffix(".away").rename(guest.socket)
    until_free(host)
    all_run_on(host, jumper, "a")


def test_nobody_waits_for_the_guard(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    """Neither what reads the update's output nor what shows it: their pipes end with it."""
    guest = host.start("a")
    output, theirs = os.pipe()
    shown, inner = os.pipe()

    def update() -> None:
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        os.close(theirs)
        _given_up(host, guest, monkeypatch)
        os._exit(0)

    child = in_child(update)
    os.close(theirs)
    os.close(inner)
    for reading in (output, shown):
        assert select.select([reading], [], [], 20)[0]
        while os.read(reading, 4096):
            pass
        os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.holder(host.places) is not None
    guest.socket.with_suffix(".away").rename(guest.socket)
    until_free(host)
    all_run_on(host, jumper, "a")


def test_killed_when_a_guest_is_about_to_run_on_it_does(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved is not good any more then, but QEMU is there."""
    host.start("a")
    begins = Guest.begins_to_run
    updater: list[int] = []

    def deadly(guest: Guest) -> None:
        begins(guest)
        if os.getpid() in updater:
            die()

    def update() -> None:
        updater.append(os.getpid())
        run_update(host)

    monkeypatch.setattr(Guest, "begins_to_run", deadly)
    killed(in_child(update))
    until_free(host)
    all_run_on(host, jumper, "a")
    assert not Guest("a", host.places).started_file.exists()


@answers(
    phase="load",
    failure="the guard is killed",
    outcome="given up before a guest is paused",
)
def test_without_a_guard_no_guest_is_paused(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    load = jumper.load

    def kill_guard(*arguments: Any) -> None:
        os.kill(guard_of(host), signal.SIGKILL)
        time.sleep(0.2)
        load(*arguments)

    monkeypatch.setattr(kexec, "load", kill_guard)
    with pytest.raises(PkernfsError, match="has ended"):
        run_update(host)
    all_run_on(host, jumper, "a")
    update = plan.last_update(host.places, host.machine) or ""
    assert "pause" not in (plan.directory(host.places, update) / "timeline.jsonl").read_text()


def test_the_guard_survives_what_ends_a_terminal(host: FakeHost, jumper: FakeKexec) -> None:
    """SIGINT goes to the whole foreground group, SIGHUP comes when the line is lost."""
    with guard.guarded(host.machine, host.places) as standing:
        time.sleep(0.3)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(standing.pid, number)
        time.sleep(0.1)
        standing.pausing()
        assert os.getsid(standing.pid) == standing.pid
