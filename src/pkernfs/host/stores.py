# SPDX-License-Identifier: GPL-2.0-only
"""The stores of this machine: one per region, each with its own mount point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import DEFAULT_STORE, MODULE, Machine, mount_store
from pkernfs.host.ranges import Region


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


def mount_stores(machine: Machine, first: Path = DEFAULT_STORE) -> dict[Path, PkernfsError]:
    """Load the module and mount every store that is not mounted yet.

    :param first: mount point of the first store.
    :returns: what failed, by mount point. One that fails does not hold the others back.
    :raises PkernfsError: the first store can't be mounted.
    """
    mount_store(first, machine)
    failed = {}
    for store in stores(machine, first)[1:]:
        try:
            mount_store(store.point, machine, store.name)
        except PkernfsError as error:
            failed[store.point] = error
    return failed
