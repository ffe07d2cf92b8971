# SPDX-License-Identifier: GPL-2.0-only
"""What the store keeps of a guest with passed-through devices, beside its state.

::

    STORE/vms/NAME/state      QEMU's migration stream, as of any guest
    STORE/vms/NAME/cpr.json   this module's Record
    STORE/vms/NAME/cpr.mem    content of QEMU's own memory, block after block
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.files import read_json, write_json
from pkernfs.vmm.config import Guest
from pkernfs.vmm.cpr import CprState, Descriptor, Kind
from pkernfs.vmm.cpr_memory import Piece

RECORD_SCHEMA = "pkernfs-cpr/1"
#: Where the command register lies in config space, two bytes (PCI_COMMAND).
COMMAND = 4


@dataclass(frozen=True)
class Block:
    """QEMU's own memory.

    :ivar name: as the CPR state calls it.
    :ivar offset: where in cpr.mem its content begins, bytes.
    :ivar size: bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class PassedDevice:
    """A passed-through device.

    :ivar bdf: its PCI name.
    :ivar group: number of its IOMMU group, in the kernel that it was recorded in.
    :ivar command: its PCI command register, as its user sees it.
    :ivar interrupts: "msix", "msi", or "" for INTx or none.
    """

    bdf: str
    group: int
    command: int
    interrupts: str


@dataclass(frozen=True)
class Record:
    """All that it takes to be the old QEMU for a new one.

    :ivar qemu_version: of the QEMU that wrote the streams.
    :ivar state: what it handed over.
    :ivar kinds: what each descriptor is, in the order of ``state``.
    :ivar pieces: the memory that devices see.
    :ivar stream_crc: CRC-32 of the file ``state``.
    :ivar memory_crc: CRC-32 of ``cpr.mem``.
    """

    qemu_version: str
    state: CprState
    kinds: tuple[Kind, ...]
    pieces: tuple[Piece, ...]
    blocks: tuple[Block, ...]
    devices: tuple[PassedDevice, ...]
    stream_crc: int
    memory_crc: int


def crc(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return value


def to_json(record: Record) -> dict[str, Any]:
    """The record as it is kept."""
    value = dataclasses.asdict(record)
    value["state"] = {
        "descriptors": [
            {"name": descriptor.name, "number": descriptor.number, "kind": kind.value}
            for descriptor, kind in zip(record.state.descriptors, record.kinds, strict=True)
        ],
        "tail": record.state.tail.hex(),
    }
    del value["kinds"]
    return {"schema": RECORD_SCHEMA, **value}


def from_json(value: dict[str, Any]) -> Record:
    """Read a record.

    :raises KeyError, TypeError, ValueError: it is none.
    """
    listed = value["state"]["descriptors"]
    return Record(
        qemu_version=value["qemu_version"],
        state=CprState(
            tuple(Descriptor(entry["name"], entry["number"]) for entry in listed),
            bytes.fromhex(value["state"]["tail"]),
        ),
        kinds=tuple(Kind(entry["kind"]) for entry in listed),
        pieces=tuple(Piece(**piece) for piece in value["pieces"]),
        blocks=tuple(Block(**block) for block in value["blocks"]),
        devices=tuple(PassedDevice(**device) for device in value["devices"]),
        stream_crc=value["stream_crc"],
        memory_crc=value["memory_crc"],
    )


def write(guest: Guest, record: Record) -> None:
    """Keep a record; the file with the memory is there already."""
    write_json(guest.cpr_file, to_json(record))


def read(guest: Guest) -> Record:
    """Read a guest's record, and check that the files are those that it speaks of.

    :raises PkernfsError: a file is missing or not what was written.
    """
    value = read_json(guest.cpr_file, RECORD_SCHEMA)
    try:
        record = from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise PkernfsError(f"{guest.cpr_file} is incomplete: {error}") from error
    for path, expected in (
        (guest.state, record.stream_crc),
        (guest.cpr_memory, record.memory_crc),
    ):
        if not path.exists() or crc(path) != expected:
            raise PkernfsError(f"guest {guest.name}: {path} is not what was written")
    return record
