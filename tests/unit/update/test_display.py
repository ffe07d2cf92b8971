# SPDX-License-Identifier: GPL-2.0-only
"""What is shown during an update, and that showing it never holds a guest."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pkernfs.errors import PkernfsError
from pkernfs.update import display, handover, plan
from pkernfs.update import resume as resuming
from pkernfs.update.display import live, plain
from pkernfs.update.display.events import EVENT_SCHEMA, Event, parse_line
from pkernfs.update.display.progress import Progress
from pkernfs.update.lock import update_lock
from tests.unit.vmm.fakes import RAM, FakeHost

from .fakes import FakeKexec, jumper, kexec_to

__all__ = ["jumper"]

Events = Iterator[Event | None]


def _keeping(path: Path) -> display.Show:
    """A display that keeps every event in a file."""

    def show(events: Events) -> None:
        with path.open("wb") as file:
            for event in events:
                if event is not None:
                    file.write(event.to_line())

    return show


def _read(path: Path) -> list[Event]:
    return [parse_line(line) for line in path.read_bytes().splitlines()]


def _refused_update(host: FakeHost, show: display.Show) -> None:
    """An update that comes as far as the jump, which is refused."""
    request = handover.Request()
    with pytest.raises(PkernfsError, match="refuses to start"), display.shown(show) as tell:
        try:
            handover.update(host.machine, host.places, request, tell)
        except PkernfsError as error:
            tell.error(error)
            raise


def _event(event: str, subject: str, guest: str | None = None, **more: object) -> Event:
    values: dict[str, object] = {"text": "", "hint": "", "time_s": 0.0, "realtime_s": 0.0, **more}
    return Event(event, subject, guest, **values)  # type: ignore[arg-type]


def test_events_of_an_update_that_is_given_up(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path
) -> None:
    host.start("a")
    host.start("b")
    _refused_update(host, _keeping(tmp_path / "events"))
    events = _read(tmp_path / "events")
    assert events[0].event == "begin"
    assert events[0].time_s == 0
    (planned,) = [event for event in events if event.event == "plan"]
    assert planned.subject == plan.last_update(host.places, host.machine)
    assert planned.plan == {
        "kernel_before": "6.12.1",
        "kernel_after": "7.3.4",
        "guests": [
            {"name": "a", "ram_bytes": RAM, "was_running": True, "priority": 0},
            {"name": "b", "ram_bytes": RAM, "was_running": True, "priority": 0},
        ],
    }
    for guest in ("a", "b"):
        order = [(event.event, event.subject) for event in events if event.guest == guest]
        assert order.index(("begin", "pause")) < order.index(("moment", "stopped"))
        assert order.index(("begin", "save")) < order.index(("end", "save"))
    assert [event.event for event in events][-2:] == ["outcome", "error"]
    assert events[-1].text == "the running kernel refuses to start the loaded one: fake"
    for line in (tmp_path / "events").read_text().splitlines():
        assert json.loads(line)["schema"] == EVENT_SCHEMA


def test_events_of_a_resume_come_once_qemu_was_started(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    seen: list[Event] = []
    from pkernfs.update.display.events import Teller

    outcome = resuming.resume(
        host.machine, host.places, lambda timeline: timeline.watch(Teller(seen.append))
    )
    assert outcome.good
    told = [(event.event, event.subject, event.guest) for event in seen]
    # What was before it is told as well.
    assert told.index(("end", "mount", None)) < told.index(("begin", "start", "a"))
    assert told.index(("begin", "start", "a")) < told.index(("moment", "running", "a"))
    assert ("result", "ok", "a") in told


def test_a_display_that_stands_still_holds_no_guest(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path
) -> None:
    """The guests run on while the display, and with it the end of the command, still waits."""
    host.start("a")
    over = tmp_path / "over"

    def stand_still(events: Events) -> None:
        while not over.exists():
            time.sleep(0.01)
        _keeping(tmp_path / "events")(events)

    with display.shown(stand_still) as tell:
        with pytest.raises(PkernfsError, match="refuses to start"):
            handover.update(host.machine, host.places, handover.Request(), tell)
        assert host.states() == {"a": "running"}
        # Nor does it hold the lock.
        with update_lock(host.places):
            over.touch()
    assert [event.event for event in _read(tmp_path / "events")][-1] == "outcome"


def test_a_display_keeps_no_file_open(tmp_path: Path) -> None:
    """It may be made while its maker holds a lock (flock(2): as long as anyone has it open)."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    over = tmp_path / "over"

    def stand_still(events: Events) -> None:
        while not over.exists():
            time.sleep(0.01)

    with display.shown(stand_still):
        os.close(lock)
        other = os.open(tmp_path / "lock", os.O_RDWR)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # until it has come so far
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            over.touch()
            raise AssertionError("the display holds the lock")
        over.touch()
    os.close(other)


def test_a_display_that_dies_does_not_matter(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")

    def die(events: Events) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _refused_update(host, die)
    assert host.states() == {"a": "running"}


def test_what_does_not_fit_into_the_pipe_waits_in_memory() -> None:
    reading, writing = os.pipe()
    feed = display.Feed(writing)
    sent = [_event("moment", f"{number}", "g", text="x" * 300) for number in range(2000)]
    for event in sent:
        feed.send(event)
    seen: list[Event] = []
    for news in display.read_events(reading, 0.01):
        if news is None:
            break
        seen.append(news)
    assert 0 < len(seen) < len(sent)
    assert seen == sent[: len(seen)]
    os.close(reading)
    feed.close()  # nobody reads any more: neither blocks nor raises
    feed.send(sent[0])


def test_ctrl_c_is_the_updates_business(tmp_path: Path) -> None:
    def interrupted(events: Events) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
            os.kill(os.getpid(), number)
        _keeping(tmp_path / "events")(events)

    with display.shown(interrupted) as tell:
        tell.error(PkernfsError("it failed", "do this"))
    (event,) = _read(tmp_path / "events")
    assert (event.event, event.text, event.hint) == ("error", "it failed", "do this")


def test_lines_say_what_happened_to_each_guest(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path
) -> None:
    host.start("a")
    _refused_update(host, _keeping(tmp_path / "events"))
    lines = plain.Lines()
    said = [line for event in _read(tmp_path / "events") for line in lines.of(event)]
    text = "\n".join(said)
    assert "6.12.1 -> 7.3.4" in text
    assert said.index("a is paused") < next(
        number for number, line in enumerate(said) if line.startswith("a is saved, ")
    )
    assert said[-1] == "given up; 1 guest back as before"
    # The error itself is printed by the command, not by the display.
    assert "refuses to start" not in text


def test_a_guest_that_runs_again_says_how_long_it_was_paused() -> None:
    lines = plain.Lines()
    events = [
        _event("moment", "stopped", "a", time_s=1.5),
        _event("moment", "running", "a", time_s=2.0),
        _event("result", "ok", "a"),
        _event("result", "ok", "b"),
        _event("result", "failed", "c", text="QEMU did not start"),
    ]
    assert [line for event in events for line in lines.of(event)] == [
        "a is paused",
        "a runs again, paused for 0.500 s",
        "b is back",
        "c does not run: QEMU did not start",
    ]


def test_an_update_that_is_given_up_says_who_runs() -> None:
    def said(*events: Event) -> str:
        lines = plain.Lines()
        every = [
            line
            for event in (*events, _event("outcome", "rolled back"))
            for line in lines.of(event)
        ]
        return every[-1]

    assert said() == "given up, before any guest was paused"
    failed = _event("result", "failed", "b", text="QEMU is gone")
    assert said(_event("result", "ok", "a"), failed) == "given up; NOT running: b"


def _screen(events: Events) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=110, height=60)
    live.show(events, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_picture_has_phases_guests_and_the_error(
    host: FakeHost, jumper: FakeKexec, tmp_path: Path
) -> None:
    host.start("a")
    host.start("other")
    _refused_update(host, _keeping(tmp_path / "events"))
    screen = _screen(iter(_read(tmp_path / "events")))
    for word in ("check", "load", "pause", "save", "hand over", "a", "other", "4 MiB", "6.12.1"):
        assert word in screen
    assert "given up; 2 guests back as before" in screen


_TEXT = st.text(max_size=30)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            _event,
            st.sampled_from(["begin", "end", "moment", "result", "outcome", "store", "error"]),
            st.sampled_from(["check", "pause", "save", "stopped", "running", "ok", "failed", "?"]),
            st.none() | _TEXT,
            text=_TEXT,
            time_s=st.floats(-10, 100),
        ),
        max_size=12,
    )
)
def test_whatever_is_told_can_be_shown(events: list[Event]) -> None:
    lines = plain.Lines()
    progress = Progress()
    for event in events:
        assert parse_line(event.to_line()) == event
        list(lines.of(event))
        progress.take(event)
    console = Console(file=io.StringIO(), width=200)
    console.print(live.draw(progress))
    assert all(span.seconds(progress.now_s) >= 0 for span in progress.phases.values())
