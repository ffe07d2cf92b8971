# SPDX-License-Identifier: GPL-2.0-only
"""After the kexec: be the old QEMU for a new one, and hand over what was taken down.

QEMU, started to wait for a CPR state, takes every descriptor as it comes and sets nothing
up: not the container, not the mappings (it only gives each its new address), not
interrupts, not the device. So all that is done here, while QEMU starts.

The device is opened *before* memory is mapped: the module then finds that the new tables lack
what the inherited ones have, and leaves the device on the inherited ones until "adopt". That is
said once QEMU has taken everything. Up to there a failure costs nothing: the
device stays inherited, and all of it can be tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.devices import Control
from pkernfs.vfio import bind, uapi
from pkernfs.vfio.container import Container
from pkernfs.vfio.device import Device
from pkernfs.vfio.group import Group
from pkernfs.vfio.interrupts import eventfd_trigger
from pkernfs.vfio.ioctl import call
from pkernfs.vfio.memory import Memory
from pkernfs.vmm import cpr, cpr_memory, cpr_saved
from pkernfs.vmm.config import RAM_ID, Guest
from pkernfs.vmm.cpr import CprState, Descriptor, Kind
from pkernfs.vmm.cpr_saved import COMMAND, PassedDevice, Record
from pkernfs.vmm.process import log_tail

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Handed:
    """What was made again and handed to QEMU.

    :ivar devices: the open devices, with the command register that each had.
    :ivar events: descriptors of the interrupts in use.
    """

    record: Record
    devices: tuple[tuple[Device, int], ...]
    events: tuple[int, ...]

    def settle(self) -> None:
        """QEMU has taken everything: switch the devices over to it.

        QEMU resets a machine that it starts, a waiting one too, and for a device without
        function level reset that begins with clearing its command register
        (vfio_device_reset_handler() in hw/vfio/device.c).

        :raises PkernfsError: the mappings differ from the inherited ones.
        """
        for device, command in self.devices:
            place = device.region_info(uapi.VFIO_PCI_CONFIG_REGION_INDEX).offset + COMMAND
            os.pwrite(device.fd, command.to_bytes(2, "little"), place)
        for device, _ in self.devices:
            Control().adopt(device.bdf)

    def raise_interrupts(self) -> None:
        """Raise each interrupt once: one that came while nobody listened is lost."""
        for event in self.events:
            os.eventfd_write(event, 1)


def check_inherited(devices: Sequence[str]) -> None:
    """Make sure that all devices came along.

    :raises PkernfsError: one did not, or it has been switched over already.
    """
    states = {device.bdf: device for device in Control().devices()}
    for bdf in devices:
        device = states.get(bdf)
        if device is None:
            raise PkernfsError(
                f"{bdf} did not come along into this kernel",
                "the kernel log says why (pkernfs_dma); it has to be loaded before other drivers",
            )
        if device.state != "inherited":
            raise PkernfsError(
                f"{bdf} is {device.state}: {device.reason or 'it was taken over before'}",
                "the guest can't go on with a device that was stopped: "
                "pkernfs vm stop NAME --force, then start it again",
            )


class _Maker:
    """Makes the descriptors again; they are closed with ``undo``."""

    def __init__(self, guest: Guest, record: Record, undo: contextlib.ExitStack) -> None:
        self._guest = guest
        self._record = record
        self._undo = undo
        self.events: dict[Descriptor, int] = {}
        self.in_use: list[int] = []
        self.memory: dict[str, int] = {}
        self.devices: dict[str, Device] = {}
        self.groups: dict[int, Group] = {}

    def make(self) -> None:
        """Everything, in an order in which the devices keep working."""
        self._make_memory()
        for passed in self._record.devices:
            bind.bind(passed.bdf)
        self.container = self._undo.enter_context(Container())
        for passed in self._record.devices:
            self._open(passed)
        self._map()
        for passed in self._record.devices:
            self._attach_events(passed)
        flags = uapi.VFIO_DMA_UNMAP_FLAG_ALL | uapi.VFIO_DMA_UNMAP_FLAG_VADDR
        self.container.unmap_dma(0, 0, flags=flags)

    def descriptor(self, index: int) -> tuple[Descriptor, int]:
        """Descriptor ``index`` of the record as this kernel numbers it, and what it leads to."""
        named, kind = self._record.state.descriptors[index], self._record.kinds[index]
        if kind is Kind.MEMORY:
            return named, self.memory[named.name]
        if kind is Kind.EVENT:
            return named, self.events[named]
        if kind is Kind.DEVICE:
            return named, self.devices[named.name].fd
        group = self.groups[named.number]
        fd = self.container.fd if kind is Kind.CONTAINER else group.fd
        return Descriptor(named.name, group.number), fd

    def _make_memory(self) -> None:
        with self._guest.cpr_memory.open("rb") as file:
            for block in self._record.blocks:
                fd = os.memfd_create(block.name.replace("/", "_")[:200], os.MFD_CLOEXEC)
                self._undo.callback(os.close, fd)
                os.ftruncate(fd, block.size)
                for at in range(0, block.size, _CHUNK):
                    size = min(_CHUNK, block.size - at)
                    os.pwrite(fd, os.pread(file.fileno(), size, block.offset + at), at)
                self.memory[block.name] = fd

    def _open(self, passed: PassedDevice) -> None:
        group = self._undo.enter_context(Group.of(passed.bdf))
        group.set_container(self.container)
        if not self.groups:
            self.container.set_iommu()
        self.groups[passed.group] = group
        self.devices[passed.bdf] = self._undo.enter_context(group.open_device(passed.bdf))

    def _map(self) -> None:
        mapped: dict[str, Memory] = {}
        for piece in self._record.pieces:
            owner = cpr_memory.owner(piece, list(self.memory))
            if owner not in mapped:
                own = owner != RAM_ID
                path = Path(f"/proc/self/fd/{self.memory[owner]}") if own else self._guest.ram
                mapped[owner] = self._undo.enter_context(Memory.of_file(path))
            address = mapped[owner].address + piece.offset
            self.container.map_dma(address, piece.iova, piece.size, write=piece.writable)

    def _attach_events(self, passed: PassedDevice) -> None:
        found: dict[str, dict[int, int]] = {}
        for descriptor in self._record.state.descriptors:
            kind = descriptor.event_of(passed.bdf)
            if kind is None:
                continue
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._undo.callback(os.close, event)
            self.events[descriptor] = event
            found.setdefault(kind, {})[descriptor.number] = event
        for index, argument in requests(found, passed.interrupts):
            device = self.devices[passed.bdf]
            call(device.fd, uapi.VFIO_DEVICE_SET_IRQS, argument, f"interrupt {index}")
        self.in_use += [event for event in vectors(found) if event >= 0]


def vectors(events: dict[str, dict[int, int]]) -> list[int]:
    """The event of each interrupt vector, -1 for one that is off.

    KVM's where there is one, as vfio_enable_vectors() in hw/vfio/pci.c has it.
    """
    found = {**events.get(cpr.VECTOR, {}), **events.get(cpr.KVM_VECTOR, {})}
    return [found.get(number, -1) for number in range(max(found, default=-1) + 1)]


def requests(events: dict[str, dict[int, int]], mode: str) -> Iterator[tuple[int, bytearray]]:
    """Interrupt indices of a device, and what VFIO_DEVICE_SET_IRQS has to be told for each.

    :param events: events by what they are for (cpr.EVENTS) and number.
    :param mode: see :class:`PassedDevice`.
    """
    if found := vectors(events):
        msix = mode == "msix"
        index = uapi.VFIO_PCI_MSIX_IRQ_INDEX if msix else uapi.VFIO_PCI_MSI_IRQ_INDEX
        yield index, eventfd_trigger(index, found)
    for kind, index in (
        (cpr.ERROR, uapi.VFIO_PCI_ERR_IRQ_INDEX),
        (cpr.REQUEST, uapi.VFIO_PCI_REQ_IRQ_INDEX),
    ):
        if kind in events:
            yield index, eventfd_trigger(index, [events[kind][0]])


def _send(guest: Guest, record: Record, maker: _Maker) -> None:
    """Hand the descriptors to the QEMU that waits for them."""
    pairs = [maker.descriptor(index) for index in range(len(record.kinds))]
    state = CprState(tuple(named for named, _ in pairs), record.state.tail)
    *parts, last = cpr.pieces(state)
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(guest.cpr_socket))
        for part, (_, fd) in zip(parts, pairs, strict=True):
            end.sendall(part)
            socket.send_fds(end, [cpr.CARRIER], [fd])
        end.sendall(last)


def _hand_in(guest: Guest, undo: contextlib.ExitStack) -> Handed:
    record = cpr_saved.read(guest)
    check_inherited([passed.bdf for passed in record.devices])
    maker = _Maker(guest, record, undo)
    maker.make()
    try:
        _send(guest, record, maker)
    except OSError as error:
        said = log_tail(guest) or str(error)
        raise PkernfsError(f"QEMU does not take the devices over: {said}") from error
    devices = tuple((maker.devices[passed.bdf], passed.command) for passed in record.devices)
    return Handed(record, devices, tuple(maker.in_use))


@contextlib.asynccontextmanager
async def handed_in(guest: Guest) -> AsyncIterator[Handed]:
    """Have a QEMU that was started to wait for them take the guest's devices over.

    Within the block what was handed over stays open here as well.

    :raises PkernfsError: it can't be done; the devices stay inherited.
    """
    with contextlib.ExitStack() as undo:
        try:
            handed = await asyncio.to_thread(_hand_in, guest, undo)
        except PkernfsError as error:
            hint = error.hint or "its files and devices are kept: pkernfs resume"
            raise PkernfsError(f"guest {guest.name}: {error.what}", hint) from error
        except OSError as error:
            raise PkernfsError(
                f"guest {guest.name}: its devices can't be set up: {error}",
                "its files and devices are kept: pkernfs resume",
            ) from error
        yield handed


async def feed(path: Path, stream: bytes) -> None:
    """Send a migration stream to a QEMU that listens, and hear it out.

    A QEMU that hangs up says why on its monitor.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(ConnectionError):
        writer.write(stream)
        await writer.drain()
        while await reader.read(_CHUNK):
            pass
    writer.close()
