# SPDX-License-Identifier: GPL-2.0-only
"""Who waits for whom: those who only look are in nobody's way."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.update import early, journal, lock
from pkernfs.update import resume as resuming
from pkernfs.update.waiting import Resumed
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, kexec_to
from tests.unit.vmm.fakes import FakeHost


@contextmanager
def _held(host: FakeHost, seconds: float, how: int, content: str) -> Iterator[None]:
    """Have the lock held for a while; what is in its file."""
    host.places.run.mkdir(parents=True, exist_ok=True)
    file = host.places.run / "update.lock"
    file.write_text(content)
    fd = os.open(file, os.O_RDWR)
    fcntl.flock(fd, how)
    timer = threading.Timer(seconds, fcntl.flock, (fd, fcntl.LOCK_UN))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        os.close(fd)


def _takes(host: FakeHost) -> bool:
    with lock.update_lock(host.places):
        return True


def _takes_early(host: FakeHost) -> bool:
    taken = early._lock(str(host.places.run))
    if taken is not None:
        os.close(taken)
    return taken is not None


@pytest.mark.parametrize("takes", [_takes, _takes_early])
def test_who_only_looks_makes_nobody_fail(host: FakeHost, takes: Callable[..., bool]) -> None:
    with _held(host, 0.2, fcntl.LOCK_SH, f"{os.getpid()} update\n"):
        assert lock.holder(host.places) is None
        assert takes(host)


def test_a_holder_of_a_moment_makes_nobody_fail(host: FakeHost) -> None:
    """What versions before this one did to look; what is written there is old."""
    with _held(host, 0.2, fcntl.LOCK_EX, "999999999 update\n"):
        assert _takes(host)


def test_looking_takes_nothing(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.update_lock(host.places):
        pass
    asked: list[int] = []
    real = fcntl.flock

    def ask(fd: int, how: int) -> None:
        asked.append(how)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", ask)
    assert lock.holder(host.places) is None
    assert not any(how & fcntl.LOCK_EX for how in asked)


@answers(
    phase="resume",
    failure="a dry run is going on, or doctor of an older version",
    outcome="waited for, up to 60 s; an update, resume or recovery is not",
)
@pytest.mark.parametrize("what", ["dry run", "doctor"])
def test_a_resume_waits_for_what_is_soon_over(host: FakeHost, jumper: FakeKexec, what: str) -> None:
    host.start("a")
    kexec_to(host, jumper)
    said: list[str] = []
    with _held(host, 1.5, fcntl.LOCK_EX, f"{os.getpid()} {what}\n"):
        outcome = resuming.resume(host.machine, host.places, waits=said.append)
    assert outcome.guests == [Resumed("a")]
    (line,) = said
    assert line.startswith(f"another {what} is going on: process {os.getpid()}; waiting")


def test_a_resume_does_not_wait_for_ever(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    with (
        lock.update_lock(host.places, "dry run"),
        pytest.raises(PkernfsError, match="another dry run is going on"),
    ):
        resuming.resume(host.machine, host.places)


@pytest.mark.parametrize("what", ["update", "resume", "recovery"])
def test_a_resume_is_refused_at_once_by_the_others(host: FakeHost, what: str) -> None:
    said: list[str] = []
    with lock.update_lock(host.places, what):
        began = time.monotonic()
        with pytest.raises(PkernfsError, match=f"another {what} is going on"):
            resuming.resume(host.machine, host.places, waits=said.append)
        assert time.monotonic() - began < early.READ_S / 2
    assert said == []


def _changes(host: FakeHost, what: str = "vm start b", **how: Any) -> list[str]:
    """Change who runs; what it says while it waits."""
    said: list[str] = []
    with lock.changing_guests(host.places, what, said.append, **how):
        return said


@answers(
    phase="input",
    failure="vm start, vm stop or vm adopt during an update",
    outcome="refused at once, the update is named; resumes and dry runs are waited for",
)
def test_who_runs_does_not_change_during_an_update(host: FakeHost) -> None:
    with lock.update_lock(host.places):
        written = journal.Journal(host.places)
        written.note(journal.UPDATE, "20261130-170000-abcd")
        began = time.monotonic()
        with pytest.raises(PkernfsError) as caught:
            _changes(host)
        assert time.monotonic() - began < early.READ_S / 2
        written.close(undone=True)
    assert caught.value.what == (
        f"vm start b has to wait: update 20261130-170000-abcd is going on: process {os.getpid()}"
    )
    assert "lost with this kernel" in caught.value.hint


@pytest.mark.parametrize(
    ("what", "how"),
    [("resume", {}), ("dry run", {}), ("recovery", {}), ("update", {"patient": True})],
)
def test_who_changes_guests_waits_for_what_passes(
    host: FakeHost, what: str, how: dict[str, Any]
) -> None:
    with _held(host, 0.3, fcntl.LOCK_EX, f"{os.getpid()} {what}\n"):
        (line,) = _changes(host, **how)
    assert line.startswith(f"{what} is going on: process {os.getpid()}; waiting")


def test_who_changes_guests_does_not_wait_for_ever(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    with (
        lock.update_lock(host.places, "resume"),
        pytest.raises(PkernfsError, match="vm start b has to wait: resume is going on"),
    ):
        _changes(host)


def test_a_guest_that_a_recovery_waits_for_can_be_given_up(host: FakeHost) -> None:
    with lock.update_lock(host.places, "recovery"):
        assert _changes(host, "vm stop b", beside=lock.BRINGING_BACK) == []
        assert lock.holder(host.places) == (os.getpid(), "recovery")  # its name is still there


def test_several_change_guests_at_once_and_nobody_updates(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    with (
        lock.changing_guests(host.places, "vm stop a"),
        lock.changing_guests(host.places, "vm start b"),
    ):
        assert lock.holder(host.places) is None
        with pytest.raises(PkernfsError) as caught, lock.update_lock(host.places):
            pass
        assert caught.value.what == f"pkernfs vm start b is going on: process {os.getpid()}"
    assert _takes(host)


@pytest.mark.parametrize("takes", [_takes, _takes_early])
def test_who_changes_guests_is_waited_for(host: FakeHost, takes: Callable[..., bool]) -> None:
    with _held(host, 0.3, fcntl.LOCK_SH, f"{os.getpid()} vm start a\n"):
        assert takes(host)


def test_an_update_says_for_whom_it_waits(host: FakeHost) -> None:
    said: list[str] = []
    with (
        _held(host, 1.5, fcntl.LOCK_SH, f"{os.getpid()} vm start a\n"),
        lock.update_lock(host.places, waits=said.append),
    ):
        pass
    (line,) = said
    assert line.startswith(f"pkernfs vm start a is going on: process {os.getpid()}; waiting")
