# SPDX-License-Identifier: GPL-2.0-only
"""The stores of this machine: one per region, each with its own mount point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import (
    DEFAULT_STORE,
    MODULE,
    Machine,
    load_module,
    mount_store,
    require_store,
)
from pkernfs.host.ranges import Region
from pkernfs.mountinfo import FSTYPE


@dataclass(frozen=True)
class Store:
    """A region and where its store is mounted, or would be.

    :ivar name: the region's, as the module calls it.
    """

    name: str
    region: Region
    point: Path


def stores(machine: Machine, first: Path = DEFAULT_STORE) -> tuple[Store, ...]:
    """Every store that this host has, in the order of the module's parameter.

    The mount points follow from the regions alone, so that the next kernel finds the
    guests' files at the same paths without being told.

    :param first: mount point of the first region; a later one called NAME has FIRST-NAME.
    :raises PkernfsError: the regions can't be read.
    """
    found: list[Store] = []
    for region in machine.regions():
        name = region.name or MODULE
        point = first.with_name(f"{first.name}-{name}") if found else first
        found.append(Store(name, region, point))
    return tuple(found)


def require_any(machine: Machine, first: Path = DEFAULT_STORE) -> None:
    """Make sure that a store is mounted, whichever.

    :raises PkernfsError: none is.
    """
    points = [store.point for store in stores(machine, first)]
    if not any(machine.filesystem_of(point) == FSTYPE for point in points):
        require_store(first, machine)


def mount_stores(
    machine: Machine, first: Path = DEFAULT_STORE, *, init: bool = False
) -> dict[Path, PkernfsError]:
    """Load the module and mount every store that is not mounted yet.

    :param first: mount point of the first store.
    :param init: make a store in a range that was never used.
    :returns: what failed, by mount point. One that fails does not hold the others back.
    :raises PkernfsError: the module does not load, or no store can be mounted.
    """
    if not machine.module_loaded():
        load_module(machine)
    failed = {}
    found = stores(machine, first)
    if not found:
        raise PkernfsError(
            "no range of memory is given to pkernfs", "pkernfs reserve --size SIZE, then reboot"
        )
    for store in found:
        try:
            mount_store(store.point, machine, store.name, init=init)
        except PkernfsError as error:
            failed[store.point] = error
    if failed and len(failed) == len(found):
        raise failed[first]
    return failed
