# SPDX-License-Identifier: GPL-2.0-only
"""The guests of this host: start one, list them, stop one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.files import sync_directory
from pkernfs.host import systemd
from pkernfs.host.machine import Machine, require_store
from pkernfs.host.ranges import format_size
from pkernfs.vmm import boots, command, launch, passthrough, process
from pkernfs.vmm.config import Guest, GuestConfig, Places, all_guests, check_name

#: Guest memory is given to the guest in units of what the store hands out.
RAM_UNIT = 2 << 20

#: QEMU has KVM log what a guest writes while it saves one, also if the memory is left out. With
#: a bitmap that is work for every page: saving 1 TiB took four times as long as with a ring, under
#: emulation. A ring is there per processor; where KVM has none, QEMU takes the bitmap.
DIRTY_RING = 4096

#: Until QEMU greets (seconds): under emulation its start alone takes many.
START_S = 120.0

#: How long a guest may take to shut down with its unit (seconds): less than TimeoutStopSec=
#: of pkernfs-vm@.service, after which systemd ends it.
UNIT_STOP_S = 270.0


@dataclass(frozen=True)
class GuestStatus:
    """One line of ``pkernfs vm list``.

    :ivar state: "running", "paused", QEMU's own word for another state, "saved" (waits to
        be resumed after an update), "lost" (its kernel ended under it: :mod:`pkernfs.vmm.boots`),
        "off", "unreachable", or "broken" (its files can't be read).
    :ivar store: mount point of the store that it lies in.
    :ivar node: NUMA node whose processors run it; None: any.
    :ivar error: what is wrong with a guest that is broken.
    """

    name: str
    state: str
    ram_bytes: int
    pid: int | None
    store: str = ""
    node: int | None = None
    error: str = ""


def struct_pages(machine: Machine) -> bool:
    """Has the store's memory a ``struct page``, so that O_DIRECT can reach it?

    Asked of the module in the running kernel; a module that does not say has none.
    """
    names = machine.root / "sys/fs/pkernfs"
    answers = [path.read_text(encoding="ascii").strip() for path in names.glob("*/pages")]
    return bool(answers) and all(answer == "1" for answer in answers)


def plan_config(
    guest: Guest,
    ram_bytes: int,
    arguments: Sequence[str],
    qemu: str,
    machine: Machine,
    devices: tuple[str, ...] = (),
) -> GuestConfig:
    """Everything about a guest that is decided before it is started.

    :param ram_bytes: size of its memory.
    :param arguments: the user's part of QEMU's arguments.
    :param qemu: name or path of the QEMU binary.
    :param devices: PCI names of devices to pass through.
    :raises PkernfsError: something can't work; says what to write instead.
    """
    if ram_bytes <= 0 or ram_bytes % RAM_UNIT:
        raise PkernfsError(
            f"a guest can't have {ram_bytes} bytes of memory",
            f"its size must be a multiple of {format_size(RAM_UNIT)}",
        )
    command.check_arguments(arguments)
    if not struct_pages(machine):
        command.check_direct_io(arguments)
    binary = process.find_qemu(qemu)
    version = process.qemu_version(binary)
    if process.version_tuple(version) < process.MIN_VERSION:
        wanted = ".".join(str(part) for part in process.MIN_VERSION)
        raise PkernfsError(
            f"{binary} is version {version}, which can't save a guest for an update",
            f"it takes {wanted} or newer; Debian 13 has it in trixie-backports",
        )
    if devices:
        passthrough.check_qemu(version, arguments)
    accelerator = _accelerator(arguments, ram_bytes, machine)
    kind = process.versioned_machine(binary, command.last_value(arguments, "machine", "M") or "q35")
    return GuestConfig(
        name=guest.name,
        ram_bytes=ram_bytes,
        qemu=str(binary),
        qemu_version=version,
        machine=kind.partition(",")[0],
        arguments=command.base_arguments(
            guest.name,
            str(guest.ram),
            ram_bytes,
            kind,
            accelerator,
            arguments,
            devices,
        ),
        directory=str(Path.cwd()),
        devices=devices,
    )


def _accelerator(arguments: Sequence[str], ram_bytes: int, machine: Machine) -> str:
    chosen = command.last_value(arguments, "accel")
    if chosen is not None:
        return chosen
    if not os.access(machine.root / "dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    return f"kvm,dirty-ring-size={DIRTY_RING}" if ram_bytes >= launch.LARGE else "kvm"


def allocate_ram(path: Path, size: int) -> None:
    """Make the file of a guest's memory, all of it allocated and zero.

    :param size: bytes.
    :raises PkernfsError: the store has not that much room; nothing is left behind.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        path.unlink()
        if error.errno != errno.ENOSPC:
            raise PkernfsError(f"can't allocate {path}: {error.strerror}") from error
        room = os.statvfs(path.parent)
        free = room.f_bavail * room.f_frsize
        raise PkernfsError(
            f"no room for {format_size(size)} of guest memory: the store has {free >> 20} MiB free",
            "take a smaller --ram, or stop and delete another guest (pkernfs vm list)",
        ) from error
    finally:
        os.close(fd)


@contextlib.contextmanager
def _new_directory(guest: Guest) -> Iterator[None]:
    """The guest's directory in the store; as it was before if the block fails."""
    before = guest.config() if guest.exists() else None
    guest.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield
    except BaseException:
        guest.ram.unlink(missing_ok=True)
        if before is not None:
            guest.write_config(before)
        else:
            shutil.rmtree(guest.directory, ignore_errors=True)
        raise


def check_startable(guest: Guest, *, anew: bool = False) -> None:
    """Refuse to start a guest that runs, or that waits to be resumed.

    :param anew: what was saved of it is given up.
    :raises PkernfsError: see above.
    """
    if process.running(guest) is not None:
        raise PkernfsError(f"guest {guest.name} runs already", "pkernfs vm list shows it")
    if guest.exists() and not anew and guest.saved() is not None:
        raise PkernfsError(
            f"guest {guest.name} was saved by an update and waits to be resumed",
            "pkernfs resume continues it; to give up what was saved, and boot it from its disks: "
            f"pkernfs vm start {guest.name} --anew",
        )


def start(
    places: Places,
    name: str,
    ram_bytes: int | None,
    arguments: Sequence[str],
    *,
    qemu: str = process.DEFAULT_QEMU,
    machine: Machine | None = None,
    store: Path | None = None,
    node: int | None = None,
    priority: int | None = None,
    devices: Sequence[str] = (),
    anew: bool = False,
) -> process.Process:
    """Start a guest whose memory and configuration lie in the store.

    :param ram_bytes: size of its memory; None to start a guest again that was stopped.
    :param arguments: the user's part of QEMU's arguments.
    :param store: mount point of the store for a new guest; None: where it is, or the first.
    :param node: NUMA node whose processors shall run it; None: any, or as it was.
    :param priority: see :class:`GuestConfig`; None: 0, or as it was.
    :param devices: PCI names of devices to pass through to a new guest.
    :param anew: start it from its disks also if an update saved it.
    :raises PkernfsError: it can't be started; nothing is left behind.
    """
    guest = Guest(check_name(name), places)
    if store is not None:
        guest = _in_store(guest, store)
    machine = machine or Machine()
    # On a bare mount point it would be another guest of the same name, on other memory.
    require_store(guest.store, machine)
    check_startable(guest, anew=anew)
    if ram_bytes is None:
        if arguments or devices or not guest.exists():
            raise PkernfsError(f"guest {name} needs a size", f"pkernfs vm start {name} --ram 1G")
        config = guest.config()
    else:
        names = passthrough.names(devices)
        config = plan_config(guest, ram_bytes, arguments, qemu, machine, names)
    if node is not None:
        config = dataclasses.replace(config, node=node)
    if priority is not None:
        config = dataclasses.replace(config, priority=priority)
    passthrough.check_free(places, guest, config.devices)
    with passthrough.given(config.devices), _new_directory(guest):
        allocate_ram(guest.ram, config.ram_bytes)
        guest.forget_saved()
        # Before QEMU runs: a guest that runs and that no update knows of would be lost.
        guest.write_config(config)
        boots.runs_here(guest, machine)
        sync_directory(guest.directory.parent)
        child = process.spawn(guest, config, incoming=False)
        asyncio.run(_until_up(guest, child))
    return child


def set_priority(places: Places, name: str, priority: int) -> None:
    """Have the next update pause and resume a guest earlier or later than others.

    :param priority: see :class:`GuestConfig`.
    :raises PkernfsError: there is no such guest.
    """
    guest = Guest(check_name(name), places)
    guest.write_config(dataclasses.replace(guest.config(), priority=priority))


def _in_store(guest: Guest, store: Path) -> Guest:
    """The guest in this store; it is in no other.

    :raises PkernfsError: it is.
    """
    if guest.exists() and guest.store != store:
        raise PkernfsError(
            f"guest {guest.name} lies in the store at {guest.store}, not in the one at {store}",
            f"to move it: pkernfs vm stop {guest.name} --delete, then start it anew",
        )
    return Guest(guest.name, guest.places, store)


def take_in(places: Places, name: str) -> bool:
    """For the unit of a guest: take the guest in, if it runs.

    :returns: does it?
    :raises PkernfsError: it can't be moved here.
    """
    child = process.running(Guest(check_name(name), places))
    if child is None:
        return False
    _take_in(child)
    return True


def _take_in(child: process.Process) -> None:
    systemd.move_here(child.pid)
    systemd.now_main(child.pid)


def enter(places: Places, name: str) -> None:
    """For the unit of a guest: take the guest in, or start it if it does not run.

    :raises PkernfsError: it can't be started.
    """
    if not take_in(places, name):
        _take_in(start(places, name, None, ()))


def has_to_leave(places: Places, name: str) -> bool:
    """Is a guest on, and not saved for an update? One that is saved is complete in the store."""
    guest = Guest(check_name(name), places)
    return process.running(guest) is not None and guest.saved() is None


def leave(places: Places, name: str, timeout: float = UNIT_STOP_S) -> None:
    """For the unit of a guest that is being stopped: shut the guest down, if it is on.

    One that was saved for an update is complete in the store: its QEMU may be ended.

    :param timeout: seconds that the guest may take to shut down.
    :raises PkernfsError: it did not shut down.
    """
    if has_to_leave(places, name):
        stop(places, name, force=False, delete=False, timeout=timeout)


async def _until_up(guest: Guest, child: process.Process) -> None:
    """Wait until QEMU runs the guest; end QEMU when it does not."""
    from pkernfs.vmm.monitor import monitor

    try:
        async with monitor(guest, START_S) as session:
            await session.status()
    except BaseException:
        process.kill(child)
        raise


async def status_of(guest: Guest, machine: Machine) -> GuestStatus:
    """What a guest is doing."""
    from pkernfs.vmm.monitor import monitor

    child = process.running(guest)
    pid = child.pid if child is not None else None
    try:
        config, saved = guest.config(), guest.saved()
    except PkernfsError as error:
        size = guest.ram.stat().st_size if guest.ram.exists() else 0
        store = str(guest.store)
        return GuestStatus(guest.name, "broken", size, pid, store, error=error.what)
    if child is None:
        off = "lost" if boots.cut_off(guest, machine) else "off"
        state = "saved" if saved is not None else off
    else:
        try:
            async with monitor(guest, 5) as session:
                state = await session.status()
        except PkernfsError:
            state = "unreachable"
    return GuestStatus(guest.name, state, config.ram_bytes, pid, str(guest.store), config.node)


def list_guests(places: Places, machine: Machine | None = None) -> list[GuestStatus]:
    """What each guest is doing, by name."""
    here = machine or Machine()

    async def ask() -> list[GuestStatus]:
        return list(await asyncio.gather(*(status_of(guest, here) for guest in all_guests(places))))

    return asyncio.run(ask())


def stop(places: Places, name: str, *, force: bool, delete: bool, timeout: float = 60.0) -> None:
    """Switch a guest off.

    Its memory means nothing then and is given back; how to start it again is kept,
    unless it is deleted.

    :param force: end QEMU at once instead of asking the guest to shut down.
    :param delete: remove the guest from the store.
    :param timeout: seconds that the guest may take to shut down.
    :raises PkernfsError: there is no such guest, or it did not shut down.
    """
    guest = Guest(check_name(name), places)
    devices: tuple[str, ...] = ()
    # A guest whose files can't be read can be given up all the same.
    try:
        devices = guest.config().devices
    except PkernfsError:
        if not (force and delete and guest.exists()):
            raise
    child = process.running(guest)
    if child is not None and guest.saved() is not None and not process.maps_memory(child, guest):
        raise process.stranger(guest)
    if child is None and not (force and delete) and guest.saved() is not None:
        raise PkernfsError(
            f"guest {name} was saved by an update and waits to be resumed",
            f"pkernfs resume continues it; to give it up: pkernfs vm stop {name} --force --delete",
        )
    if child is not None:
        asyncio.run(_end(guest, child, force, timeout))
    passthrough.forget(devices)
    if delete:
        directory = guest.directory
        shutil.rmtree(directory)
        sync_directory(directory.parent)
    else:
        guest.ram.unlink(missing_ok=True)
        guest.boot_file.unlink(missing_ok=True)
        guest.forget_saved()
    shutil.rmtree(guest.runtime, ignore_errors=True)


async def _end(guest: Guest, child: process.Process, force: bool, timeout: float) -> None:
    from pkernfs.vmm.monitor import monitor

    try:
        async with monitor(guest, 5) as session:
            await session.execute("quit" if force else "system_powerdown")
    except PkernfsError:
        if not force:
            raise
        process.kill(child)
    deadline = time.monotonic() + timeout
    while child.alive():
        if time.monotonic() > deadline:
            raise PkernfsError(
                f"guest {guest.name} did not shut down within {timeout:g} s; it still runs",
                f"switch it off like by its power button: pkernfs vm stop {guest.name} --force",
            )
        await asyncio.sleep(0.05)
