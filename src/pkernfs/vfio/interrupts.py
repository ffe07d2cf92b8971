# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts of a VFIO device as event file descriptors."""

from __future__ import annotations

import os
import select
import struct
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.vfio import uapi
from pkernfs.vfio.closing import Closing
from pkernfs.vfio.ioctl import call

_HEAD = struct.Struct("<5I")


@dataclass(frozen=True)
class IrqInfo:
    """An interrupt index of a device: INTx, MSI, MSI-X...

    :ivar index: ``VFIO_PCI_*_IRQ_INDEX``.
    :ivar count: vectors; 0 if the device has none of this kind.
    :ivar flags: ``VFIO_IRQ_INFO_*``.
    """

    index: int
    count: int
    flags: int

    @property
    def automasked(self) -> bool:
        """Level triggered: the kernel masks it at each delivery, the user unmasks."""
        return bool(self.flags & uapi.VFIO_IRQ_INFO_AUTOMASKED)


def irq_set(flags: int, index: int, start: int, count: int, data: bytes = b"") -> bytearray:
    """The argument of VFIO_DEVICE_SET_IRQS: struct vfio_irq_set and its data."""
    return bytearray(_HEAD.pack(_HEAD.size + len(data), flags, index, start, count) + data)


def eventfd_trigger(index: int, fds: list[int]) -> bytearray:
    """Argument that binds vectors 0... of ``index`` to event file descriptors."""
    flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
    return irq_set(flags, index, 0, len(fds), struct.pack(f"<{len(fds)}i", *fds))


class Interrupts(Closing):
    """Vectors of one interrupt index, turned on while the context lasts.

    :raises PkernfsError: the device has fewer than ``count`` vectors.
    """

    def __init__(self, fd: int, info: IrqInfo, count: int) -> None:
        if not 0 < count <= info.count:
            raise PkernfsError(f"the device has {info.count} vectors of interrupt {info.index}")
        self._fd = fd
        self.info = info
        self.eventfds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
        try:
            self._set(eventfd_trigger(info.index, self.eventfds), "turn interrupts on")
        except PkernfsError:
            self._close_eventfds()
            raise

    def wait(self, timeout_s: float, vector: int = 0) -> int:
        """Wait for a vector.

        :param timeout_s: seconds.
        :returns: how many times it fired since the last call; 0 if it did not in time.
        """
        ready, _, _ = select.select([self.eventfds[vector]], [], [], timeout_s)
        return os.eventfd_read(self.eventfds[vector]) if ready else 0

    def unmask(self, vector: int = 0) -> None:
        """Let a level triggered interrupt fire again, once its cause is cleared."""
        flags = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_UNMASK
        self._set(irq_set(flags, self.info.index, vector, 1), "unmask the interrupt")

    def trigger(self, vector: int = 0) -> None:
        """Let the kernel fire a vector, as if the device had (a loopback test)."""
        flags = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
        self._set(irq_set(flags, self.info.index, vector, 1), "trigger the interrupt")

    def close(self) -> None:
        """Turn the interrupts off."""
        flags = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
        try:
            self._set(irq_set(flags, self.info.index, 0, 0), "turn interrupts off")
        finally:
            self._close_eventfds()

    def _set(self, argument: bytearray, what: str) -> None:
        call(self._fd, uapi.VFIO_DEVICE_SET_IRQS, argument, what)

    def _close_eventfds(self) -> None:
        for fd in self.eventfds:
            os.close(fd)
