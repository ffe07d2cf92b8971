# SPDX-License-Identifier: GPL-2.0-only
"""Devices of a virtual host by name, as ``HostConfig.devices`` and ``--device`` have them.

Each has a place of its own, so several go together, also with those of pkernfs.lab.devices. All
network cards are on one wire: what one sends, the others receive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import UsageError

_DISK_BYTES = 64 << 20
#: pkernfs.lab.passthrough has a hub of its own, 0.
_HUB = 1


@dataclass(frozen=True)
class Hardware:
    """A device that a host can have.

    :ivar slot: where on the root bus it is, or the root port above it.
    :ivar model: what QEMU calls it, with its properties.
    :ivar port: it is behind a PCIe root port; QEMU shows some capabilities only there.
    :ivar wire: it is a network card.
    :ivar disk: it has a disk, see :func:`disk`.
    :ivar beside: QEMU's name of a device that is plugged into it.
    """

    slot: int
    model: str
    port: bool = False
    wire: bool = False
    disk: bool = False
    beside: str = ""

    @property
    def root(self) -> str:
        """PCI name of the device, or of the port above it: firmware numbers the bus there."""
        return f"0000:00:{self.slot:02x}.0"


#: By name. Virtual functions of igb are 0x80, 0x82 and so on behind it: 00:1c.0 to 00:1d.6.
HARDWARE = {
    "edu": Hardware(0x14, "edu,dma_mask=0xffffffff"),
    "e1000e": Hardware(0x15, "e1000e", port=True, wire=True),
    "igb": Hardware(0x0C, "igb", wire=True),
    "virtio-net-ats": Hardware(
        0x16, "virtio-net-pci,disable-legacy=on,iommu_platform=on,ats=on", port=True, wire=True
    ),
    "xhci": Hardware(0x12, "qemu-xhci", beside="usb-tablet"),
    "nvme": Hardware(0x13, "nvme,serial=pkernfs", disk=True),
}


def check(names: Sequence[str]) -> None:
    """Can a host have these devices?

    :raises UsageError: one is unknown, or there twice.
    """
    for name in names:
        if name not in HARDWARE:
            raise UsageError(
                f"no device named {name!r} in the lab", f"there are: {', '.join(HARDWARE)}"
            )
        if names.count(name) > 1:
            raise UsageError(f"a host has one {name} at most", "name each device once")


def disk(name: str, home: Path) -> Path:
    """The file behind a device's disk.

    :param home: directory of the host's files.
    """
    return home / f"{name}.disk"


def prepare(names: Sequence[str], home: Path) -> None:
    """Make the files that the devices work on: empty, and sparse."""
    for name in names:
        if HARDWARE[name].disk:
            with disk(name, home).open("wb") as file:
                file.truncate(_DISK_BYTES)


def arguments(names: Sequence[str], home: Path) -> list[str]:
    """QEMU's arguments for them.

    :param home: directory of the host's files.
    """
    return [word for name in names for word in _words(name, HARDWARE[name], home)]


def _words(name: str, device: Hardware, home: Path) -> list[str]:
    words = []
    own = f"{device.model},id={name}"
    if device.wire:
        words += ["-netdev", f"hubport,id={name}-wire,hubid={_HUB}"]
        own += f",netdev={name}-wire"
    if device.disk:
        # unsafe: who dies with the lab needs no flush.
        drive = f"if=none,id={name}-disk,format=raw,file={disk(name, home)},cache=unsafe"
        words += ["-drive", drive]
        own += f",drive={name}-disk"
    place = f"addr={device.slot:#x}"
    if device.port:
        number = f"chassis={device.slot},slot={device.slot}"
        words += ["-device", f"pcie-root-port,id={name}-port,{number},{place}"]
        place = f"bus={name}-port"
    words += ["-device", f"{own},{place}"]
    if device.beside:
        words += ["-device", f"{device.beside},bus={name}.0"]
    return words
