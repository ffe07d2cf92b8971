# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs vm``: guests whose memory lies in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pkernfs.cli import complete
from pkernfs.host.machine import DEFAULT_STORE
from pkernfs.words import size, table

if TYPE_CHECKING:
    from pkernfs.vmm.config import Places
    from pkernfs.vmm.guests import GuestStatus

_Store = Annotated[Path, typer.Option(metavar="DIR", help="Where the store is mounted.")]
_Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the guest.", autocompletion=complete.guests),
]
_PRIORITY = "An update pauses guests of a higher priority later, and they run again earlier."

_InUnit = Annotated[
    bool,
    typer.Option("--in-unit", hidden=True, help="For pkernfs-vm@.service: the guest is its own."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    vm = typer.Typer(help="Guests whose memory lies in the store.", no_args_is_help=True)
    vm.command("start", context_settings={"allow_interspersed_args": True})(start)
    vm.command("list")(list_)
    vm.command("set")(set_)
    vm.command("stop")(stop)
    vm.command("adopt")(adopt)
    vm.command("network")(network)
    app.add_typer(vm, name="vm")


def start(
    name: _Name,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- QEMU ARGS]", help="QEMU's own: disks, network, consoles."),
    ] = None,
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory, e.g. 4G.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BDF",
            help="Device of the host to pass through; may be repeated (docs/passthrough.md).",
        ),
    ] = None,
    qemu: Annotated[str, typer.Option(metavar="FILE", help="QEMU to run.")] = "qemu-system-x86_64",
    node: Annotated[
        int | None,
        typer.Option(metavar="N", help="NUMA node for its memory and its processors."),
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="NAME", help="Region for its memory.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help=f"{_PRIORITY} 0 by default.")
    ] = None,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Give up what an update saved of it: it boots from its disks."),
    ] = False,
    store: _Store = DEFAULT_STORE,
    in_unit: _InUnit = False,
) -> None:
    """Start a guest; without --ram, start one again that was stopped."""
    from pkernfs.cli import say_waits
    from pkernfs.host import systemd
    from pkernfs.host.machine import Machine, require_store
    from pkernfs.host.ranges import format_size, parse_size
    from pkernfs.update.lock import changing_guests
    from pkernfs.vmm import definitions, guests
    from pkernfs.vmm.config import Guest, Places, check_name

    require_store(store)
    places = Places.on(Machine(), store)
    if in_unit:
        _enter(places, name)
        return
    size = parse_size(ram) if ram is not None else None
    with changing_guests(places, f"vm start {check_name(name)}", say_waits):
        if size is None:
            definitions.restore(places, name)
        else:
            definitions.require_home(places, name)
        _say_cut_off(places, name)
        home = None
        if node is not None or region is not None:
            from pkernfs.vmm.placement import choose_store

            home = choose_store(Machine(), store, node, region)
        child = guests.start(
            places,
            name,
            size,
            arguments or [],
            qemu=qemu,
            store=home,
            node=node,
            priority=priority,
            devices=device or [],
            anew=anew,
        )
    systemd.enter_units([name], Machine())
    guest = Guest(name, places)
    definitions.keep(guest)
    size = guest.config().ram_bytes
    print(f"{name} runs: {format_size(size)} of memory in {guest.store}, process {child.pid}")


def _enter(places: Places, name: str) -> None:
    """For the unit of a guest: take it in if it runs, or start it.

    Taking in changes nothing of who runs, and a resume or an update has every guest's QEMU where
    it is: only a start takes the host's lock. An update may be given up, so it waits for that.
    """
    from pkernfs.cli import say_waits
    from pkernfs.update.lock import changing_guests
    from pkernfs.vmm import definitions, guests

    if guests.take_in(places, name):
        return
    with changing_guests(places, f"vm start {name}", say_waits, patient=True):
        definitions.restore(places, name)
        _say_cut_off(places, name)
        guests.enter(places, name)


def _say_cut_off(places: Places, name: str) -> None:
    """Say that a guest does not go on from where it was, if that could be thought."""
    from pkernfs.cli import say_waits
    from pkernfs.host.machine import Machine
    from pkernfs.vmm import boots
    from pkernfs.vmm.config import Guest

    guest = Guest(name, places)
    if guest.exists() and boots.cut_off(guest, Machine()):
        say_waits(f"{boots.what_happened(guest)}: it boots from its disks")


def _leave(places: Places, name: str) -> None:
    """For the unit of a guest that is being stopped: shut the guest down, if it is on."""
    import time

    from pkernfs.cli import say_waits
    from pkernfs.update.lock import changing_guests
    from pkernfs.vmm import guests

    if not guests.has_to_leave(places, name):
        return
    ends = time.monotonic() + guests.UNIT_STOP_S
    with changing_guests(places, f"vm stop {name}", say_waits, patient=True):
        guests.leave(places, name, max(0.0, ends - time.monotonic()))


def list_(
    store: _Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the guests of all stores."""
    import dataclasses
    import json

    from pkernfs.host.machine import Machine
    from pkernfs.host.stores import require_any
    from pkernfs.vmm import guests
    from pkernfs.vmm.config import Places

    require_any(Machine(), store)
    found = guests.list_guests(Places.on(Machine(), store))
    if as_json:
        value = {"schema": "pkernfs-vms/1", "vms": [dataclasses.asdict(guest) for guest in found]}
        print(json.dumps(value, indent=1))
        return
    if not found:
        print(f"no guest in {store}; pkernfs vm start makes one")
        return
    for line in table(_rows(found), left=(0, 1, 4, 5)):
        print(line)


#: What to know, or to do, about a guest in some state of its.
_REMARKS = {
    "saved": "waits for pkernfs resume",
    "lost": "its kernel ended under it: vm start boots it from its disks",
    "unreachable": "its QEMU does not answer",
    "postmigrate": "stopped by an update: pkernfs update --recover if that is not under way",
    "inmigrate": "is being resumed",
}


def _rows(found: Sequence[GuestStatus]) -> Iterator[Sequence[str]]:
    yield "guest", "state", "memory", "process", "store", ""
    for guest in found:
        process = str(guest.pid) if guest.pid is not None else "-"
        remark = guest.error or _REMARKS.get(guest.state, "")
        yield guest.name, guest.state, size(guest.ram_bytes), process, guest.store, remark


def set_(
    name: _Name,
    priority: Annotated[int, typer.Option(metavar="N", help=_PRIORITY)],
    store: _Store = DEFAULT_STORE,
) -> None:
    """Change what is kept of a guest, whether it runs or not."""
    from pkernfs.host.machine import Machine
    from pkernfs.host.stores import require_any
    from pkernfs.vmm import guests
    from pkernfs.vmm.config import Places

    require_any(Machine(), store)
    guests.set_priority(Places.on(Machine(), store), name, priority)
    print(f"{name} has priority {priority}")


def stop(
    name: _Name,
    force: Annotated[
        bool, typer.Option("--force", help="Switch it off without asking it.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it from the store as well.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds it may take to shut down.")
    ] = 60.0,
    store: _Store = DEFAULT_STORE,
    in_unit: _InUnit = False,
) -> None:
    """Shut a guest down. Its memory is given back; how to start it again is kept."""
    from pkernfs.cli import say_waits
    from pkernfs.host import systemd
    from pkernfs.host.machine import Machine
    from pkernfs.host.stores import require_any
    from pkernfs.update.lock import BRINGING_BACK, changing_guests
    from pkernfs.vmm import definitions, guests
    from pkernfs.vmm.config import Places, check_name

    require_any(Machine(), store)
    places = Places.on(Machine(), store)
    if in_unit:
        _leave(places, name)
        return
    # A guest that a resume or a recovery waits for in vain has to be given up somehow.
    beside = BRINGING_BACK if force else frozenset()
    with changing_guests(places, f"vm stop {check_name(name)}", say_waits, beside=beside):
        guests.stop(places, name, force=force, delete=delete, timeout=timeout)
    if delete:
        definitions.forget(name)
    systemd.leave_unit(name, Machine())
    print(f"{name} is off" + (" and removed" if delete else ""))


def adopt(
    qmp: Annotated[
        Path | None, typer.Option(metavar="SOCKET", help="QMP socket that nobody is using.")
    ] = None,
    libvirt: Annotated[
        str | None, typer.Option(metavar="DOMAIN", help="Or: a running domain of libvirt's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it; default: as QEMU does.")
    ] = None,
    store: _Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Take a guest over that someone else started, if its memory lies in a store.

    It runs on as it is, and updates take it along. The next kernel starts its QEMU anew, with
    the same arguments but for what is said here.
    """
    from pkernfs.cli import say_waits
    from pkernfs.errors import UsageError
    from pkernfs.host import systemd
    from pkernfs.host.machine import Machine
    from pkernfs.host.ranges import format_size
    from pkernfs.host.stores import require_any
    from pkernfs.update.lock import changing_guests
    from pkernfs.vmm import adopt as adopting
    from pkernfs.vmm.config import Places

    if (qmp is None) == (libvirt is None):
        raise UsageError("which guest?", "--qmp SOCKET or --libvirt DOMAIN, one of them")
    machine = Machine()
    require_any(machine, store)
    places = Places.on(machine, store)
    with changing_guests(places, f"vm adopt {libvirt or qmp}", say_waits):
        if libvirt is not None:
            from pkernfs.vmm import adopt_libvirt

            adopted = adopt_libvirt.adopt(places, libvirt, name, machine)
        else:
            assert qmp is not None
            adopted = adopting.adopt(places, qmp, name, machine)
    systemd.enter_units([adopted.name], machine)
    if as_json:
        import dataclasses
        import json

        print(json.dumps({"schema": "pkernfs-adopted/1", **dataclasses.asdict(adopted)}, indent=1))
        return
    size = format_size(adopted.ram_bytes)
    print(f"{adopted.name} is adopted: {size} of memory, process {adopted.pid}")
    for note in adopted.notes:
        print(f"after an update: {note}")


def network(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Guests; all by default.",
            autocompletion=complete.guests,
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds to wait for bridges.")
    ] = 0.0,
    store: _Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Put guests' interfaces back onto their bridges, as they were before the last update.

    Resume does it for bridges that are there; this does it for those that come up later.
    """
    from pkernfs.host.machine import Machine
    from pkernfs.host.stores import require_any
    from pkernfs.update import network as networks
    from pkernfs.vmm.config import Places

    machine = Machine()
    require_any(machine, store)
    found = networks.wait_for_bridges(machine, Places.on(machine, store), names or [], wait)
    if as_json:
        import dataclasses
        import json

        value = [dataclasses.asdict(each) for each in found]
        print(json.dumps({"schema": "pkernfs-network/1", "interfaces": value}, indent=1))
    else:
        for each in found:
            print(each)
        if not found:
            print("no guest had an interface of this host at the last update")
    if any(each.state in ("waits", "failed", "gone") for each in found):
        raise typer.Exit(1)
