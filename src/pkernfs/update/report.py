# SPDX-License-Identifier: GPL-2.0-only
"""What an update did: derived from its plan and its timeline, written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.files import write_json
from pkernfs.update import plan as planning
from pkernfs.update import timeline
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Record, Times
from pkernfs.vmm.config import Places

REPORT_SCHEMA = "pkernfs-report/1"

CLOCKS = {
    "tsc": "the processor's time stamp counter, which kexec does not reset",
    "realtime": "CLOCK_REALTIME, set at boot from the battery-backed clock (whole seconds)",
}


def _phases(records: Sequence[Record], times: Times) -> list[dict[str, Any]]:
    """Each phase from the first guest's begin to the last guest's end."""
    spans: dict[str, tuple[float, float]] = {}
    for record in records:
        if record.event not in ("begin", "end"):
            continue
        at = times.of(record)
        start, end = spans.get(record.subject, (at, at))
        spans[record.subject] = (min(start, at), max(end, at))
    ordered = sorted(spans.items(), key=lambda item: item[1])
    return [
        {"name": name, "start_s": round(start, 6), "end_s": round(end, 6)}
        for name, (start, end) in ordered
    ]


def _last(records: Sequence[Record], guest: str, event: str, subject: str = "") -> Record | None:
    found = [
        record
        for record in records
        if record.guest == guest
        and record.event == event
        and (not subject or record.subject == subject)
    ]
    return found[-1] if found else None


def _guest(
    records: Sequence[Record], times: Times, places: Places, planned: planning.PlannedGuest
) -> dict[str, Any]:
    stopped = _last(records, planned.name, "moment", "stopped")
    running = _last(records, planned.name, "moment", "running")
    result = _last(records, planned.name, "result")
    blackout = times.of(running) - times.of(stopped) if stopped and running else None
    size = _last(records, planned.name, "moment", "state bytes")
    return {
        "name": planned.name,
        "ram_bytes": planned.ram_bytes,
        "state_bytes": int(size.text) if size else None,
        "survived": result is not None and result.subject == "ok",
        "blackout_s": round(blackout, 6) if blackout is not None else None,
        "blackout_exact_to_s": round(times.scale.exactness(blackout), 6) if blackout else None,
        "error": result.text if result is not None else "not resumed",
    }


def _outcome(
    plan: Plan, records: Sequence[Record], guests: list[dict[str, Any]]
) -> tuple[str, str]:
    ends = [record for record in records if record.event == "outcome"]
    if ends:
        return "rolled back", ends[-1].text
    if records[-1].boot_id == plan.boot_id_before:
        return "not finished", "the next kernel has not reported yet"
    failed = [guest["name"] for guest in guests if not guest["survived"]]
    return ("partial", f"not running: {', '.join(failed)}") if failed else ("completed", "")


def _store(records: Sequence[Record]) -> str | None:
    """What the checker said of the store after the update; None when it was not asked."""
    found = [record.text for record in records if record.event == "store"]
    return found[-1] if found else None


def build(places: Places, update: str) -> dict[str, Any]:
    """The report of an update.

    :raises PkernfsError: there are no records of it.
    """
    plan = planning.read(places, update)
    records = timeline.load(planning.directory(places, update) / "timeline.jsonl")
    if not records:
        raise PkernfsError(f"update {update} has no timeline", "it ended before it began")
    times = Times(records)
    guests = [_guest(records, times, places, guest) for guest in plan.guests]
    outcome, text = _outcome(plan, records, guests)
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
        "vms": guests,
        "store": _store(records),
        "phases": _phases(records, times),
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
    host = report["host"]
    lines = [
        f"update {report['update']}: {report['outcome']}"
        + (f" ({report['text']})" if report["text"] else ""),
        f"kernel {host['kernel_before']} -> {host['kernel_after']}",
        "",
        f"{'phase':<14}{'start':>10}{'end':>10}{'seconds':>10}",
    ]
    for phase in report["phases"]:
        start, end = phase["start_s"], phase["end_s"]
        lines.append(f"{phase['name']:<14}{start:>10.3f}{end:>10.3f}{end - start:>10.3f}")
    lines += ["", f"{'guest':<20}{'memory':>10}{'state':>10}{'blackout':>12}  "]
    for guest in report["vms"]:
        blackout = f"{guest['blackout_s']:.3f} s" if guest["blackout_s"] is not None else "-"
        state = f"{guest['state_bytes'] >> 10} KiB" if guest["state_bytes"] is not None else "-"
        lines.append(
            f"{guest['name']:<20}{guest['ram_bytes'] >> 20:>6} MiB{state:>10}{blackout:>12}  "
            + ("runs" if guest["survived"] else f"DOES NOT RUN: {guest['error']}")
        )
    clock = report["clock"]
    exact = f"exact to {clock['exact_to_s'] * 1000:.1f} ms over the whole update"
    if report["store"] is not None:
        lines += ["", f"store: {report['store']}"]
    lines += ["", f"clock: {clock['meaning']}; {exact}"]
    return "\n".join(lines)
