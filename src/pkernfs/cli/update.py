# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs update``, ``resume`` and ``report``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkernfs.cli import complete
from pkernfs.errors import PARTLY
from pkernfs.host.machine import DEFAULT_STORE, Machine
from pkernfs.vmm.config import Places
from pkernfs.words import size, table

if TYPE_CHECKING:
    from pkernfs.errors import PkernfsError
    from pkernfs.update.display import Show
    from pkernfs.update.display.events import Event
    from pkernfs.update.plan import Plan

_Store = Annotated[Path, typer.Option(metavar="DIR", help="Where the store is mounted.")]

_UPDATE_EXAMPLES = """\b
Examples:
  pkernfs update --dry-run
  pkernfs update
  pkernfs update --kernel /boot/vmlinuz-7.3.4+deb13-amd64 --append panic=30
"""
_REPORT_EXAMPLES = """\b
Examples:
  pkernfs report --list
  pkernfs report --html update.html
  pkernfs report --from report.json --svg timeline.svg
"""


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("update", epilog=_UPDATE_EXAMPLES)(update)
    app.command("resume")(resume)
    app.command("report", epilog=_REPORT_EXAMPLES)(report)


def update(
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RELEASE",
            help="The next kernel; default: the newest installed. Goes back only to a named one.",
            autocompletion=complete.kernels,
        ),
    ] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initrd.")] = None,
    append: Annotated[str, typer.Option(metavar="TEXT", help="More words for its boot line.")] = "",
    order: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="Guests that run again first, and are paused last, in order."
        ),
    ] = "",
    watchdog: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="The next kernel goes back to this one if no guest is back S seconds after its"
            " start; 0: never; default: 300.",
        ),
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="What of a saved guest's memory can be checked after a reset: sampled, whole"
            " (takes time while guests are paused), or none.",
        ),
    ] = "sampled",
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Go on in spite of this finding of doctor's; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and show what would be done.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what happens as JSON, one event a line; or the plan (--dry-run)."
        ),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines, also on a terminal.")
    ] = False,
    recover: Annotated[
        bool,
        typer.Option("--recover", help="Undo an update that was killed: all guests run again."),
    ] = False,
    load_only: Annotated[
        bool, typer.Option("--load-only", help="Check and load only; systemctl kexec does it.")
    ] = False,
    store: _Store = DEFAULT_STORE,
    going_down: Annotated[
        bool, typer.Option("--going-down", hidden=True, help="For pkernfs-kexec.service.")
    ] = False,
) -> None:
    """Replace the kernel under the running guests.

    Checks everything, loads the next kernel, pauses and saves all guests, and starts it.
    There, pkernfs resume brings them back. When anything fails before that, or at Ctrl-C,
    all guests run on and nothing has changed.

    Shows its progress on a terminal, prints lines elsewhere. After the jump this command is
    gone with its kernel: pkernfs report has the rest.
    """
    from pkernfs.cli import say_waits
    from pkernfs.errors import PkernfsError
    from pkernfs.host import kernels
    from pkernfs.update import display, handover, orderly
    from pkernfs.update.lock import check_free
    from pkernfs.vmm.fingerprint import check_kind

    names = tuple(name for name in order.split(",") if name)
    request = handover.Request(
        kernel,
        initrd,
        append,
        names,
        watchdog,
        frozenset(override or ()),
        check_kind(fingerprint),
    )
    machine = Machine()
    places = Places.on(machine, store)
    if recover:
        _recover(machine, places, as_json)
        return
    if kernel is None and not load_only and not going_down:
        try:
            kernels.default_target(machine, initrd=initrd is None)
        except kernels.NothingToDoError as error:
            try:
                handover.check_leftovers(places)
            finally:  # what looks left behind is in use if somebody is there
                check_free(places)
            _say_nothing_to_do(error, "pkernfs-plan/1" if dry_run else "pkernfs-event/1", as_json)
            return
        except PkernfsError:  # is said where all is checked
            pass
    if dry_run:
        _show(machine, handover.dry_run(machine, places, request, say_waits), as_json)
        return
    if load_only:
        plan = orderly.load_only(machine, places, request, say_waits)
        print(f"{plan.kernel_after} is loaded for {len(plan.guests)} guests: systemctl kexec")
        return
    with display.shown(_display(as_json, plain)) as tell:
        try:
            if going_down:
                orderly.going_down(machine, places, tell)
                return
            handover.update(machine, places, request, tell, waits=say_waits)
        except PkernfsError as error:
            tell.error(error)
            raise


def _display(as_json: bool, plain: bool) -> Show:
    """What shows an update. Imported by the process that shows it, not by the update."""

    def show(events: Iterator[Event | None]) -> None:
        from pkernfs.update.display import plain as lines

        if sys.stdout is None:  # closed by who started this program
            return
        if as_json:
            lines.show_json(events)
        elif plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            lines.show(events)
        else:
            from pkernfs.update.display import live

            live.show(events)

    return show


def _recover(machine: Machine, places: Places, as_json: bool) -> None:
    from pkernfs.cli import say_waits
    from pkernfs.update.recover import recover

    done = recover(machine, places, say_waits)
    if as_json:
        import dataclasses
        import json

        value = dataclasses.asdict(done) if done is not None else None
        print(json.dumps({"schema": "pkernfs-recover/1", "undone": value}, indent=1))
    else:
        print(done.summary() if done is not None else "no update was left behind: nothing to undo")
    if done is not None and done.failed:
        raise typer.Exit(PARTLY)


def _say_nothing_to_do(error: PkernfsError, schema: str, as_json: bool) -> None:
    if not as_json:
        print(f"{error.what}\n{error.hint}")
        return
    import json

    value = {"schema": schema, "event": "outcome", "subject": "nothing to do"}
    print(json.dumps({**value, "text": error.what, "hint": error.hint}))


def _show(machine: Machine, plan: Plan, as_json: bool) -> None:
    if as_json:
        import dataclasses
        import json

        print(json.dumps({"schema": "pkernfs-plan/1", **dataclasses.asdict(plan)}, indent=1))
        return
    from pkernfs.host import kernels

    kernel = kernels.Kernel(plan.kernel_after, Path(plan.image), None)
    remark = ", another build of it" if kernels.is_rebuilt(machine, kernel) else ""
    print(f"kernel     {plan.kernel_before} -> {plan.kernel_after}{remark}")
    print(f"image      {plan.image}")
    print(f"initrd     {plan.initrd or 'none'}")
    print(f"boot line  {plan.boot_line}")
    back = f"after {plan.watchdog_s:g} s without guests" if plan.watchdog_s else "never"
    print(f"goes back  {back}")
    rows = [
        (guest.name, size(guest.ram_bytes), size(guest.state_limit), _REMARK[guest.was_running])
        for guest in plan.guests
    ]
    print()
    for line in table([("guest", "memory, stays", "state, at most", ""), *rows]):
        print(line)
    print("\nthis was a dry run: nothing was changed")


#: What an update does to a guest that runs, or does not.
_REMARK = {True: "", False: "is paused, and will be"}


def resume(
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Print what happens as JSON, one event a line.")
    ] = False,
    any_processor: Annotated[
        list[str] | None,
        typer.Option(
            "--any-processor",
            metavar="NAME",
            help="Let this guest run though its processor lacks something here that it had;"
            " may be repeated.",
            autocompletion=complete.guests,
        ),
    ] = None,
    store: _Store = DEFAULT_STORE,
) -> None:
    """In the next kernel: mount the store and bring the guests back.

    Can be run again for guests that did not come back: their files are kept.
    """
    from pkernfs.cli import resume as plain
    from pkernfs.errors import UsageError

    if as_json and events:
        raise UsageError("--json and --events both", "the outcome at the end, or events: one of")
    raise typer.Exit(
        plain.resume(store, as_json=as_json, as_events=events, any_processor=any_processor or ())
    )


def report(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the timeline as a picture."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the picture alone.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the updates that the store has records of.")
    ] = False,
    update_id: Annotated[
        str | None,
        typer.Option(
            "--update",
            metavar="ID",
            help="Another update than the last.",
            autocompletion=complete.updates,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Show a report.json, from any host."),
    ] = None,
    store: _Store = DEFAULT_STORE,
) -> None:
    """Show the last update: its phases, and every guest's blackout.

    The blackout of a guest lasts from its last instruction in the old kernel to its next in
    the new one.
    """
    from pkernfs.cli import report as showing

    if list_:
        showing.show_list(store, as_json=as_json)
        return
    value = showing.find(store, update_id, source)
    if html is not None or svg is not None:
        showing.write(value, html, svg)
        return
    showing.show(value, as_json=as_json)
