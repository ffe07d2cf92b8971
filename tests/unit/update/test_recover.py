# SPDX-License-Identifier: GPL-2.0-only
"""An update that is killed: its guard brings everything back, or --recover does."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec
from pkernfs.update import guard, handover, journal, lock, plan, quiesce, recover, report
from pkernfs.update import resume as resuming
from pkernfs.update.journal import Journal
from pkernfs.update.timeline import Timeline
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on, guard_of, jumper
from tests.unit.vmm.fakes import FakeHost, host

__all__ = ["host", "jumper"]


def _update(host: FakeHost) -> None:
    handover.update(host.machine, host.places, handover.Request(), lambda _: None)


def _in_child(block: Callable[[], object]) -> int:
    """Run something in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        try:
            block()
        finally:
            os._exit(1)
    return child


def _killed(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _until_free(host: FakeHost) -> None:
    """Wait until nobody updates or brings anything back."""
    deadline = time.monotonic() + 20
    while lock.holder(host.places) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


#: Everything that an update writes down before the jump, in this order.
MOMENTS = [
    ("begin", "check"),
    ("end", "check"),
    ("begin", "load"),
    ("end", "load"),
    ("begin", "pause"),
    ("end", "pause"),
    ("begin", "save"),
    ("end", "save"),
    ("moment", "state bytes"),
    ("begin", "hand over"),
    ("end", "hand over"),
    ("begin", "kernel"),
]


def _die_at(monkeypatch: pytest.MonkeyPatch, event: str, subject: str) -> None:
    mark = Timeline.mark

    def deadly(self: Timeline, found: str, about: str, *args: Any, **kwargs: Any) -> None:
        mark(self, found, about, *args, **kwargs)
        if (found, about) == (event, subject):
            _die()

    monkeypatch.setattr(Timeline, "mark", deadly)


@answers(
    phase="up to the jump",
    failure="killed by SIGKILL at the end of a phase",
    outcome="its guard lets all guests run on at once, thaws disks, unloads the kernel",
)
@pytest.mark.parametrize(("event", "subject"), MOMENTS)
def test_killed_at_any_moment_all_guests_run_on_at_once(
    host: FakeHost,
    jumper: FakeKexec,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    subject: str,
) -> None:
    host.start("a")
    host.start("b")
    with monkeypatch.context() as patched:
        _die_at(patched, event, subject)
        _killed(_in_child(lambda: _update(host)))
    _until_free(host)
    all_run_on(host, jumper, "a", "b")
    assert journal.read(host.places) is None


@answers(
    phase="up to the jump",
    failure="killed by SIGKILL at any moment",
    outcome="its guard brings everything back",
)
def test_killed_at_random_moments_all_guests_run_on(host: FakeHost, jumper: FakeKexec) -> None:
    """In one place after the other, and each update after it finds everything in order."""
    jumper.jump = lambda: time.sleep(0.5)
    host.start("a")
    chance = random.Random(7)
    for _ in range(8):
        child = _in_child(lambda: _update(host))
        time.sleep(chance.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _until_free(host)
        all_run_on(host, jumper, "a")
        assert journal.read(host.places) is None


def test_a_paused_guest_stays_paused_when_the_update_is_killed(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.update.fakes import qmp

    qmp(host.start("a"), "stop")
    _die_at(monkeypatch, "begin", "kernel")
    _killed(_in_child(lambda: _update(host)))
    _until_free(host)
    # Not running, as before. QEMU's word for it is another one after a migration.
    assert host.states() == {"a": "postmigrate"}


def test_the_report_says_that_it_was_killed(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    with monkeypatch.context() as patched:
        _die_at(patched, "end", "save")
        _killed(_in_child(lambda: _update(host)))
    _until_free(host)
    update = plan.last_update(host.places, host.machine)
    assert update is not None
    value = report.build(host.places, update)
    assert (value["outcome"], value["text"]) == ("rolled back", "it was killed")
    (vm,) = value["vms"]
    assert (vm["survived"], vm["error"]) == (True, "")
    assert 0 < vm["blackout_s"] < 30


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
    child = _in_child(lambda: _update(host))
    _killed(child)
    host.misbehave("")
    _until_free(host)
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
    child = _in_child(lambda: _update(host))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert jumped.exists()
    assert host.states() == {"a": "postmigrate"}


def _kill_both(host: FakeHost, monkeypatch: pytest.MonkeyPatch, subject: str) -> None:
    mark = Timeline.mark

    def deadly(self: Timeline, event: str, about: str, *args: Any, **kwargs: Any) -> None:
        mark(self, event, about, *args, **kwargs)
        if (event, about) == ("end", subject):
            os.kill(guard_of(host), signal.SIGKILL)
            _die()

    with monkeypatch.context() as patched:
        patched.setattr(Timeline, "mark", deadly)
        _killed(_in_child(lambda: _update(host)))
    _until_free(host)


@answers(
    phase="up to the jump",
    failure="killed together with its guard",
    outcome="paused until pkernfs update --recover brings all back; no other update begins",
)
@pytest.mark.parametrize("by", ["recover", "resume"])
@pytest.mark.parametrize("subject", ["load", "save", "hand over"])
def test_without_its_guard_it_is_undone_by_hand(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, subject: str, by: str
) -> None:
    host.start("a")
    host.start("b")
    _kill_both(host, monkeypatch, subject)
    assert jumper.loaded is not None
    with pytest.raises(PkernfsError, match=r"was killed and is not undone \(guests a, b\)"):
        _update(host)
    if by == "recover":
        done = recover.recover(host.machine, host.places)
        assert done is not None
        assert (done.guests, done.failed) == (("a", "b"), ())
        assert recover.recover(host.machine, host.places) is None
    else:
        assert resuming.resume(host.machine, host.places).guests == [
            resuming.Resumed("a"),
            resuming.Resumed("b"),
        ]
    all_run_on(host, jumper, "a", "b")


@answers(
    phase="up to the jump",
    failure="a guest can't be let run on after that",
    outcome="said, exit status 1; the others run; --recover tries again",
)
def test_what_can_not_be_undone_is_said_and_tried_again(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    guest = host.start("b")
    _kill_both(host, monkeypatch, "save")
    guest.socket.rename(guest.socket.with_suffix(".away"))
    done = recover.recover(host.machine, host.places)
    assert done is not None
    assert done.guests == ("a",)
    assert [(failure.guest, failure.again) for failure in done.failed] == [("b", True)]
    assert "NOT all of it" in done.summary()
    guest.socket.with_suffix(".away").rename(guest.socket)
    again = recover.recover(host.machine, host.places)
    assert again is not None
    assert again.failed == ()
    all_run_on(host, jumper, "a", "b")


@answers(
    phase="up to the jump",
    failure="a guest does not run on when the update goes back",
    outcome="tried once more; what is left is for --recover",
)
def test_a_guest_that_did_not_run_on_is_tried_once_more(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update's own way back fails for a guest; the same code as --recover goes on."""
    host.start("a")

    async def fail(*_: object) -> None:
        raise PkernfsError("guest a: QEMU refuses cont")

    monkeypatch.setattr(quiesce, "let_run", fail)
    with pytest.raises(PkernfsError, match=r"not every guest runs on.*they do now"):
        _update(host)
    all_run_on(host, jumper, "a")


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
        _update(host)
    all_run_on(host, jumper, "a")
    update = plan.last_update(host.places, host.machine) or ""
    assert "pause" not in (plan.directory(host.places, update) / "timeline.jsonl").read_text()


def test_a_dry_run_that_is_killed_leaves_qemu_as_it_was(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    with monkeypatch.context() as patched:
        patched.setattr(plan, "check_space", lambda *_: _die())
        request = handover.Request()
        _killed(_in_child(lambda: handover.dry_run(host.machine, host.places, request)))
    _until_free(host)
    all_run_on(host, jumper, "a")


@answers(
    phase="input",
    failure="two updates, resumes or recoveries at once",
    outcome="the second is refused and names the first one's process",
)
def test_two_at_once_say_who_is_there(host: FakeHost, jumper: FakeKexec) -> None:
    for what in ("update", "resume", "recovery"):
        says = f"another {what} is going on: process {os.getpid()}"
        with lock.update_lock(host.places, what):
            with pytest.raises(PkernfsError, match=says):
                _update(host)
            with pytest.raises(PkernfsError, match=says):
                resuming.resume(host.machine, host.places)
            with pytest.raises(PkernfsError, match=says):
                recover.recover(host.machine, host.places)
    assert lock.holder(host.places) is None


def test_a_journal_that_was_cut_short_still_counts(host: FakeHost) -> None:
    written = Journal(host.places)
    written.note(journal.GUEST, "a b")
    written.note(journal.RAN, "a b")
    written.note(journal.GUEST, "c")
    written.note_freeze(Path("/one two"), None)
    written.note_freeze(Path("/one two"), True)
    written.note_freeze(Path("/somebody-elses"), None)
    written.note_freeze(Path("/somebody-elses"), False)
    written.note(journal.LOAD)
    written.close(undone=False)
    with journal.path_of(host.places).open("a") as file:
        file.write('["arm"')
    begun = journal.read(host.places)
    assert begun is not None
    assert begun.guests == {"a b": True, "c": False}
    assert begun.frozen == [Path("/one two")]
    assert (begun.loaded, begun.armed) == (True, False)


def test_thawing_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert kexec.thaw([tmp_path / "gone"]) == [tmp_path / "gone"]


def test_the_guard_survives_what_ends_a_terminal(host: FakeHost, jumper: FakeKexec) -> None:
    """SIGINT goes to the whole foreground group, SIGHUP comes when the line is lost."""
    with guard.guarded(host.machine, host.places) as standing:
        time.sleep(0.3)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(standing.pid, number)
        time.sleep(0.1)
        standing.pausing()
        assert os.getsid(standing.pid) == standing.pid


def test_an_update_killed_before_its_first_step_is_in_nobodys_way(host: FakeHost) -> None:
    journal.Journal(host.places)
    assert journal.read(host.places) is None
    handover.check_leftovers(host.places)
    written = journal.Journal(host.places)
    written.note(journal.GUARD, "1")
    assert journal.read(host.places) is None
    assert recover.recover(host.machine, host.places) is None
    assert not journal.path_of(host.places).exists()
    written = journal.Journal(host.places)
    written.note(journal.LOAD)
    assert journal.read(host.places) == journal.Begun(loaded=True)
