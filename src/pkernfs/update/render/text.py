# SPDX-License-Identifier: GPL-2.0-only
"""A report as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from pkernfs.update.render.view import GUEST_PHASES, GuestView, ReportView
from pkernfs.words import size, table


def seconds(value: float | None) -> str:
    """A time to the millisecond; a dash where there is none."""
    return f"{value:.3f}" if value is not None else "-"


def fate(guest: GuestView) -> str:
    """What became of a guest."""
    runs = "runs, emulated" if guest.emulated else "runs"
    return runs if guest.survived else f"DOES NOT RUN: {guest.error}"


def _guests(view: ReportView) -> Iterator[str]:
    shown = [
        phase
        for phase in GUEST_PHASES
        if any(guest.seconds(phase) is not None for guest in view.guests)
    ]
    head = ["guest", "memory", "state", *shown, "blackout", ""]
    rows = [
        [
            guest.name,
            size(guest.ram_bytes),
            size(guest.state_bytes) if guest.state_bytes is not None else "-",
            *(seconds(guest.seconds(phase)) for phase in shown),
            seconds(guest.blackout_s),
            fate(guest),
        ]
        for guest in view.guests
    ]
    yield from table([head, *rows])


def _blackout(view: ReportView) -> Iterator[str]:
    """The shortest and the longest, where that says more than the table."""
    known = sorted(
        (guest.blackout_s, guest.name) for guest in view.guests if guest.blackout_s is not None
    )
    if len(known) > 1:
        (least, first), (most, last) = known[0], known[-1]
        yield f"blackout from {least:.3f} s ({first}) to {most:.3f} s ({last})"


def render(view: ReportView) -> str:
    """The whole report; times in seconds."""
    lines = [
        f"update {view.update}: {view.outcome}" + (f" ({view.text})" if view.text else ""),
        f"kernel {view.kernels}",
    ]
    if view.phases:
        rows = [
            [span.name, seconds(span.start_s), seconds(span.end_s), seconds(span.seconds)]
            for span in view.phases
        ]
        lines += ["", *table([["phase", "begins", "ends", "takes"], *rows], left=(0,))]
    if view.guests:
        lines += ["", *_guests(view)]
        lines += _blackout(view)
    if view.devices or view.cut_off:
        lines.append("")
    for device in view.devices + view.cut_off:
        lines.append(f"device {device.bdf} {device.model}: {device.text}")
    if view.store is not None:
        lines += ["", f"store: {view.store}"]
    exact = f"exact to {view.exact_to_s * 1000:.1f} ms over the whole update"
    lines += ["", f"times in seconds, by {view.clock}; {exact}"]
    return "\n".join(lines)
