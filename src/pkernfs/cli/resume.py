# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs resume`` without its parser: guests wait for it, and loading that takes time."""

from __future__ import annotations

import sys
from pathlib import Path

from pkernfs.host.machine import DEFAULT_STORE, Machine
from pkernfs.update import resume as resuming
from pkernfs.vmm.config import Places


def resume(store: Path = DEFAULT_STORE, *, as_json: bool = False) -> int:
    """Bring the guests back and say what became of each.

    :param store: mount point of the store.
    :param as_json: print one JSON document.
    :returns: exit status: 1 when a guest does not run or the store is damaged, else 0.
    :raises PkernfsError: the store can't be mounted.
    """
    machine = Machine()
    outcome = resuming.resume(machine, Places.on(machine, store))
    if as_json:
        import dataclasses
        import json

        value = {
            "schema": "pkernfs-resume/1",
            "vms": [dataclasses.asdict(guest) for guest in outcome.guests],
            "store": outcome.store,
        }
        print(json.dumps(value, indent=1))
    for guest in outcome.guests:
        if guest.error:
            print(f"pkernfs: {guest.error}", file=sys.stderr)
            print(f"hint: {guest.hint}", file=sys.stderr)
        elif not as_json:
            print(f"{guest.name} runs again")
    if outcome.store != resuming.CLEAN:
        print(f"pkernfs: the store is not in order: {outcome.store}", file=sys.stderr)
    return 0 if outcome.good else 1
