# SPDX-License-Identifier: GPL-2.0-only
"""What happens, drawn anew in place: for a person at a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pkernfs.update.display.events import Event
from pkernfs.update.display.plain import given_up
from pkernfs.update.display.progress import GuestProgress, Progress, Span
from pkernfs.words import size

_LEAVE = "Ctrl-C gives the update up and lets all guests run on."
_GO = (
    "The next kernel is about to start. This terminal ends with the old one, if it comes over "
    "the network; log in again, pkernfs report has the rest."
)
#: Many events at once are one picture (seconds).
_PACE_S = 0.05
_STYLES = {
    "runs": "green",
    "runs again": "green",
    "saved": "yellow",
    "paused": "yellow",
    "does not run": "bold red",
}


def _seconds(span: Span | None, now_s: float) -> str:
    return f"{span.seconds(now_s):.3f} s" if span is not None else ""


def _table(*columns: str) -> Table:
    """A table whose first column is text, as is the last; numbers between them."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        ends = number in (0, len(columns) - 1)
        table.add_column(column, justify="left" if ends else "right", no_wrap=not ends)
    return table


def _phases(progress: Progress) -> Table:
    table = _table("phase", "time", "")
    for name, span in progress.phases.items():
        going = span.end_s is None
        table.add_row(
            Text(name, style="bold" if going else ""),
            _seconds(span, progress.now_s),
            Text("..." if going else "done", style="yellow" if going else "green"),
        )
    return table


def _row(name: str, guest: GuestProgress, now_s: float) -> list[RenderableType]:
    return [
        Text(name),
        size(guest.ram_bytes) if guest.ram_bytes is not None else "",
        size(guest.state_bytes) if guest.state_bytes is not None else "",
        _seconds(guest.phases.get("pause"), now_s),
        _seconds(guest.phases.get("save"), now_s),
        _seconds(guest.paused, now_s),
        Text(guest.error or guest.doing, style=_STYLES.get(guest.doing, "")),
    ]


def _guests(progress: Progress) -> Table:
    table = _table("guest", "memory", "state", "pause", "save", "not running", "")
    for name, guest in progress.guests.items():
        table.add_row(*_row(name, guest, progress.now_s))
    return table


def _foot(progress: Progress) -> Text:
    if progress.outcome:
        back = [name for name, guest in progress.guests.items() if guest.back]
        lost = [name for name, guest in progress.guests.items() if guest.error]
        return Text(given_up(back, lost), style="bold red" if lost else "bold yellow")
    if "hand over" in progress.phases:
        return Text(_GO, style="bold")
    return Text(_LEAVE, style="dim")


def draw(progress: Progress) -> RenderableType:
    """The whole picture."""
    parts: list[RenderableType] = []
    if progress.update:
        title = Text(f"update {progress.update}  ", style="bold")
        title.append(f"{progress.kernel_before} -> {progress.kernel_after}", style="")
        parts.append(title)
    parts.append(Padding(_phases(progress), (1, 0, 0, 2)))
    if progress.guests:
        parts.append(Padding(_guests(progress), (1, 0, 0, 2)))
    parts.append(Padding(_foot(progress), (1, 0, 0, 0)))
    return Group(*parts)


def show(events: Iterable[Event | None], console: Console | None = None) -> None:
    """Draw on the terminal until the events end; the last picture stays."""
    progress = Progress()
    offset = drawn = 0.0
    with Live(draw(progress), console=console, auto_refresh=False) as live:
        # This process ends with the kernel: nobody would show the cursor again.
        live.console.show_cursor(True)
        for event in events:
            now = time.monotonic()
            if event is not None:
                progress.take(event)
                offset = now - event.time_s
                last = (event.event, event.subject) == ("begin", "hand over")
                if now - drawn < _PACE_S and not last:
                    continue
            elif progress.phases:
                # Between events the time goes on by this process's own clock.
                progress.now_s = max(progress.now_s, now - offset)
            live.update(draw(progress), refresh=True)
            drawn = now
        live.update(draw(progress))
