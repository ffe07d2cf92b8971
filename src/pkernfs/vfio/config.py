# SPDX-License-Identifier: GPL-2.0-only
"""PCI config space through VFIO (offsets: PCI Local Bus 3.0, chapter 6; linux/pci_regs.h)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pkernfs.vfio.region import Region

PCI_VENDOR_ID: Final = 0x00
PCI_DEVICE_ID: Final = 0x02
PCI_COMMAND: Final = 0x04
PCI_COMMAND_IO: Final = 0x1
PCI_COMMAND_MEMORY: Final = 0x2
PCI_COMMAND_MASTER: Final = 0x4
PCI_COMMAND_INTX_DISABLE: Final = 0x400
PCI_STATUS: Final = 0x06
PCI_STATUS_CAP_LIST: Final = 0x10
PCI_CAPABILITY_LIST: Final = 0x34

PCI_CAP_ID_PM: Final = 0x01
PCI_CAP_ID_MSI: Final = 0x05
PCI_CAP_ID_EXP: Final = 0x10
PCI_CAP_ID_MSIX: Final = 0x11

#: More capabilities than fit in 192 bytes: a chain that long is a loop.
_MAX_CAPABILITIES: Final = 48


class PciConfig:
    """Named fields of a device's config space."""

    def __init__(self, region: Region) -> None:
        self.region = region

    @property
    def vendor(self) -> int:
        """Vendor id."""
        return self.region.read16(PCI_VENDOR_ID)

    @property
    def device(self) -> int:
        """Device id."""
        return self.region.read16(PCI_DEVICE_ID)

    @property
    def command(self) -> int:
        """Command register."""
        return self.region.read16(PCI_COMMAND)

    @property
    def bus_master(self) -> bool:
        """Whether the device may do DMA (and send MSI)."""
        return bool(self.command & PCI_COMMAND_MASTER)

    def enable(self, bits: int = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER) -> None:
        """Set bits of the command register; nothing is written if they are set already.

        An adopted device must not see a write that it doesn't need.
        """
        command = self.command
        if command & bits != bits:
            self.region.write16(PCI_COMMAND, command | bits)

    def disable(self, bits: int) -> None:
        """Clear bits of the command register."""
        self.region.write16(PCI_COMMAND, self.command & ~bits)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Id and offset of each capability (PCI Local Bus 3.0, section 6.7)."""
        if not self.region.read16(PCI_STATUS) & PCI_STATUS_CAP_LIST:
            return
        offset = self.region.read8(PCI_CAPABILITY_LIST) & ~3
        for _ in range(_MAX_CAPABILITIES):
            if not offset:
                return
            yield self.region.read8(offset), offset
            offset = self.region.read8(offset + 1) & ~3

    def capability(self, kind: int) -> int | None:
        """Offset of a capability, None if the device lacks it."""
        return next((offset for found, offset in self.capabilities() if found == kind), None)
