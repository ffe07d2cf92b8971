# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs resume`` without its parser: guests wait for it, and loading that takes time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pkernfs.cli import say_waits
from pkernfs.errors import PARTLY, PkernfsError
from pkernfs.host.machine import DEFAULT_STORE, Machine
from pkernfs.update import resume as resuming
from pkernfs.vmm import boots
from pkernfs.vmm.config import Guest, Places

if TYPE_CHECKING:
    from pkernfs.update.display.events import Teller
    from pkernfs.update.early import Early
    from pkernfs.update.timeline import Timeline


class _Display:
    """Tells what happens, from the moment on when every QEMU has been started."""

    def __init__(self, stack: contextlib.ExitStack, as_events: bool) -> None:
        self._stack = stack
        self._as_events = as_events
        self._tell: Teller | None = None

    def start(self, timeline: Timeline | None = None) -> None:
        """Tell what was recorded, and what will be."""
        from pkernfs.update import display
        from pkernfs.update.display import plain

        show = plain.show_json if self._as_events else plain.show
        self._tell = self._stack.enter_context(display.shown(show))
        if timeline is not None:
            timeline.watch(self._tell)

    def error(self, error: PkernfsError) -> None:
        """Tell why nothing could be resumed."""
        if self._as_events:
            if self._tell is None:
                self.start()
            assert self._tell is not None
            self._tell.error(error)


def resume(
    store: Path = DEFAULT_STORE,
    *,
    as_json: bool = False,
    as_events: bool = False,
    early: Early | None = None,
    any_processor: Sequence[str] = (),
) -> int:
    """Bring the guests back and say what became of each.

    :param store: mount point of the store.
    :param as_json: print one JSON document at the end, and nothing else.
    :param as_events: print events instead, a JSON document on each line.
    :param early: what was done before this module was imported.
    :param any_processor: see :func:`pkernfs.update.resume.resume`.
    :returns: exit status: 0, 1 when no guest could be brought back, else 3 when one could not or
        the store is damaged.
    :raises PkernfsError: the store can't be mounted.
    """
    machine = Machine()
    places = Places.on(machine, store)
    with contextlib.ExitStack() as stack:
        display = _Display(stack, as_events)
        started = (lambda _: None) if as_json else display.start
        try:
            outcome = resuming.resume(machine, places, started, early, say_waits, any_processor)
        except PkernfsError as error:
            display.error(error)
            raise
    if as_json:
        _print_json(outcome)
    elif not as_events:
        _print_blackouts(machine, places, outcome)
    for guest in outcome.guests:
        if guest.error:
            print(f"pkernfs: {guest.error}", file=sys.stderr)
            print(f"hint: {guest.hint}", file=sys.stderr)
    for name in outcome.cut_off:
        print(f"pkernfs: {boots.what_happened(Guest(name, places))}", file=sys.stderr)
        print(f"hint: {boots.HINT.format(name=name)}", file=sys.stderr)
    for interface in outcome.interfaces:
        if interface.state != "back":
            print(f"pkernfs: {interface}", file=sys.stderr)
    _enter_units([guest.name for guest in outcome.guests if not guest.error])
    if not outcome.store_is_clean:
        print(f"pkernfs: the store is not in order: {outcome.store}", file=sys.stderr)
    if outcome.warning:
        print(f"pkernfs: {outcome.warning}", file=sys.stderr)
    if outcome.good:
        return 0
    failed = [guest for guest in outcome.guests if guest.error]
    return 1 if failed and len(failed) == len(outcome.guests) else PARTLY


def _print_blackouts(machine: Machine, places: Places, outcome: resuming.Outcome) -> None:
    """How long each guest did not run, for the log: the report may be read by nobody."""
    from pkernfs.update import report
    from pkernfs.update.plan import directory, last_update

    update = last_update(places, machine)
    file = directory(places, update) / "report.json" if update is not None else None
    if file is None or not file.exists():
        return
    blackouts = {guest["name"]: guest["blackout_s"] for guest in report.read(file)["vms"]}
    for guest in outcome.guests:
        blackout = blackouts.get(guest.name)
        if blackout is not None and not guest.error:
            print(f"{guest.name}: blackout {blackout:.3f} s")


def _print_json(outcome: resuming.Outcome) -> None:
    import dataclasses
    import json

    value = {
        "schema": "pkernfs-resume/1",
        "vms": [dataclasses.asdict(guest) for guest in outcome.guests],
        "interfaces": [dataclasses.asdict(interface) for interface in outcome.interfaces],
        "store": outcome.store,
        "cut_off": list(outcome.cut_off),
    }
    print(json.dumps(value, indent=1))


def _enter_units(names: list[str]) -> None:
    """Guests run; where in the tree of processes is of no haste."""
    from pkernfs.cli import report_error
    from pkernfs.host import systemd

    try:
        systemd.enter_units(names, Machine())
    except PkernfsError as error:
        report_error(error)
