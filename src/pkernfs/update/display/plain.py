# SPDX-License-Identifier: GPL-2.0-only
"""What happens, line by line: for pipes, logs and consoles."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from pkernfs.update.display.events import Event
from pkernfs.words import count, size

#: Phases that need no line of their own: they take no time, or a guest's own line has them.
_SILENT = frozenset({"interpreter", "run", "kernel", "init"})


def given_up(back: Sequence[str], lost: Sequence[str]) -> str:
    """How an update ended that came back. Why is said by the command itself.

    :param back: guests that were paused for it, and go on as before.
    :param lost: guests that don't.
    """
    if lost:
        return f"given up; NOT running: {', '.join(lost)}"
    if not back:
        return "given up, before any guest was paused"
    return f"given up; {count(len(back), 'guest')} back as before"


class Lines:
    """Turns events into lines."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str | None, str], float] = {}
        self._stopped: dict[str, float] = {}
        self._running: set[str] = set()
        self._back: list[str] = []
        self._lost: list[str] = []

    def of(self, event: Event) -> Iterator[str]:
        """The lines that an event is worth; often none."""
        if event.event == "plan" and event.plan is not None:
            guests = event.plan["guests"]
            yield f"update {event.subject}, {count(len(guests), 'guest')}"
            yield f"kernel {event.plan['kernel_before']} -> {event.plan['kernel_after']}"
        elif event.event == "begin":
            self._begun[event.guest, event.subject] = event.time_s
            if event.subject == "hand over":
                yield "the next kernel is about to start; pkernfs resume goes on in it"
        elif event.event == "end":
            yield from self._ended(event)
        elif event.event == "moment" and event.guest is not None:
            yield from self._moment(event, event.guest)
        elif event.event == "result" and event.guest is not None:
            yield from self._result(event, event.guest)
        elif event.event == "outcome":
            yield given_up(self._back, self._lost)

    def _ended(self, event: Event) -> Iterator[str]:
        begun = self._begun.pop((event.guest, event.subject), None)
        if begun is None or event.guest is not None or event.subject in _SILENT:
            return
        yield f"{event.subject:<10} {event.time_s - begun:8.3f} s"

    def _moment(self, event: Event, guest: str) -> Iterator[str]:
        if event.subject == "stopped":
            self._stopped[guest] = event.time_s
            yield f"{guest} is paused"
        elif event.subject == "state bytes":
            yield f"{guest} is saved, {size(int(event.text))}"
        elif event.subject == "running":
            self._running.add(guest)
            stopped = self._stopped.pop(guest, None)
            after = f", paused for {event.time_s - stopped:.3f} s" if stopped is not None else ""
            yield f"{guest} runs again{after}"

    def _result(self, event: Event, guest: str) -> Iterator[str]:
        (self._back if event.subject == "ok" else self._lost).append(guest)
        if event.subject != "ok":
            yield f"{guest} does not run: {event.text}"
        elif guest not in self._running:  # it was paused before, or never went away
            yield f"{guest} is back"


def show(events: Iterable[Event | None]) -> None:
    """Print lines as things happen."""
    lines = Lines()
    for event in events:
        for line in lines.of(event) if event is not None else ():
            print(line, flush=True)


def show_json(events: Iterable[Event | None]) -> None:
    """Print every event as a line of JSON."""
    for event in events:
        if event is not None:
            sys.stdout.buffer.write(event.to_line())
            sys.stdout.buffer.flush()
