# SPDX-License-Identifier: GPL-2.0-only
"""How far an update is, as its events tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pkernfs.update.display.events import Event


@dataclass
class Span:
    """A phase that has begun.

    :ivar begin_s: when, seconds since the command began.
    :ivar end_s: when it ended; None while it goes on.
    """

    begin_s: float
    end_s: float | None = None

    def seconds(self, now_s: float) -> float:
        """How long it took, or has taken until now."""
        return max(0.0, (self.end_s if self.end_s is not None else now_s) - self.begin_s)


@dataclass
class GuestProgress:
    """One guest.

    :ivar doing: the phase that it is in, or what became of it.
    :ivar paused: how long it was not running, or is not; None when it was never paused.
    :ivar back: it goes on as before, after an update that was given up.
    :ivar error: why it does not run; empty when nothing is wrong.
    """

    ram_bytes: int | None = None
    state_bytes: int | None = None
    doing: str = "runs"
    phases: dict[str, Span] = field(default_factory=dict)
    paused: Span | None = None
    back: bool = False
    error: str = ""


#: What a guest is doing within a phase, and after it.
_DOING = {"pause": "pausing", "save": "saving", "start": "starting", "load state": "loading"}
_DONE = {"pause": "paused", "save": "saved", "start": "started", "load state": "loaded"}


@dataclass
class Progress:
    """The whole update.

    :ivar update: its id; empty until it is planned.
    :ivar phases: of the host and of all guests together, in the order in which they began.
    :ivar outcome: how it ended, if it came back.
    """

    update: str = ""
    kernel_before: str = ""
    kernel_after: str = ""
    guests: dict[str, GuestProgress] = field(default_factory=dict)
    phases: dict[str, Span] = field(default_factory=dict)
    outcome: str = ""
    now_s: float = 0.0

    def take(self, event: Event) -> None:
        """Note an event."""
        self.now_s = max(self.now_s, event.time_s)
        if event.event == "plan" and event.plan is not None:
            self._plan(event.subject, event.plan)
        elif event.event in ("begin", "end"):
            self._phase(event)
        elif event.event == "moment" and event.guest is not None:
            self._moment(event, self._guest(event.guest))
        elif event.event == "result" and event.guest is not None:
            guest = self._guest(event.guest)
            guest.back = event.subject == "ok"
            if not guest.back:
                guest.doing, guest.error = "does not run", event.text or "does not run"
        elif event.event == "outcome":
            self.outcome = event.subject

    def _guest(self, name: str) -> GuestProgress:
        return self.guests.setdefault(name, GuestProgress())

    def _plan(self, update: str, plan: Mapping[str, Any]) -> None:
        self.update = update
        self.kernel_before = str(plan["kernel_before"])
        self.kernel_after = str(plan["kernel_after"])
        for planned in plan["guests"]:
            guest = self._guest(str(planned["name"]))
            guest.ram_bytes = int(planned["ram_bytes"])
            if not planned["was_running"]:
                guest.doing = "paused before"

    def _phase(self, event: Event) -> None:
        spans = [self.phases]
        if event.guest is not None:
            guest = self._guest(event.guest)
            spans.append(guest.phases)
            words = _DOING if event.event == "begin" else _DONE
            guest.doing = words.get(event.subject, guest.doing)
        for phases in spans:
            span = phases.get(event.subject)
            if event.event == "begin":
                if span is None:
                    phases[event.subject] = Span(event.time_s)
                else:
                    span.end_s = None
            elif span is not None:
                span.end_s = event.time_s

    def _moment(self, event: Event, guest: GuestProgress) -> None:
        if event.subject == "stopped":
            guest.paused = Span(event.time_s)
        elif event.subject == "state bytes":
            guest.state_bytes = int(event.text)
        elif event.subject == "running":
            guest.doing = "runs again"
            if guest.paused is not None:
                guest.paused.end_s = event.time_s
