# SPDX-License-Identifier: GPL-2.0-only
"""Taking a guest over that someone else started: a script, libvirt.

The guest runs on as it is. From then on it is one of this host's guests: its memory is
``ram`` in its directory of the store (the file is renamed, which a QEMU that has it mapped
does not notice), and its QMP socket is linked to where other guests have theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.files import sync_directory
from pkernfs.host.machine import Machine
from pkernfs.vmm import adopt_arguments, adopt_process, boots, command, process
from pkernfs.vmm.adopt_arguments import HOW_TO, Circumstances, NotAdoptable, Successor
from pkernfs.vmm.adopt_process import Found, Mapping
from pkernfs.vmm.config import Guest, GuestConfig, Places, check_name
from pkernfs.vmm.guests import struct_pages
from pkernfs.vmm.launch import start_time
from pkernfs.vmm.monitor import Monitor, monitor, why_not_saved
from pkernfs.vmm.options import parse

#: A monitor that somebody else is connected to does not answer (seconds).
_GREETING_S = 15.0


@dataclass(frozen=True)
class Adopted:
    """What became of it.

    :ivar notes: what will be different after an update, a sentence each.
    """

    name: str
    pid: int
    ram_bytes: int
    notes: tuple[str, ...]


def adopt(
    places: Places, socket: Path, name: str | None = None, machine: Machine | None = None
) -> Adopted:
    """Register a guest that someone else started.

    :param socket: its QMP socket, which nobody else is connected to.
    :param name: what it is called; None: as its QEMU says.
    :raises PkernfsError: it can't be; nothing was changed, and the guest runs on.
    """
    machine = machine or Machine()
    socket = socket.absolute()
    found = adopt_process.read(adopt_process.find(socket))
    ram_id, _ = adopt_arguments.memory_of(found.arguments)
    memory = memory_in_store(places, found.mappings)
    guest = Guest(check_name(name or name_of(found.arguments, socket)), places, memory.store)
    _check_new(guest, places, found.pid)
    with _linked(guest, socket):
        config, next_start = asyncio.run(_examine(guest, found, ram_id, memory, machine))
        _take(guest, found, config, memory.path, machine)
    return Adopted(guest.name, found.pid, config.ram_bytes, tuple(next_start.notes))


def name_of(arguments: Sequence[str], socket: Path) -> str:
    """The guest's name as QEMU has it, or else the socket's."""
    for option in parse(arguments):
        if option.name == "name" and option.value:
            properties = option.properties()
            given = properties.text("guest") or option.value.partition(",")[0]
            return re.sub(r"[^A-Za-z0-9_.-]", "-", given)[:48]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.name.partition(".")[0])[:48]


@dataclass(frozen=True)
class Memory:
    """A guest's memory.

    :ivar store: mount point of the store that it lies in.
    :ivar size: bytes.
    """

    path: Path
    store: Path
    size: int


def memory_in_store(places: Places, mappings: Sequence[Mapping]) -> Memory:
    """The file of a store that a QEMU has mapped.

    :raises NotAdoptable: there is none, or it is not the guest's memory alone.
    """
    inside = [
        (mapping, store)
        for mapping in mappings
        for store in places.stores
        if mapping.path.is_relative_to(store)
    ]
    if not inside:
        raise NotAdoptable(
            f"it has no file of {' or '.join(map(str, places.stores))} in its memory", HOW_TO
        )
    mapping, store = inside[0]
    if len(inside) > 1 or not mapping.shared:
        raise NotAdoptable(f"{mapping.path} is not shared, or not its only piece of memory", HOW_TO)
    if str(mapping.path).endswith(" (deleted)"):
        raise NotAdoptable(
            f"the file of its memory has no name any more ({mapping.path})",
            "mem-path= must name a file, not a directory",
        )
    if (mapping.path.parent / "config.json").exists():
        raise PkernfsError(f"it is the guest {mapping.path.parent.name} already", "pkernfs vm list")
    return Memory(mapping.path, store, mapping.path.stat().st_size)


def _check_new(guest: Guest, places: Places, pid: int) -> None:
    if guest.exists() or Guest(guest.name, places).exists():
        raise PkernfsError(
            f"there is a guest {guest.name} already",
            "another name: --name NAME, or remove that one: "
            f"pkernfs vm stop {guest.name} --force --delete",
        )
    if not start_time(pid):
        raise PkernfsError(f"process {pid} has ended")


@contextlib.contextmanager
def _linked(guest: Guest, socket: Path) -> Iterator[None]:
    """The guest's runtime directory, with its socket; gone again if the block fails."""
    guest.runtime.mkdir(parents=True, mode=0o700, exist_ok=True)
    guest.socket.unlink(missing_ok=True)
    # Linked: connecting goes through links, and QEMU's own file stays where its users look.
    guest.socket.symlink_to(socket)
    try:
        yield
    except BaseException:
        shutil.rmtree(guest.runtime, ignore_errors=True)
        raise


async def _examine(
    guest: Guest, found: Found, ram_id: str, memory: Memory, machine: Machine
) -> tuple[GuestConfig, Successor]:
    """Ask the running QEMU, and decide how the next one is started.

    :raises PkernfsError: it can't be taken along.
    """
    try:
        session_of = monitor(guest, _GREETING_S)
        session = await session_of.__aenter__()
    except PkernfsError as error:
        raise PkernfsError(error.what, MONITOR_HINT) from error
    try:
        version = await _version(session)
        reason = await why_not_saved(session)
        if reason is not None:
            raise NotAdoptable(f"QEMU says: {reason}", "remove that device before")
        await _check_devices(session, found.arguments)
        await _keep_data(session, ram_id)
    finally:
        await session_of.__aexit__(None, None, None)
    if process.version_tuple(version) < process.MIN_VERSION:
        raise NotAdoptable(
            f"its QEMU is version {version}, which can't save a guest for an update",
            f"it takes {'.'.join(map(str, process.MIN_VERSION))} or newer",
        )
    kind = command.last_value(found.arguments, "machine", "M") or "pc"
    machine_type = process.versioned_machine(found.program, kind).partition(",")[0]
    about = Circumstances(
        ram_id=ram_id,
        ram=str(guest.ram),
        machine=machine_type,
        runtime=str(guest.runtime),
        taps=found.taps,
        files=found.files,
        user=f"{found.uid}:{found.gid}" if found.uid else "",
        version=version,
    )
    next_start = adopt_arguments.successor(found.arguments, about)
    if not struct_pages(machine):
        command.check_direct_io(next_start.arguments)
    check_files(next_start.arguments, found.directory)
    config = GuestConfig(
        name=guest.name,
        ram_bytes=memory.size,
        qemu=str(found.program),
        qemu_version=version,
        machine=machine_type,
        arguments=next_start.arguments,
        directory=str(found.directory),
        ram_id=ram_id,
    )
    return config, next_start


#: What to do about a monitor that is in use.
MONITOR_HINT = (
    "a QMP socket serves one client: give QEMU a second one, also while it runs (QEMU 11.1): "
    "chardev-add, then object-add qom-type=monitor-qmp; of a libvirt domain: --libvirt DOMAIN"
)


async def _version(session: Monitor) -> str:
    version = (await session.execute("query-version"))["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


async def _keep_data(session: Monitor, ram_id: str) -> None:
    """Have QEMU leave the memory's file as it is when it ends: discard-data=on empties it.

    The property can be set at any time (backends/hostmem-file.c); it is looked at when the
    object goes.

    :raises NotAdoptable: QEMU does not do it.
    """
    where = {"path": f"/objects/{ram_id}", "property": "discard-data"}
    try:
        if await session.execute("qom-get", where) is False:
            return
        await session.execute("qom-set", {**where, "value": False})
        kept = await session.execute("qom-get", where) is False
    except PkernfsError as error:
        raise NotAdoptable(f"it may empty its memory when it ends ({error.what})", _KEEP) from error
    if not kept:
        raise NotAdoptable("it empties its memory when it ends, whatever it is told", _KEEP)


_KEEP = "start the guest without discard-data=on in -object memory-backend-file"


async def _check_devices(session: Monitor, arguments: Sequence[str]) -> None:
    """Refuse devices that were plugged in or out since: the next QEMU would not have the same.

    :raises NotAdoptable: names one.
    """
    answer = await session.execute("qom-list", {"path": "/machine/peripheral"})
    now = {item["name"] for item in answer if item["type"].startswith("child<")}
    named = {o.properties().text("id") for o in parse(arguments) if o.name == "device"} - {""}
    for name in sorted(now - named):
        raise NotAdoptable(
            f"device {name} was plugged in while it ran", "unplug it, or start the guest with it"
        )
    for name in sorted(named - now):
        raise NotAdoptable(
            f"device {name} was unplugged while it ran", "start the guest without it"
        )


def check_files(arguments: Sequence[str], directory: Path) -> None:
    """Make sure that the files which the next QEMU opens are there.

    :param directory: its working directory. That of a QEMU with -daemonize is / and says
        nothing of the one that relative paths were meant from.
    :raises NotAdoptable: one is not there.
    """
    for option in parse(arguments):
        if option.name in ("kernel", "initrd", "cdrom", "hda", "hdb", "bios", "readconfig", ""):
            names = [option.value or ""]
        elif option.name in ("drive", "blockdev"):
            properties = option.properties()
            names = [properties.text("file"), properties.text("filename")]
        else:
            continue
        for name in names:
            # A node of another option, or a protocol: nothing to look for here.
            if "/" in name and ":" not in name and not (directory / name).exists():
                raise NotAdoptable(
                    f"{option} names a file that is not there (from {directory})",
                    "start QEMU with absolute paths",
                )


def _take(guest: Guest, found: Found, config: GuestConfig, ram: Path, machine: Machine) -> None:
    """Make the guest one of this host's.

    :raises PkernfsError: no room, or the guest has ended; nothing was changed then.
    """
    _allocate(ram, config.ram_bytes)
    guest.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A QEMU that is not root saves its state there by itself.
    os.chown(guest.directory, found.uid, found.gid)
    ram.rename(guest.ram)
    try:
        guest.write_config(config)
        boots.runs_here(guest, machine)
        sync_directory(guest.directory.parent)
        began = start_time(found.pid)
        if began is None:
            raise PkernfsError(f"guest {guest.name} has ended meanwhile")
        (guest.runtime / "pid").write_text(f"{found.pid} {began}\n", encoding="ascii")
    except BaseException:
        guest.ram.rename(ram)
        shutil.rmtree(guest.directory, ignore_errors=True)
        raise


def _allocate(ram: Path, size: int) -> None:
    """Have the store keep room for all of the guest's memory.

    Else a guest that touches a new page when the store is full would be ended by SIGBUS.
    """
    fd = os.open(ram, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        raise PkernfsError(
            f"the store has no room for all of the guest's memory: {error.strerror}",
            "stop another guest, or remove its files: pkernfs vm stop NAME --delete",
        ) from error
    finally:
        os.close(fd)
