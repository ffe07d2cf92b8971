# SPDX-License-Identifier: GPL-2.0-only
"""What an update is going to do, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkernfs.errors import PkernfsError
from pkernfs.files import read_json, write_atomic, write_json
from pkernfs.host.bootline import MARKER, REGION, BootLine, next_boot_line, word_value
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from pkernfs.host.ports import Port
from pkernfs.host.ranges import Region, format_size, parse_regions
from pkernfs.vmm import fingerprint, passthrough
from pkernfs.vmm.config import Guest, Places, all_guests
from pkernfs.vmm.outlives import first_obstacle
from pkernfs.vmm.process import maps_memory, running, stranger
from pkernfs.vmm.taps import ports_of

if TYPE_CHECKING:
    from pkernfs.vmm.monitor import Monitor

# Words of the watchdog (pkernfs.update.watchdog) in the next kernel's boot line. No dots:
# modprobe would take them for parameters of a module.
WATCHDOG = "pkernfs_watchdog"
BACK = "pkernfs_back"
WENT_BACK = "pkernfs_went_back"

#: What new_id() makes; anything else could lead out of the directory.
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")

PLAN_SCHEMA = "pkernfs-update/1"

#: What a saved state takes beyond the memory that is in it, and the store's unit.
_STATE_MARGIN = 8 << 20

#: Updates whose records stay in the store.
_KEPT_UPDATES = 5


@dataclass(frozen=True)
class PlannedGuest:
    """A guest that an update pauses.

    :ivar state_limit: bytes that its saved state may take at most.
    :ivar priority: guests of a higher one are paused later, and run again earlier.
    :ivar ports: its interfaces on this host, which end with the kernel.
    :ivar accelerator: "kvm" or "tcg".
    """

    name: str
    ram_bytes: int
    state_limit: int
    was_running: bool
    priority: int = 0
    ports: tuple[Port, ...] = ()
    accelerator: str = ""

    @classmethod
    def of(cls, value: dict[str, Any]) -> PlannedGuest:
        """From JSON."""
        return cls(**{**value, "ports": tuple(map(Port.of, value.get("ports", ())))})


@dataclass(frozen=True)
class Plan:
    """An update, decided.

    :ivar update: its id.
    :ivar boot_line: the next kernel's.
    :ivar guests: in the order in which they are to run again.
    :ivar watchdog_s: when the next kernel goes back to this one if the guests are not back,
        seconds from its start; 0: never.
    :ivar fingerprint: which fingerprint is taken of saved guests, see
        :mod:`pkernfs.vmm.fingerprint`.
    :ivar hardware_watchdog: driver of the machine's watchdog, which is armed for the jump;
        empty: none is.
    """

    update: str
    kernel_before: str
    boot_id_before: str
    kernel_after: str
    image: str
    initrd: str | None
    boot_line: str
    guests: tuple[PlannedGuest, ...]
    watchdog_s: float = 0.0
    fingerprint: str = fingerprint.SAMPLED
    hardware_watchdog: str = ""


def new_id() -> str:
    """An id for an update: the time, and some chance in case that the clock was set back."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + os.urandom(2).hex()


def directory(places: Places, update: str) -> Path:
    """Where the records of an update lie."""
    return places.updates / update


def write(places: Places, plan: Plan) -> Path:
    """Keep the plan in the store, as the last one.

    :returns: the directory of the update's records.
    """
    path = directory(places, plan.update)
    path.mkdir(parents=True, mode=0o700)
    write_json(path / "plan.json", {"schema": PLAN_SCHEMA, **dataclasses.asdict(plan)})
    write_atomic(places.updates / "last", plan.update + "\n")
    _forget_old(places, path)
    return path


def _forget_old(places: Places, newest: Path) -> None:
    # Ids of the same second are in no order: the newest is known, not found.
    old = sorted(path for path in places.updates.iterdir() if path.is_dir() and path != newest)
    for path in old[: 1 - _KEPT_UPDATES]:
        shutil.rmtree(path, ignore_errors=True)


def read(places: Places, update: str) -> Plan:
    """Read a plan back.

    :raises PkernfsError: there is no such update, or its file can't be used.
    """
    path = directory(places, update) / "plan.json"
    value = read_json(path, PLAN_SCHEMA)
    del value["schema"]
    try:
        value["guests"] = tuple(map(PlannedGuest.of, value["guests"]))
        return Plan(**value)
    except (TypeError, KeyError) as error:
        raise PkernfsError(f"{path} is incomplete: {error}") from error


def last_update(places: Places, machine: Machine) -> str | None:
    """Id of the update that started this kernel, or else of the last one that was tried."""
    marker = machine.update_marker
    if marker is not None and _ID.fullmatch(marker) and directory(places, marker).is_dir():
        return marker
    try:
        last = (places.updates / "last").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return last if _ID.fullmatch(last) else None


def running_guests(places: Places) -> list[Guest]:
    """The guests that an update has to take along."""
    return [guest for guest in all_guests(places) if running(guest) is not None]


async def plan_guest(session: Monitor) -> PlannedGuest:
    """Check that a guest can be paused and saved; its QEMU is prepared for that.

    :raises PkernfsError: it can't.
    """
    from pkernfs.vmm.monitor import why_not_saved

    guest = session.guest
    reason = await why_not_saved(session)
    if reason is not None:
        raise PkernfsError(
            f"guest {guest.name} can't be saved: {reason}",
            "remove that device, or switch the guest off for the update",
        )
    return await measure_guest(session)


async def measure_guest(session: Monitor) -> PlannedGuest:
    """All of :func:`plan_guest` that its QEMU need not be prepared for.

    :raises PkernfsError: the guest can't be saved.
    """
    guest = session.guest
    child = running(guest)
    if child is not None and not maps_memory(child, guest):
        raise stranger(guest)
    config = guest.config()
    try:
        passthrough.check_interrupts(config.devices)
    except PkernfsError as error:
        raise PkernfsError(
            f"guest {guest.name} can't be saved: {error.what}", error.hint
        ) from error
    ending = first_obstacle(config.arguments)
    if ending is not None:
        raise PkernfsError(
            f"guest {guest.name} could not be started again: {ending.what}",
            f"{ending.hint}; pkernfs vm stop {guest.name}, then start it so",
        )
    size = guest.ram.stat().st_size
    if size != config.ram_bytes:
        raise PkernfsError(f"guest {guest.name}: {guest.ram} has {size} bytes")
    limit = await session.other_memory() + _STATE_MARGIN
    return PlannedGuest(
        guest.name,
        config.ram_bytes,
        limit,
        was_running=await session.is_running(),
        priority=config.priority,
        ports=ports_of(guest),
        accelerator=await session.accelerator(),
    )


def in_order(guests: Sequence[PlannedGuest], first: Sequence[str]) -> tuple[PlannedGuest, ...]:
    """The guests in the order in which they are to run again.

    :param first: names of guests that come before all others: they get priorities of their
        own for this update, above every other.
    :raises PkernfsError: no such guest runs.
    """
    unknown = [name for name in first if name not in {guest.name for guest in guests}]
    if unknown:
        raise PkernfsError(
            f"no guest {unknown[0]} runs, so it can't be in the order", "pkernfs vm list names them"
        )
    top = max((guest.priority for guest in guests), default=0)
    own = {name: top + len(first) - place for place, name in enumerate(first)}
    ranked = (
        dataclasses.replace(guest, priority=own.get(guest.name, guest.priority)) for guest in guests
    )
    return tuple(sorted(ranked, key=lambda guest: (-guest.priority, guest.name)))


def check_space(places: Places, guests: tuple[PlannedGuest, ...]) -> None:
    """Make sure that all saved states fit, each into the store of its guest.

    :raises PkernfsError: they might not.
    """
    needed = {places.store: _STATE_MARGIN}
    for guest in guests:
        store = places.home_of(guest.name)
        needed[store] = needed.get(store, _STATE_MARGIN) + guest.state_limit
    for store, size in needed.items():
        room = os.statvfs(store)
        free = room.f_bavail * room.f_frsize
        if free < size:
            raise PkernfsError(
                f"the store at {store} has {format_size(free)} free, the state of its guests "
                f"may take {size >> 20} MiB",
                "stop a guest, or remove its files: pkernfs vm stop NAME --delete",
            )


def _check_line(line: BootLine, regions: Sequence[Region], update: str) -> None:
    """Make sure that the words of the user left the regions in place.

    A kernel that took a region for ordinary memory would overwrite the guests.

    :raises PkernfsError: they did not.
    """
    hint = f"leave memmap=, {REGION}= and {MARKER}= out of --append"
    # Of several values the last one counts, for modules (kernel/params.c) as for the marker.
    if parse_regions(line.values(REGION)[-1]) != tuple(regions):
        raise PkernfsError("--append gives pkernfs other regions than those with the guests", hint)
    if line.values(MARKER)[-1] != update:
        raise PkernfsError("--append changes the mark of the update", hint)
    for span, kind in line.reservations():
        for region in regions:
            if kind != "$" and span.overlaps(region.range):
                raise PkernfsError(
                    f"--append takes {region.range}, which holds the guests, for other memory "
                    f"(memmap=...{kind})",
                    hint,
                )


def make(
    machine: Machine,
    kernel: Kernel,
    guests: tuple[PlannedGuest, ...],
    append: str,
    watchdog: tuple[str, ...] = (),
) -> Plan:
    """Put the plan together.

    :param append: more words for the next kernel's boot line.
    :param watchdog: the words of pkernfs.update.watchdog; they stand before the marker.
    :raises PkernfsError: the boot line can't be written, or would lose the regions.
    """
    update = new_id()
    regions = machine.regions()
    running = machine.boot_line.without(WATCHDOG, BACK, WENT_BACK).plus(BootLine(watchdog))
    line = next_boot_line(running, regions, update, append)
    _check_line(line, regions, update)
    return Plan(
        update=update,
        kernel_before=machine.kernel,
        boot_id_before=machine.boot_id,
        kernel_after=kernel.release,
        image=str(kernel.image),
        initrd=str(kernel.initrd) if kernel.initrd else None,
        boot_line=str(line),
        guests=guests,
        watchdog_s=float(word_value(watchdog[0])) if watchdog else 0.0,
    )
