# SPDX-License-Identifier: GPL-2.0-only
"""What a QEMU has, asked of itself: disks, devices, objects, processors, memory.

A command line says what a QEMU began with. Disks change after that (a live snapshot, a mirror
that was pivoted to, another medium), devices come and go, and files are replaced. Nothing is
changed by asking.

Not asked: monitors and character devices by themselves, which are their user's and not the
guest's; a device says which one it is connected to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pkernfs.errors import PkernfsError
from pkernfs.vmm import processor
from pkernfs.vmm.monitor import Monitor
from pkernfs.vmm.processor import Processor

#: Properties of a device that say where it is and what is behind it.
_PROPERTIES = ("parent_bus", "addr", "port", "nr", "lun", "scsi-id", "mac", "serial", "wwn")
_BEHIND = ("netdev", "chardev", "iothread", "memdev", "rng", "fsdev", "tpmdev", "audiodev")
#: Objects that are not the guest's: monitors, and what only others are opened with.
_NOT_THE_GUESTS = ("monitor-", "secret", "tls-creds-", "tls-cipher-suites", "authz-")
#: Limits of a disk that may be set while it is in use (block_set_io_throttle).
_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr", "detect_zeroes", "group")
_IMAGE_FILES = ("file", "host_device", "host_cdrom")
#: Name, page size, offset, used and total size of a block (ram_block_format() in
#: system/physmem.c).
_BLOCK = re.compile(r"^\s*(\S.*?)\s+\d+ [KMG]iB\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)")


class Image(NamedTuple):
    """One image of a disk's chain: QEMU's driver for it, and its file."""

    driver: str
    file: str


@dataclass(frozen=True)
class Disk:
    """A disk or drive.

    :ivar images: what is in it, the uppermost first, then what that is based on; empty: no
        medium.
    :ivar limits: by their names in QMP.
    """

    images: tuple[Image, ...]
    read_only: bool = False
    limits: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Device:
    """A device that was given, not part of the machine type.

    :ivar name: its id; empty when it has none.
    :ivar kind: QEMU's type.
    :ivar properties: name and value.
    """

    name: str
    kind: str
    properties: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"device {self.name} ({self.kind})" if self.name else f"device {self.kind}"


class Block(NamedTuple):
    """A piece of memory that QEMU saves by its name; bytes in use, and bytes at most."""

    used: int
    total: int


@dataclass(frozen=True)
class Contents:
    """What a QEMU has.

    :ivar version: of its program.
    :ivar disks: by name, or by their device's id.
    :ivar jobs: what it does on disks: kind and name.
    :ivar devices: those that were given.
    :ivar objects: type by id.
    :ivar cpus: how many processors the guest has.
    :ivar processor: what they are like.
    :ivar memory: size of plugged memory by id.
    :ivar blocks: its memory by name.
    :ivar files: image files that it has open, by the path that it knows them by.
    """

    version: tuple[int, ...] = ()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    jobs: tuple[tuple[str, str], ...] = ()
    devices: tuple[Device, ...] = ()
    objects: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 0
    processor: Processor = field(default_factory=Processor)
    memory: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    files: tuple[str, ...] = ()


async def ask(session: Monitor) -> Contents:
    """Ask a QEMU what it has; nothing is changed.

    :raises PkernfsError: it does not answer.
    """
    said = (await session.execute("query-version"))["qemu"]
    version = (said["major"], said["minor"], said["micro"])
    cpus = await session.execute("query-cpus-fast")
    nodes = await session.execute("query-named-block-nodes", {"flat": True})
    blocks = await session.execute("x-query-ramblock")
    return Contents(
        version=version,
        disks=read_disks(await session.execute("query-block")),
        jobs=tuple(
            (str(job["type"]), str(job["device"]))
            for job in await session.execute("query-block-jobs")
        ),
        devices=tuple([device async for device in _devices(session)]),
        objects={
            name: kind
            for name, kind in await _children(session, "/objects")
            if not kind.startswith(_NOT_THE_GUESTS)
        },
        cpus=len(cpus),
        processor=await _processor(session, version, cpus),
        memory=read_memory(await session.execute("query-memory-devices")),
        blocks=read_blocks(blocks["human-readable-text"]),
        files=tuple(sorted({str(node["file"]) for node in nodes if node["drv"] in _IMAGE_FILES})),
    )


async def _processor(
    session: Monitor, version: tuple[int, ...], cpus: Sequence[Mapping[str, Any]]
) -> Processor:
    return await processor.ask(session, version, cpus[0]["qom-path"]) if cpus else Processor()


def read_disks(answer: Sequence[Mapping[str, Any]]) -> dict[str, Disk]:
    """Read the answer of ``query-block``."""
    found = {}
    for entry in answer:
        name = str(entry["device"] or entry.get("qdev", ""))
        medium = entry.get("inserted")
        if medium is None:
            found[name] = Disk(())
            continue
        limits = {limit: medium[limit] for limit in _LIMITS if limit in medium}
        found[name] = Disk(tuple(_images(medium)), bool(medium["ro"]), limits)
    return found


def _images(medium: Mapping[str, Any]) -> Iterator[Image]:
    yield Image(str(medium["drv"]), str(medium["file"]))
    below = medium["image"].get("backing-image")
    while below is not None:
        yield Image(str(below.get("format", "")), str(below["filename"]))
        below = below.get("backing-image")


def read_memory(answer: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Read the answer of ``query-memory-devices``."""
    parts = [entry["data"] for entry in answer]
    return {
        str(part.get("id") or part.get("memdev", "")): int(part.get("size", 0)) for part in parts
    }


def read_blocks(table: str) -> dict[str, Block]:
    """Read the answer of ``x-query-ramblock``."""
    matches = filter(None, map(_BLOCK.match, table.splitlines()))
    return {match[1]: Block(int(match[2], 16), int(match[3], 16)) for match in matches}


async def _children(session: Monitor, path: str) -> list[tuple[str, str]]:
    """Names and types of the objects below a path."""
    found = []
    for entry in await session.execute("qom-list", {"path": path}):
        match = re.fullmatch(r"child<(.*)>", entry["type"])
        if match is not None:
            found.append((str(entry["name"]), match[1]))
    return found


async def _devices(session: Monitor) -> AsyncIterator[Device]:
    for home, named in (("/machine/peripheral", True), ("/machine/peripheral-anon", False)):
        for name, kind in await _children(session, home):
            properties = await _properties(session, f"{home}/{name}")
            yield Device(name if named else "", kind, properties)


async def _properties(session: Monitor, path: str) -> tuple[tuple[str, str], ...]:
    there = {entry["name"] for entry in await session.execute("qom-list", {"path": path})}
    found = []
    for name in (*_PROPERTIES, *_BEHIND):
        if name in there:
            value = await session.execute("qom-get", {"path": path, "property": name})
            found.append((name, str(value)))
    return tuple(found)


def opened(pid: int) -> set[tuple[str, int, int]]:
    """Which files and block devices a process has open, see :func:`identity`.

    :raises PkernfsError: that can't be seen.
    """
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(identity(link.stat()))
            except FileNotFoundError:  # closed meanwhile
                continue
    except OSError as error:
        raise PkernfsError(f"can't see the files of process {pid}: {error.strerror}") from error
    return found


def identity(state: os.stat_result) -> tuple[str, int, int]:
    """Tells a file from all others, and a block device by whatever name it has."""
    if stat.S_ISBLK(state.st_mode):
        return ("device", state.st_rdev, 0)
    return ("file", state.st_dev, state.st_ino)
