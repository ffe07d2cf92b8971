# SPDX-License-Identifier: GPL-2.0-only
"""An update that is killed: its guard brings everything back, or --recover does."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import freeze
from pkernfs.update import handover, journal, lock, plan, recover, report
from pkernfs.update import resume as resuming
from pkernfs.update.journal import Journal
from pkernfs.update.timeline import Timeline
from pkernfs.update.waiting import Resumed
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on, guard_of, run_update
from tests.unit.update.processes import die, in_child, killed, until_free
from tests.unit.vmm.fakes import FakeHost

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
            die()

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
        killed(in_child(lambda: run_update(host)))
    until_free(host)
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
        child = in_child(lambda: run_update(host))
        time.sleep(chance.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        until_free(host)
        all_run_on(host, jumper, "a")
        assert journal.read(host.places) is None


def test_a_paused_guest_stays_paused_when_the_update_is_killed(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.update.fakes import qmp

    qmp(host.start("a"), "stop")
    _die_at(monkeypatch, "begin", "kernel")
    killed(in_child(lambda: run_update(host)))
    until_free(host)
    # Not running, as before. QEMU's word for it is another one after a migration.
    assert host.states() == {"a": "postmigrate"}


def test_the_report_says_that_it_was_killed(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    with monkeypatch.context() as patched:
        _die_at(patched, "end", "save")
        killed(in_child(lambda: run_update(host)))
    until_free(host)
    update = plan.last_update(host.places, host.machine)
    assert update is not None
    value = report.build(host.places, update)
    assert (value["outcome"], value["text"]) == ("rolled back", "it was killed")
    (vm,) = value["vms"]
    assert (vm["survived"], vm["error"]) == (True, "")
    assert 0 < vm["blackout_s"] < 30


def _kill_both(host: FakeHost, monkeypatch: pytest.MonkeyPatch, subject: str) -> None:
    mark = Timeline.mark

    def deadly(self: Timeline, event: str, about: str, *args: Any, **kwargs: Any) -> None:
        mark(self, event, about, *args, **kwargs)
        if (event, about) == ("end", subject):
            os.kill(guard_of(host), signal.SIGKILL)
            die()

    with monkeypatch.context() as patched:
        patched.setattr(Timeline, "mark", deadly)
        killed(in_child(lambda: run_update(host)))
    until_free(host)


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
        run_update(host)
    if by == "recover":
        done = recover.recover(host.machine, host.places)
        assert done is not None
        assert (done.guests, done.failed) == (("a", "b"), ())
        assert recover.recover(host.machine, host.places) is None
    else:
        assert resuming.resume(host.machine, host.places).guests == [
            Resumed("a"),
            Resumed("b"),
        ]
    all_run_on(host, jumper, "a", "b")


@answers(
    phase="up to the jump",
    failure="a guest can't be let run on after that",
    outcome="said, exit status 3; the others run; --recover tries again",
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


def test_a_dry_run_that_is_killed_leaves_qemu_as_it_was(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    with monkeypatch.context() as patched:
        patched.setattr(plan, "check_space", lambda *_: die())
        request = handover.Request()
        killed(in_child(lambda: handover.dry_run(host.machine, host.places, request)))
    until_free(host)
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
                run_update(host)
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
    assert freeze.thaw([tmp_path / "gone"]) == [tmp_path / "gone"]


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
