# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs reserve``: regions of memory, by size."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pkernfs.errors import PkernfsError, UsageError

if TYPE_CHECKING:
    from pkernfs.host.machine import Machine
    from pkernfs.host.ranges import Region
    from pkernfs.host.reserve import Terrain

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("reserve")(reserve)


def reserve(
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of a new region, e.g. 64G.")
    ] = None,
    node: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="NUMA node of the region. Given more than once: a region on each."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; by default that of its node.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option(metavar="NAME", help="Give a region up, from the next boot on.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the regions, and the room on each node.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the words for the boot line.")
    ] = False,
    update_grub: Annotated[bool, typer.Option(help="Run update-grub, if there is one.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Keep memory free for pkernfs, from the next boot on.

    Reads the memory map and the NUMA nodes, chooses ranges, and writes the words of the
    boot line that reserve them into a file for GRUB.
    """
    from pkernfs.host import reserve as reserving
    from pkernfs.host.machine import Machine

    if sum((size is not None, remove is not None, list_)) != 1:
        raise UsageError("one of --size, --remove and --list is needed", "pkernfs reserve --help")
    if size is None and (node or name is not None):
        raise UsageError("--node and --name go with --size", "pkernfs reserve --help")
    machine = Machine()
    before = _configured(machine)
    if list_:
        _show(machine, before, as_json)
        return
    if remove is not None:
        after = reserving.remove(before, remove)
    else:
        assert size is not None
        after = _add(reserving.terrain(machine), before, size, node or [], name)
    reserving.check_line(machine.boot_line, machine.regions(), after)
    words = reserving.boot_words(after)
    if not dry_run:
        _write(machine, words, update_grub, quiet=as_json)
    if as_json:
        value = _value(machine, after) | {"words": words, "written": not dry_run}
        print(json.dumps(value, indent=1))
    elif dry_run:
        print(" ".join(words))


def _configured(machine: Machine) -> tuple[Region, ...]:
    """The regions that the next boot will have, as things stand."""
    from pkernfs.host import grub

    written = grub.regions(machine)
    return machine.regions() if written is None else written


def _add(
    map_: Terrain, regions: tuple[Region, ...], size: str, nodes: Sequence[int], name: str | None
) -> tuple[Region, ...]:
    from pkernfs.host import reserve as reserving
    from pkernfs.host.ranges import parse_size

    unnamed = [region for region in regions if not region.name]
    if name is None and not nodes and unnamed and unnamed[0].range.size == parse_size(size):
        # What was typed before, typed again: written anew where it got lost.
        return regions
    if name is not None:
        if len(nodes) > 1:
            raise UsageError("one name does not do for several regions", "one --node with --name")
        _check_name(name)
    wanted: Sequence[int | None] = nodes or [None]
    for node in wanted:
        regions = reserving.add(map_, regions, parse_size(size), node, name)
    return regions


def _check_name(name: str) -> None:
    """Refuse what the module does not take for a name (name_valid() in kernel/fs/region.c)."""
    from pkernfs.store import layout

    if not _NAME.fullmatch(name) or len(name) > layout.LABEL_MAX or name == "none":
        raise UsageError(
            f"{name!r} can't be the name of a region",
            f"use up to {layout.LABEL_MAX} letters, digits, and _ - . (not first)",
        )


def _write(machine: Machine, words: Sequence[str], update_grub: bool, *, quiet: bool) -> None:
    from pkernfs.host import grub
    from pkernfs.host.bootline import REGION

    line = " ".join(words)
    loader = grub.other_loader(machine)
    if loader:
        raise PkernfsError(
            f"this host boots by {loader}, which does not read GRUB's files: nothing was written",
            f"add to /etc/kernel/cmdline: {line or 'nothing'}; then kernel-install add-all "
            "(Proxmox: proxmox-boot-tool refresh), and reboot",
        )
    if not grub.is_used(machine):
        raise PkernfsError(
            f"there is no /{grub.DROP_INS}, so no GRUB that reads it: nothing was written",
            f"add to the boot line, where your boot loader has it: {line or 'nothing'}",
        )
    grub.check_others(machine)
    ran = grub.write(machine, words, update=update_grub)
    if quiet:
        return
    print(f"/{grub.DROP_IN}: {line or 'no region'}")
    now = set(words) == {w for w in machine.boot_line.words if w.startswith(("memmap=", REGION))}
    if not ran:
        print(f"run {grub.UPDATE}, then reboot")
    else:
        print("this kernel has it already" if now else "reboot: from then on it counts")


def _value(machine: Machine, regions: Sequence[Region]) -> dict[str, Any]:
    from pkernfs.host.machine import MODULE
    from pkernfs.host.reserve import terrain

    map_ = terrain(machine)
    running = machine.regions()
    listed = [*regions, *(region for region in running if region not in regions)]
    return {
        "schema": "pkernfs-reserve/1",
        "regions": [
            {
                "name": region.name or MODULE,
                "size": region.range.size,
                "start": region.range.start,
                "node": map_.node_of(region.range),
                "now": region in running,
                "next_boot": region in regions,
            }
            for region in listed
        ],
        "nodes": [
            {
                "node": node.number,
                "room": [
                    {"start": span.start, "size": span.size}
                    for span in map_.room(node.number, regions)
                ],
            }
            for node in map_.nodes
        ],
    }


def _show(machine: Machine, regions: Sequence[Region], as_json: bool) -> None:
    from pkernfs.host.ranges import format_size

    value = _value(machine, regions)
    if as_json:
        print(json.dumps(value, indent=1))
        return
    when = {(True, True): "", (True, False): "until the next boot", (False, True): "next boot"}
    for region in value["regions"]:
        node = "several nodes" if region["node"] is None else f"node {region['node']}"
        print(
            f"{region['name']:<20}{format_size(region['size']):>8}  {node:<14}"
            f"{region['start']:#014x}  {when[region['now'], region['next_boot']]}".rstrip()
        )
    for node in value["nodes"]:
        rooms = ", ".join(format_size(span["size"]) for span in node["room"])
        print(f"{'room on node ' + str(node['node']):<20}{rooms or 'none'}")
