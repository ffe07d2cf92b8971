# SPDX-License-Identifier: GPL-2.0-only
"""What the store keeps of a guest: all that the next kernel needs to start it again.

::

    STORE/vms/NAME/config.json   this module's GuestConfig
    STORE/vms/NAME/ram           the guest's memory, mapped by QEMU
    STORE/vms/NAME/state         its devices, written by QEMU for an update
    STORE/vms/NAME/saved.json    "state" is complete: the guest waits to be resumed
    STORE/vms/NAME/started.json  the same file, once the guest was let run: "state" is out of date
    STORE/vms/NAME/boot          id of the boot in which the guest runs, or ran last
    STORE/vms/NAME/cpr.*         what else is saved of one with passed-through devices
    RUN/NAME/                    socket, process and log of the running QEMU
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.files import read_json, sync_directory, write_json
from pkernfs.host.machine import DEFAULT_STORE, Machine
from pkernfs.host.stores import stores

CONFIG_SCHEMA = "pkernfs-vm/1"
SAVED_SCHEMA = "pkernfs-saved/1"

#: Id of QEMU's object that is the guest's memory.
RAM_ID = "pkernfs-ram"

#: Short enough for the path of a unix socket (108 bytes, unix(7)), and for a directory.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")


@dataclass(frozen=True)
class Places:
    """Where guests live: in every store of the host, each name once.

    :ivar store: mount point of the first store. The records of updates lie there, and new
        guests unless another store is chosen.
    :ivar run: directory for what ends with the running kernel.
    :ivar others: mount points of the other stores.
    """

    store: Path = DEFAULT_STORE
    run: Path = Path("/run/pkernfs")
    others: tuple[Path, ...] = ()

    @classmethod
    def on(cls, machine: Machine, store: Path = DEFAULT_STORE) -> Places:
        """The places of a host with the regions that it has.

        :param store: mount point of the first store; see :func:`pkernfs.host.stores.stores`.
        :raises PkernfsError: the host's regions can't be read.
        """
        return cls(store, others=tuple(other.point for other in stores(machine, store)[1:]))

    @property
    def stores(self) -> tuple[Path, ...]:
        """Mount points of all stores, the first one first."""
        return (self.store, *self.others)

    def home_of(self, name: str) -> Path:
        """The store that has a guest of this name; the first one if none has."""
        found = (store for store in self.others if vms(store, name).exists())
        return next(found, self.store)

    @property
    def updates(self) -> Path:
        """One directory per update."""
        return self.store / "updates"


def vms(store: Path, name: str = "") -> Path:
    """The directory of a store that has one directory per guest, or that of one guest."""
    return store / "vms" / name


def check_name(name: str) -> str:
    """Return ``name`` if a guest can be called so.

    :raises UsageError: it can't.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} can't be the name of a guest",
            "use up to 48 letters, digits, and _ . - (not first)",
        )
    return name


def _members(kind: type[Any], value: dict[str, Any], path: Path) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    missing = [
        field.name
        for field in fields
        if field.name not in value and field.default is dataclasses.MISSING
    ]
    if missing:
        raise PkernfsError(f"{path} lacks {', '.join(sorted(missing))}")
    members = {field.name: value[field.name] for field in fields if field.name in value}
    wrong = [
        field.name
        for field in fields
        if field.name in members and not _fits(str(field.type), members[field.name])
    ]
    if wrong:
        raise PkernfsError(f"{path} has no proper value for {', '.join(wrong)}")
    return members


def _fits(kind: str, value: object) -> bool:
    """Can a value from JSON be a member of this type, as the classes below write it?"""
    kinds = kind.split(" | ")
    if value is None or isinstance(value, bool):
        return ("None" if value is None else "bool") in kinds
    if isinstance(value, list):
        return "tuple[str, ...]" in kinds and all(isinstance(item, str) for item in value)
    return type(value).__name__ in kinds


@dataclass(frozen=True)
class GuestConfig:
    """Everything needed to start a guest again.

    :ivar ram_bytes: size of its memory.
    :ivar qemu: absolute path of the QEMU binary.
    :ivar qemu_version: version that the guest was started with, e.g. "11.1.3".
    :ivar machine: versioned machine type; an alias could mean another machine next time.
    :ivar arguments: all of QEMU's arguments, but those that belong to one start only.
    :ivar directory: working directory, for relative paths in the arguments.
    :ivar node: NUMA node whose processors run it; None: all of them.
    :ivar priority: guests of a higher one are paused later by an update, and run again earlier.
    :ivar ram_id: id of QEMU's object that is its memory; another one if it was adopted.
    :ivar devices: PCI names of the passed-through devices.
    :ivar processor: value of -cpu for a start that goes on from a saved state; empty: as the
        arguments say. Written by each update (:mod:`pkernfs.vmm.processor`).
    """

    name: str
    ram_bytes: int
    qemu: str
    qemu_version: str
    machine: str
    arguments: tuple[str, ...]
    directory: str
    node: int | None = None
    priority: int = 0
    ram_id: str = RAM_ID
    devices: tuple[str, ...] = ()
    processor: str = ""


@dataclass(frozen=True)
class Saved:
    """The guest's devices are in the file ``state``, its memory is at rest.

    :ivar update: id of the update that saved it.
    :ivar was_running: whether its processors ran when it was paused.
    :ivar state_bytes: size of the file ``state``.
    :ivar fingerprint: of its files, see :mod:`pkernfs.vmm.fingerprint`; empty: none was taken.
    """

    update: str
    was_running: bool
    state_bytes: int
    fingerprint: str = ""


@dataclass(frozen=True)
class Guest:
    """A guest's files; says nothing of whether it exists.

    :ivar home: mount point of the store that it lies in; None: wherever it is found.
    """

    name: str
    places: Places
    home: Path | None = None

    @property
    def store(self) -> Path:
        """Mount point of the store that it lies in."""
        return self.home or self.places.home_of(self.name)

    @property
    def directory(self) -> Path:
        """All that must outlive the kernel."""
        return vms(self.store, self.name)

    @property
    def runtime(self) -> Path:
        """All that ends with the kernel."""
        return self.places.run / self.name

    @property
    def config_file(self) -> Path:
        """See :class:`GuestConfig`."""
        return self.directory / "config.json"

    @property
    def ram(self) -> Path:
        """The guest's memory."""
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        """The guest's devices, as QEMU's migration stream."""
        return self.directory / "state"

    @property
    def saved_file(self) -> Path:
        """See :class:`Saved`."""
        return self.directory / "saved.json"

    @property
    def started_file(self) -> Path:
        """What :attr:`saved_file` becomes; see :meth:`begins_to_run`."""
        return self.directory / "started.json"

    @property
    def boot_file(self) -> Path:
        """See :mod:`pkernfs.vmm.boots`."""
        return self.directory / "boot"

    @property
    def cpr_file(self) -> Path:
        """See :class:`pkernfs.vmm.cpr_saved.Record`; only with passed-through devices."""
        return self.directory / "cpr.json"

    @property
    def cpr_memory(self) -> Path:
        """Content of QEMU's own memory; only with passed-through devices."""
        return self.directory / "cpr.mem"

    @property
    def cpr_socket(self) -> Path:
        """Where a new QEMU waits for the devices of the old one."""
        return self.runtime / "cpr.sock"

    @property
    def socket(self) -> Path:
        """QMP socket of the running QEMU."""
        return self.runtime / "qmp.sock"

    @property
    def log(self) -> Path:
        """What QEMU printed."""
        return self.runtime / "qemu.log"

    def exists(self) -> bool:
        """Is there such a guest in the store, running or not?"""
        return self.config_file.exists()

    def config(self) -> GuestConfig:
        """Read how to start the guest.

        :raises PkernfsError: no such guest, or its file can't be used.
        """
        if not self.exists():
            raise PkernfsError(f"there is no guest {self.name}", "pkernfs vm list names them")
        value = read_json(self.config_file, CONFIG_SCHEMA)
        members = _members(GuestConfig, value, self.config_file)
        for name in {"arguments", "devices"} & members.keys():
            members[name] = tuple(members[name])
        return GuestConfig(**members)

    def write_config(self, config: GuestConfig) -> None:
        """Keep how to start the guest."""
        write_json(self.config_file, {"schema": CONFIG_SCHEMA, **dataclasses.asdict(config)})

    def saved(self) -> Saved | None:
        """What an update saved; None when the guest does not wait to be resumed.

        :raises PkernfsError: the file can't be used.
        """
        return _read_saved(self.saved_file)

    def started(self) -> Saved | None:
        """What the guest was let run from; None when it runs for good, or waits to be resumed.

        :raises PkernfsError: the file can't be used.
        """
        return _read_saved(self.started_file)

    def write_saved(self, saved: Saved) -> None:
        """Declare the file ``state`` complete."""
        write_json(self.saved_file, {"schema": SAVED_SCHEMA, **dataclasses.asdict(saved)})

    def begins_to_run(self) -> None:
        """Keep what an update saved from being loaded again: its processors are let run next.

        From their first instruction on the memory is newer than the saved state, which loaded
        over it would be a guest that never was. So this is the last step before that one; who
        finds the guest's QEMU standing still after it, lets it run.
        """
        with contextlib.suppress(FileNotFoundError):
            self.saved_file.replace(self.started_file)

    def waits_again(self) -> None:
        """Take :meth:`begins_to_run` back: its processors certainly did not run."""
        with contextlib.suppress(FileNotFoundError):
            self.started_file.replace(self.saved_file)

    def forget_saved(self) -> None:
        """Remove what an update saved: the guest runs again."""
        self.saved_file.unlink(missing_ok=True)
        self.started_file.unlink(missing_ok=True)
        sync_directory(self.directory)
        for path in (self.state, self.cpr_file, self.cpr_memory):
            path.unlink(missing_ok=True)


def _read_saved(file: Path) -> Saved | None:
    if not file.exists():
        return None
    return Saved(**_members(Saved, read_json(file, SAVED_SCHEMA), file))


def _guests_with(places: Places, file: str) -> Iterator[Guest]:
    found = ((path, store) for store in places.stores for path in vms(store).glob(f"*/{file}"))
    for path, store in sorted(found, key=lambda item: item[0].parent.name):
        yield Guest(path.parent.name, places, store)


def all_guests(places: Places) -> Iterator[Guest]:
    """Every guest of every store, by name."""
    return _guests_with(places, "config.json")


def saved_guests(places: Places) -> Iterator[Guest]:
    """Every guest that an update saved and that waits to be resumed, by name."""
    return _guests_with(places, "saved.json")


def started_guests(places: Places) -> Iterator[Guest]:
    """Every guest that was let run and of which nobody has noted that it does, by name."""
    return _guests_with(places, "started.json")
