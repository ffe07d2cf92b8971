# SPDX-License-Identifier: GPL-2.0-only
"""Which store a new guest goes to, where a host has several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host import numa
from pkernfs.host.machine import Machine
from pkernfs.host.stores import Store, stores
from pkernfs.mountinfo import FSTYPE


def choose_store(
    machine: Machine, first: Path, node: int | None = None, region: str | None = None
) -> Path:
    """The mount point of the store for a guest.

    :param first: mount point of the first store, the one for a guest that has no wishes.
    :param node: NUMA node that the guest's memory has to lie on. Of several stores there,
        the one with the most room.
    :param region: name of the region it has to lie in.
    :raises PkernfsError: no store fits, or it is not mounted.
    """
    if node is None and region is None:
        return first
    found: Sequence[Store] = stores(machine, first)
    if region is not None:
        found = _named(found, region)
    if node is not None:
        found = _on_node(machine, found, node)
    mounted = [store.point for store in found if machine.filesystem_of(store.point) == FSTYPE]
    if not mounted:
        raise PkernfsError(
            f"the store of region {found[0].name} is not mounted at {found[0].point}",
            "pkernfs mount",
        )
    return max(mounted, key=lambda point: os.statvfs(point).f_bavail)


def _named(found: Sequence[Store], name: str) -> list[Store]:
    named = [store for store in found if store.name == name]
    if not named:
        known = ", ".join(store.name for store in found) or "none"
        raise PkernfsError(f"this host has no region {name}", f"it has: {known}")
    return named


def _on_node(machine: Machine, found: Sequence[Store], number: int) -> list[Store]:
    known = {node.number: node for node in numa.nodes(machine)}
    if number not in known:
        raise PkernfsError(
            f"this host has no NUMA node {number}", f"it has: {', '.join(map(str, known))}"
        )
    there = [store for store in found if known[number].contains(store.region.range)]
    if not there:
        raise PkernfsError(
            f"no region lies on NUMA node {number}",
            f"pkernfs reserve --size SIZE --node {number} gives it one, from the next boot on; "
            "pkernfs reserve --list shows those that are there",
        )
    return there
