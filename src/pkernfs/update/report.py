# SPDX-License-Identifier: GPL-2.0-only
"""What an update did: derived from its plan and its timeline, written beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.files import read_json, write_json
from pkernfs.update import plan as planning
from pkernfs.update import timeline
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Record, Times
from pkernfs.vmm.config import Places

REPORT_SCHEMA = "pkernfs-report/1"

_NO_RESULT = "not resumed"

CLOCKS = {
    "tsc": "the processor's time stamp counter, which kexec does not reset",
    "realtime": "CLOCK_REALTIME, set at boot from the battery-backed clock (whole seconds)",
}


@dataclass(frozen=True)
class _Span:
    """A phase from a begin to the end that belongs to it; that may be missing."""

    name: str
    guest: str | None
    start_s: float
    end_s: float | None

    def to_json(self, otherwise_s: float) -> dict[str, Any]:
        """For the report.

        :param otherwise_s: when it ended if nothing says so.
        """
        end = self.end_s if self.end_s is not None else max(self.start_s, otherwise_s)
        return {"name": self.name, "start_s": round(self.start_s, 6), "end_s": round(end, 6)}


def _spans(records: Sequence[Record], times: Times) -> list[_Span]:
    """All phases, in the order of their begins. An end without a begin is none's.

    A later resume, which tries again what failed, begins some of them anew.
    """
    spans: list[_Span] = []
    open_: dict[tuple[str, str | None], int] = {}
    for record in records:
        key = (record.subject, record.guest)
        if record.event == "begin":
            open_[key] = len(spans)
            spans.append(_Span(*key, times.of(record), None))
        elif record.event == "end" and key in open_:
            number = open_.pop(key)
            end = max(times.of(record), spans[number].start_s)
            spans[number] = dataclasses.replace(spans[number], end_s=end)
    return sorted(spans, key=lambda span: span.start_s)


def _phases(spans: Sequence[_Span]) -> list[dict[str, Any]]:
    """Each phase from the first guest's begin to the last guest's end, first attempts only."""
    first: dict[tuple[str, str | None], _Span] = {}
    for span in spans:
        first.setdefault((span.name, span.guest), span)
    together: dict[str, _Span] = {}
    for span in first.values():
        if span.end_s is None:  # a jump that was refused, a guest that did not come back
            continue
        known = together.setdefault(span.name, span)
        end = max(known.end_s or span.end_s, span.end_s)
        together[span.name] = dataclasses.replace(known, end_s=end)
    ordered = sorted(together.values(), key=lambda span: (span.start_s, span.end_s))
    return [span.to_json(span.start_s) for span in ordered]


def _last(records: Sequence[Record], guest: str, event: str, subject: str = "") -> Record | None:
    found = [
        record
        for record in records
        if record.guest == guest
        and record.event == event
        and (not subject or record.subject == subject)
    ]
    return found[-1] if found else None


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 6) if seconds is not None else None


def _guest(
    records: Sequence[Record],
    times: Times,
    spans: Sequence[_Span],
    planned: planning.PlannedGuest,
) -> dict[str, Any]:
    result = _last(records, planned.name, "result")
    stopped_s, running_s = (
        times.of(found) if found is not None else None
        for found in (
            _last(records, planned.name, "moment", "stopped"),
            _last(records, planned.name, "moment", "running"),
        )
    )
    if stopped_s is None or (running_s is not None and running_s < stopped_s):
        running_s = None
    blackout = running_s - stopped_s if stopped_s is not None and running_s is not None else None
    end_s = times.of(result if result is not None else records[-1])
    size = _last(records, planned.name, "moment", "state bytes")
    return {
        "name": planned.name,
        "ram_bytes": planned.ram_bytes,
        "accelerator": planned.accelerator,
        "state_bytes": int(size.text) if size else None,
        "survived": result is not None and result.subject == "ok",
        "blackout_s": _rounded(blackout),
        "stopped_s": _rounded(stopped_s),
        "running_s": _rounded(running_s),
        "blackout_exact_to_s": round(times.scale.exactness(blackout), 6) if blackout else None,
        "error": result.text if result is not None else _NO_RESULT,
        "phases": [span.to_json(end_s) for span in spans if span.guest == planned.name],
        "network": _network(records, times, planned.name, stopped_s),
    }


def _network(
    records: Sequence[Record], times: Times, guest: str, stopped_s: float | None
) -> list[dict[str, Any]]:
    """A guest's interfaces on its host, each as it was recorded last.

    ``dark_s`` is the time in which nothing could reach the guest through it.
    """
    last: dict[str, Record] = {}
    for record in records:
        if record.event == "network" and record.guest == guest:
            known = last.get(record.subject)
            if known is None or known.text != record.text or known.boot_id != record.boot_id:
                last[record.subject] = record
    found = []
    for name, record in sorted(last.items()):
        value = json.loads(record.text)
        dark = None
        if value["state"] == "back" and stopped_s is not None:
            dark = times.of(record) - stopped_s
        found.append({"interface": name, **value, "dark_s": _rounded(dark)})
    return found


def _untouched(guest: dict[str, Any]) -> dict[str, Any]:
    """A guest of an update that did not come to an end: if it was not paused, it runs on."""
    if guest["survived"] or guest["stopped_s"] is not None or guest["error"] != _NO_RESULT:
        return guest
    return {**guest, "survived": True, "error": ""}


def _outcome(
    plan: Plan, records: Sequence[Record], guests: list[dict[str, Any]]
) -> tuple[str, str]:
    ends = [record for record in records if record.event == "outcome"]
    if ends:
        return "rolled back", ends[-1].text
    if records[-1].boot_id == plan.boot_id_before:
        return "not finished", "the next kernel has not reported yet"
    failed = [guest["name"] for guest in guests if not guest["survived"]]
    back = _went_back(records)
    if failed:
        return "partial", f"not running: {', '.join(failed)}" + (f"; {back}" if back else "")
    return ("went back", back) if back else ("completed", "")


def _went_back(records: Sequence[Record]) -> str:
    """Why the kernel before runs again; empty when it does not."""
    moments = {record.subject: record for record in records if record.event == "moment"}
    reset = moments.get("reset")
    if reset is not None and reset.boot_id == records[-1].boot_id:
        return f"the host was reset before its guests ran: {reset.kernel} resumed them"
    back = moments.get("went back")
    if back is None or back.boot_id != records[-1].boot_id:
        return ""
    reason = moments.get("going back")
    why = reason.text if reason else "the store was not mounted there"
    return f"the watchdog left {back.text}: {why}"


def _store(records: Sequence[Record]) -> str | None:
    """What the checker said of the store after the update; None when it was not asked."""
    found = [record.text for record in records if record.event == "store"]
    return found[-1] if found else None


def _devices(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The preserved devices, each as it was recorded last."""
    last = {record.subject: record.text for record in records if record.event == "device"}
    return [json.loads(text) for _, text in sorted(last.items())]


def build(places: Places, update: str) -> dict[str, Any]:
    """The report of an update.

    :raises PkernfsError: there are no records of it.
    """
    plan = planning.read(places, update)
    records = timeline.load(planning.directory(places, update) / "timeline.jsonl")
    if not records:
        raise PkernfsError(f"update {update} has no timeline", "it ended before it began")
    times = Times(records)
    spans = _spans(records, times)
    guests = [_guest(records, times, spans, guest) for guest in plan.guests]
    outcome, text = _outcome(plan, records, guests)
    if outcome in ("rolled back", "not finished"):
        guests = [_untouched(guest) for guest in guests]
    scale = times.scale
    return {
        "schema": REPORT_SCHEMA,
        "update": update,
        "outcome": outcome,
        "text": text,
        "host": {
            "kernel_before": plan.kernel_before,
            "kernel_after": records[-1].kernel,
            "boot_id_before": plan.boot_id_before,
            "boot_id_after": records[-1].boot_id,
        },
        "kernel_planned": plan.kernel_after,
        "vms": guests,
        "devices": _devices(records),
        "store": _store(records),
        "phases": _phases(spans),
        "clock": {
            "name": scale.name,
            "meaning": CLOCKS[scale.name],
            "hertz": round(scale.hertz),
            "spread": scale.spread,
            "exact_to_s": round(scale.exactness(times.of(records[-1])), 6),
        },
    }


def write(places: Places, update: str) -> None:
    """Write the report of an update beside its records."""
    write_json(planning.directory(places, update) / "report.json", build(places, update))


def render(report: dict[str, Any]) -> str:
    """The report as plain text."""
    from pkernfs.update.render import text
    from pkernfs.update.render.view import ReportView

    return text.render(ReportView.of(report))


def read(path: Path) -> dict[str, Any]:
    """Read a report from a file.

    :raises PkernfsError: it is none.
    """
    return read_json(path, REPORT_SCHEMA)


@dataclass(frozen=True)
class Kept:
    """An update whose records the store keeps.

    :ivar report: None when its records can't be used, for the reason in ``error``.
    """

    update: str
    report: dict[str, Any] | None
    error: str = ""


def kept(places: Places) -> list[Kept]:
    """All updates whose records are there, the newest last."""
    found = []
    for path in sorted(places.updates.glob("*/plan.json")):
        update = path.parent.name
        try:
            found.append(Kept(update, build(places, update)))
        except PkernfsError as error:
            found.append(Kept(update, None, error.what))
    return found
