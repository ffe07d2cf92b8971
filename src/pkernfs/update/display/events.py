# SPDX-License-Identifier: GPL-2.0-only
"""What is told while it happens: one JSON object a line, schema "pkernfs-event/1".

Every event has the same members; docs/operations.md describes them for users.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Record

EVENT_SCHEMA = "pkernfs-event/1"


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    :ivar event: "plan" (what will be done), "begin" or "end" of a phase, "moment", "result"
        of a guest, "device" (its state, as JSON in ``text``), "store" (what its checker
        says), "outcome" (given up), or "error".
    :ivar subject: name of the phase, moment or device; id of the update for a plan; "ok" or
        "failed".
    :ivar guest: whose it is; None: of the whole command.
    :ivar text: more of it in words; the error, where there is one.
    :ivar hint: for an error: what to do.
    :ivar time_s: seconds since the command began; below zero: before it.
    :ivar realtime_s: when it happened by CLOCK_REALTIME, seconds since the epoch.
    :ivar plan: for a plan: kernels and guests.
    """

    event: str
    subject: str
    guest: str | None
    text: str
    hint: str
    time_s: float
    realtime_s: float
    plan: dict[str, Any] | None = field(default=None)

    def to_line(self) -> bytes:
        """The event as one line of JSON."""
        value = dataclasses.asdict(self)
        if self.plan is None:
            del value["plan"]
        return json.dumps({"schema": EVENT_SCHEMA, **value}).encode() + b"\n"


def parse_line(line: bytes) -> Event:
    """Read a line that :meth:`Event.to_line` wrote."""
    value = json.loads(line)
    del value["schema"]
    return Event(**value)


def _describe(plan: Plan) -> dict[str, Any]:
    guests = [
        {
            "name": guest.name,
            "ram_bytes": guest.ram_bytes,
            "was_running": guest.was_running,
            "priority": guest.priority,
        }
        for guest in plan.guests
    ]
    return {
        "kernel_before": plan.kernel_before,
        "kernel_after": plan.kernel_after,
        "guests": guests,
    }


class Teller:
    """Turns what an update shows into events, with times since the first of them.

    :param send: gets every event.
    """

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._first_ns: int | None = None
        self._last = (0.0, 0.0)

    def __call__(self, news: Plan | Record) -> None:
        """Tell a plan, or a record of the timeline."""
        if isinstance(news, Plan):
            self._tell("plan", news.update, plan=_describe(news))
            return
        happened_ns = news.reading.raw_ns - news.ago_ns
        if self._first_ns is None:
            self._first_ns = news.reading.raw_ns
        self._last = (
            round((happened_ns - self._first_ns) / 1e9, 6),
            round((news.reading.real_ns - news.ago_ns) / 1e9, 6),
        )
        self._tell(news.event, news.subject, news.guest, news.text)

    def error(self, error: PkernfsError) -> None:
        """Tell why the command fails."""
        self._tell("error", "failed", text=error.what, hint=error.hint)

    def _tell(
        self,
        event: str,
        subject: str,
        guest: str | None = None,
        text: str = "",
        hint: str = "",
        plan: dict[str, Any] | None = None,
    ) -> None:
        # What has no record of its own happened right after the record before it.
        self._send(Event(event, subject, guest, text, hint, *self._last, plan))
