# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl call of this package: one way to ask, one way to fail."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from pkernfs.errors import PkernfsError

#: What a user can do about an errno, where VFIO gives it one meaning.
_HINTS = {
    errno.EBUSY: "another process uses this device or group",
    errno.ENODEV: "bind every device of the group to vfio-pci first",
    errno.EPERM: "the group is not viable, or the IOMMU can't isolate interrupts",
    errno.ENOMEM: "raise the locked-memory limit (ulimit -l)",
    errno.EACCES: "run as root",
}


class VfioError(PkernfsError):
    """A VFIO request that the kernel refused.

    :ivar errno: why, an errno number; tests and callers tell refusals apart by it.
    """

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}", _HINTS.get(number, ""))
        self.errno = number


def call(fd: int, request: int, argument: int | ctypes.Structure | bytearray, what: str) -> int:
    """``ioctl(fd, request, argument)``; a struct or a buffer is updated in place.

    :param what: what is being done, for the message of the error.
    :returns: the value of the call.
    :raises VfioError: with the errno of the call.
    """
    try:
        if isinstance(argument, int):
            return fcntl.ioctl(fd, request, argument)
        return int(fcntl.ioctl(fd, request, argument, True))
    except OSError as error:
        raise VfioError(what, error.errno or 0) from error


def sized(struct: type[ctypes.Structure], **values: int) -> ctypes.Structure:
    """A struct with ``argsz`` set to its own size, as every VFIO request wants it."""
    return struct(argsz=ctypes.sizeof(struct), **values)
