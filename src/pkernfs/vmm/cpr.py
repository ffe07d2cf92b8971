# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's CPR state: the named descriptors that one QEMU hands to the next.

The stream of ``cpr-transfer`` (docs/devel/migration/CPR.rst, migration/cpr.c of QEMU 11.1),
numbers in big endian::

    magic 0x51435052, version 1
    for each descriptor: 1, length of the name with its NUL (4 bytes), the name, an id
        (4 bytes), one byte that carries the descriptor (SCM_RIGHTS, unix(7))
    0
    subsections

Nothing in it is needed to understand what the descriptors are: their names say it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from pkernfs.errors import PkernfsError

MAGIC: Final = b"QCPR"
VERSION: Final = 1
#: Carries a descriptor (qemu_file_put_fd() in migration/qemu-file.c).
CARRIER: Final = b" "
#: An iommufd user's devices (hw/vfio/cpr-iommufd.c); none, because pkernfs uses containers.
_NO_IOMMUFD: Final = b"\x05\x15CprState/vfio devices" + struct.pack(">IB", 1, 0)
_LONGEST_NAME: Final = 4096


class Kind(enum.Enum):
    """What a descriptor is."""

    MEMORY = "memory"
    CONTAINER = "container"
    GROUP = "group"
    DEVICE = "device"
    EVENT = "event"


#: Events of a device by the end of their name (hw/vfio/pci.c).
VECTOR, KVM_VECTOR = "_interrupt", "_kvm_interrupt"
INTX, INTX_UNMASK = "_intx-interrupt", "_intx-unmask"
ERROR, REQUEST = "_err_notifier", "_req_notifier"
EVENTS: Final = (KVM_VECTOR, VECTOR, INTX, INTX_UNMASK, ERROR, REQUEST)


@dataclass(frozen=True)
class Descriptor:
    """A descriptor as the stream names it.

    :ivar number: its id: an IOMMU group's number, an interrupt vector's, else 0.
    """

    name: str
    number: int

    def event_of(self, bdf: str) -> str | None:
        """Which of EVENTS of a device this is; None for anything else."""
        return next((end for end in EVENTS if self.name == bdf + end), None)


@dataclass(frozen=True)
class CprState:
    """A whole stream.

    :ivar tail: what follows the list, as it was.
    """

    descriptors: tuple[Descriptor, ...]
    tail: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        part = self._data[self.at : self.at + size]
        if len(part) != size:
            raise PkernfsError(f"QEMU's CPR state ends at byte {len(self._data)}, too early")
        self.at += size
        return part

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)


def _descriptor(reader: _Reader) -> Descriptor:
    length = reader.number()
    if not 1 < length <= _LONGEST_NAME:
        raise PkernfsError(f"QEMU's CPR state has a name of {length} bytes")
    raw = reader.take(length)
    try:
        name = raw[:-1].decode()
    except UnicodeDecodeError:
        name = ""
    if raw[-1:] != b"\0" or not name or "\0" in name:
        raise PkernfsError(f"QEMU's CPR state has a bad name at byte {reader.at - length}")
    found = Descriptor(name, reader.number())
    if reader.take(1) != CARRIER:
        raise PkernfsError(f"QEMU's CPR state does not pass {name} as this version knows it")
    return found


def parse(data: bytes) -> CprState:
    """Read a stream.

    :raises PkernfsError: it is none, or has something that this version does not know.
    """
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise PkernfsError(f"this is no CPR state of QEMU: it begins with {data[:4].hex()}")
    version = reader.number()
    if version != VERSION:
        raise PkernfsError(
            f"QEMU's CPR state has version {version}, this pkernfs knows version {VERSION}",
            "update pkernfs, or take the QEMU from before",
        )
    found = []
    while (more := reader.take(1)) == b"\x01":
        found.append(_descriptor(reader))
    tail = data[reader.at :]
    if more != b"\0" or tail not in (b"", _NO_IOMMUFD):
        raise PkernfsError(
            f"QEMU's CPR state has a part that this version does not know: {tail[:40].hex()}"
        )
    return CprState(tuple(found), more + tail)


def pieces(state: CprState) -> list[bytes]:
    """What goes before each descriptor's carrier, in order; last, what follows the last."""
    head = MAGIC + struct.pack(">i", VERSION)
    parts = []
    for descriptor in state.descriptors:
        name = descriptor.name.encode() + b"\0"
        entry = struct.pack(">Bi", 1, len(name)) + name + struct.pack(">i", descriptor.number)
        parts.append(head + entry)
        head = b""
    return [*parts, head + state.tail]


def build(state: CprState) -> bytes:
    """The stream, without the descriptors that go along."""
    *parts, last = pieces(state)
    return b"".join(part + CARRIER for part in parts) + last


def kind_of(descriptor: Descriptor, target: str, devices: Sequence[str]) -> Kind:
    """What a descriptor is, by its name and by what it leads to.

    :param target: where the kernel says it leads (/proc/self/fd).
    :param devices: PCI names of the guest's passed-through devices.
    :raises PkernfsError: it is something that can't be made again in the next kernel.
    """
    if descriptor.name == "vfio_group" and target.startswith("/dev/vfio/"):
        return Kind.GROUP
    if descriptor.name == "vfio_container_for_group" and target == "/dev/vfio/vfio":
        return Kind.CONTAINER
    if descriptor.name in devices and target == "anon_inode:[vfio-device]":
        return Kind.DEVICE
    if target == "anon_inode:[eventfd]" and any(map(descriptor.event_of, devices)):
        return Kind.EVENT
    if target.startswith("/memfd:"):
        return Kind.MEMORY
    raise PkernfsError(
        f"QEMU passes {descriptor.name} on as {target}, which can't be made again",
        "start the guest without what this belongs to",
    )


def complete(stream: bytes | bytearray) -> bool:
    """Is a migration stream all there?

    Its last part is the description of the stream: 6, a length, JSON
    (qemu_savevm_state_complete_precopy_non_iterable() in migration/savevm.c).
    """
    at = stream.rfind(b"\x06", 0, None)
    while at > 0:
        size = int.from_bytes(stream[at + 1 : at + 5], "big")
        if stream[at + 5 : at + 6] == b"{" and at + 5 + size == len(stream):
            return stream[at - 1 : at] == b"\0" and stream.endswith(b"}")
        at = stream.rfind(b"\x06", 0, at)
    return False


def _channel(kind: str, path: PurePath) -> dict[str, object]:
    address = {"transport": "socket", "type": "unix", "path": str(path)}
    return {"channel-type": kind, "addr": address}


def channels(**paths: PurePath) -> dict[str, object]:
    """The argument of QMP's ``migrate`` and ``migrate-incoming``: sockets by channel."""
    return {"channels": [_channel(kind, path) for kind, path in paths.items()]}
