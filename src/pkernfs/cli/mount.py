# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs mount``: the stores of all regions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pkernfs.host.machine import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("mount")(mount)


def mount(
    init: Annotated[
        bool, typer.Option("--init", help="Make a store where a region was never used.")
    ] = False,
    store: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the first store is mounted.")
    ] = DEFAULT_STORE,
) -> None:
    """Load the module, and mount the store of every region.

    The first region is mounted at DIR, a further one called NAME at DIR-NAME.
    """
    from pkernfs.cli import report_error
    from pkernfs.host.machine import Machine
    from pkernfs.host.stores import mount_stores, stores

    machine = Machine()
    failed = mount_stores(machine, store, init=init)
    for one in stores(machine, store):
        if one.point not in failed:
            print(f"{one.name}: {one.region.range}, mounted at {one.point}")
    for error in failed.values():
        report_error(error)
    if failed:
        raise typer.Exit(1)
