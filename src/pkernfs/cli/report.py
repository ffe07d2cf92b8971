# SPDX-License-Identifier: GPL-2.0-only
"""The work of ``pkernfs report``: which report, and in which form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host.machine import Machine, require_store
from pkernfs.update import report as reporting
from pkernfs.update.plan import directory, last_update
from pkernfs.update.render.view import ReportView
from pkernfs.vmm.config import Places

LIST_SCHEMA = "pkernfs-updates/1"


def find(store: Path, update: str | None, source: Path | None) -> dict[str, Any]:
    """The report that is asked for.

    :param update: id of an update; None for the last one.
    :param source: a file with a report, instead of the store.
    :raises PkernfsError: there is none.
    """
    if source is not None:
        if update is not None:
            raise UsageError("--from and --update both", "a file has one report: leave one away")
        return reporting.read(source)
    machine = Machine()
    require_store(store, machine)
    places = Places.on(machine, store)
    chosen = update or last_update(places, machine)
    if chosen is None:
        raise PkernfsError(f"the store at {store} has no update", "pkernfs update makes one")
    if Path(chosen).name != chosen or not (directory(places, chosen) / "plan.json").exists():
        raise PkernfsError(f"there is no update {chosen}", "pkernfs report --list names them")
    return reporting.build(places, chosen)


def show(report: dict[str, Any], *, as_json: bool) -> None:
    """Print a report."""
    if as_json:
        print(json.dumps(report, indent=1))
        return
    from pkernfs.update.render import text

    print(text.render(ReportView.of(report)))


def write(report: dict[str, Any], html: Path | None, svg: Path | None) -> None:
    """Write a report as a page, a picture, or both.

    :raises PkernfsError: a file can't be written.
    """
    from pkernfs.update.render import html as page
    from pkernfs.update.render import svg as picture

    view = ReportView.of(report)
    for path, render in ((html, page.render), (svg, picture.render)):
        if path is None:
            continue
        try:
            path.write_text(render(view), encoding="utf-8")
        except OSError as error:
            raise PkernfsError(f"can't write {path}: {error.strerror}") from error
        print(f"written: {path}")


def _line(kept: reporting.Kept) -> list[str]:
    if kept.report is None:
        return [kept.update, "unreadable", "-", "-", kept.error]
    view = ReportView.of(kept.report)
    known = [guest.blackout_s for guest in view.guests if guest.blackout_s is not None]
    longest = f"{max(known):.3f} s" if known else "-"
    return [view.update, view.outcome, str(len(view.guests)), longest, view.text or view.kernels]


def show_list(store: Path, *, as_json: bool) -> None:
    """Print the updates that the store has records of, the newest last."""
    from pkernfs.words import table

    machine = Machine()
    require_store(store, machine)
    found = reporting.kept(Places.on(machine, store))
    if as_json:
        reports = [kept.report for kept in found if kept.report is not None]
        unreadable = {kept.update: kept.error for kept in found if kept.report is None}
        value = {"schema": LIST_SCHEMA, "reports": reports, "unreadable": unreadable}
        print(json.dumps(value, indent=1))
        return
    if not found:
        print(f"the store at {store} has no update yet")
        return
    head = ["update", "outcome", "guests", "blackout", ""]
    for line in table([head, *(_line(kept) for kept in found)], left=(0, 1, -1)):
        print(line)
