# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pkernfs.cli import complete
from pkernfs.errors import PkernfsError
from pkernfs.host.machine import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("doctor")(doctor)
    app.command("watchdog")(watchdog)


def doctor(
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RELEASE",
            help="The next kernel; default: the newest installed.",
            autocompletion=complete.kernels,
        ),
    ] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initrd.")] = None,
    store: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the store is mounted.")
    ] = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say whether this host can live-update, and what to type where it can't."""
    from pkernfs.host import doctor as host_doctor
    from pkernfs.host import kernels
    from pkernfs.host.machine import Machine
    from pkernfs.update import doctor as update_doctor
    from pkernfs.vmm.config import Places

    machine = Machine()
    named, wrong = None, None
    if kernel is not None:
        try:
            named = kernels.choose(machine, kernel, initrd)
        except PkernfsError as error:
            wrong = error
    target = named or host_doctor.default_kernel(machine)
    try:
        places = Places.on(machine, store)
    except PkernfsError:  # the range's own finding
        places = Places(store)
    findings = update_doctor.examine(machine, places, target)
    if wrong is not None:
        findings.append(host_doctor.blocker("kernel", wrong.what, wrong.hint, "kernel.named"))
    if as_json:
        import json

        values = [dataclasses.asdict(f) | {"status": f.status.value} for f in findings]
        print(json.dumps({"schema": "pkernfs-doctor/1", "findings": values}, indent=1))
    else:
        for finding in findings:
            hint = f" -> {host_doctor.hint_of(finding)}" if finding.hint else ""
            print(f"{finding.status.value:<8}{finding.topic:<12}{finding.text}{hint}")
    if any(finding.status is host_doctor.Status.BLOCKER for finding in findings):
        raise typer.Exit(1)


def watchdog(
    store: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the store is mounted.")
    ] = DEFAULT_STORE,
) -> None:
    """In the next kernel: go back to the one before if no guest comes back in time.

    Started early by the system; the boot line says how long to wait.
    """
    from pkernfs.host.machine import Machine
    from pkernfs.update import watchdog as watching
    from pkernfs.vmm.config import Places

    machine = Machine()
    order = watching.order(machine)
    if order is None:
        print("the boot line asks for no watchdog")
        return
    watching.get_ready()

    def say(line: str) -> None:
        print(line, flush=True)
        with contextlib.suppress(OSError):
            machine.log(f"pkernfs: {line}\n".encode())

    try:
        watching.watch(machine, Places.on(machine, store), order, say)
    except PkernfsError as error:
        say(error.what)
        raise
