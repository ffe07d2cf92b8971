# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs device``: passed-through devices that work on through an update."""

from __future__ import annotations

from typing import Annotated

import typer

from pkernfs.cli import complete
from pkernfs.words import size, table

_Bdf = Annotated[
    str,
    typer.Argument(
        metavar="BDF",
        help="PCI name, e.g. 0000:01:00.0.",
        autocompletion=complete.pci_devices,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    device = typer.Typer(help="Devices that work on through an update.", no_args_is_help=True)
    device.command("preserve")(preserve)
    device.command("list")(list_)
    device.command("adopt")(adopt)
    device.command("release")(release)
    app.add_typer(device, name="device")


def preserve(bdf: _Bdf) -> None:
    """Keep a device working through the updates to come."""
    from pkernfs.host.devices import Control
    from pkernfs.vfio.bind import parse_bdf

    name = parse_bdf(bdf)
    Control.load().preserve(name)
    print(f"{name} is preserved: an update finds it in use by VFIO and keeps it working")


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the devices and what state each is in."""
    import dataclasses
    import json

    from pkernfs.host.devices import Control

    found = Control().devices()
    if as_json:
        devices = [dataclasses.asdict(device) for device in found]
        print(json.dumps({"schema": "pkernfs-devices/1", "devices": devices}, indent=1))
        return
    if not found:
        print("no device is preserved; pkernfs device preserve names one")
        return
    rows = [
        (
            device.bdf,
            device.model,
            device.state,
            size(device.mapped_bytes) if device.mapped_bytes else "-",
            f"switched in {device.switch_us:.0f} us" if device.adopted else "-",
            device.reason,
        )
        for device in found
    ]
    head = ("device", "model", "state", "mapped", "adopted", "")
    for line in table([head, *rows], left=(0, 1, 2, 4, 5)):
        print(line)


def adopt(bdf: _Bdf) -> None:
    """Switch an inherited device to the mappings of its new owner."""
    from pkernfs.host.devices import Control
    from pkernfs.vfio.bind import parse_bdf

    name, control = parse_bdf(bdf), Control()
    control.adopt(name)
    for device in control.devices():
        if device.bdf == name:
            print(f"{name} is adopted: switched in {device.switch_us:.0f} us")


def release(bdf: _Bdf) -> None:
    """Treat a device as any other again."""
    from pkernfs.host.devices import Control
    from pkernfs.vfio.bind import parse_bdf

    name = parse_bdf(bdf)
    Control().release(name)
    print(f"{name} is not preserved any more")
