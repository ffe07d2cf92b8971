# SPDX-License-Identifier: GPL-2.0-only
"""An IOMMU group: the smallest set of devices that can be given away together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pkernfs.errors import PkernfsError
from pkernfs.vfio import uapi
from pkernfs.vfio.bind import SYSFS, iommu_group
from pkernfs.vfio.closing import Closing
from pkernfs.vfio.container import Container
from pkernfs.vfio.device import Device
from pkernfs.vfio.ioctl import VfioError, call, sized

DEV_VFIO = Path("/dev/vfio")


class Group(Closing):
    """An open /dev/vfio/N; a context manager. Only one process can hold it.

    :param number: number of the IOMMU group.
    :raises PkernfsError: no such group, in use, or not viable (a device of it has a host
        driver that does DMA).
    """

    def __init__(self, number: int, dev: Path = DEV_VFIO) -> None:
        self.number = number
        self._joined = False
        path = dev / str(number)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PkernfsError(
                f"can't open IOMMU group {number}: {error.strerror}",
                "bind the devices of the group to vfio-pci; only one process can use a group",
            ) from error
        if not self._viable():
            os.close(self.fd)
            raise PkernfsError(
                f"IOMMU group {number} is not viable",
                "bind all of its devices to vfio-pci",
            )

    @classmethod
    def of(cls, bdf: str, *, sysfs: Path = SYSFS, dev: Path = DEV_VFIO) -> Self:
        """The group of a PCI device (``0000:01:00.0``)."""
        return cls(iommu_group(bdf, sysfs), dev)

    def _viable(self) -> bool:
        status = sized(uapi.vfio_group_status)
        call(self.fd, uapi.VFIO_GROUP_GET_STATUS, status, "status of the IOMMU group")
        return bool(status.flags & uapi.VFIO_GROUP_FLAGS_VIABLE)

    def set_container(self, container: Container) -> None:
        """Join a container; its mappings then hold for this group's devices."""
        # The request takes the address of the descriptor, not the descriptor.
        argument = bytearray(container.fd.to_bytes(4, "little"))
        call(self.fd, uapi.VFIO_GROUP_SET_CONTAINER, argument, "join the container")
        self._joined = True

    def join(self, container: Container) -> None:
        """Join a container that has no IOMMU type yet, and set it to type 1 version 2."""
        self.set_container(container)
        container.set_iommu()

    def unset_container(self) -> None:
        """Leave the container; every device must be closed."""
        call(self.fd, uapi.VFIO_GROUP_UNSET_CONTAINER, 0, "leave the container")
        self._joined = False

    def open_device(self, bdf: str) -> Device:
        """Open a device of this group. On a stock kernel the first open resets it.

        :param bdf: its name in sysfs.
        :raises VfioError: ENODEV for a device that is not of this group or not bound.
        """
        argument = bytearray(bdf.encode() + b"\0")
        fd = call(self.fd, uapi.VFIO_GROUP_GET_DEVICE_FD, argument, f"open {bdf}")
        return Device(fd, bdf)

    def close(self) -> None:
        """Leave the container and close the group."""
        if self._joined:
            # With a device still open the kernel says EBUSY; closing ends it all the same.
            try:
                self.unset_container()
            except VfioError:
                self._joined = False
        os.close(self.fd)
