# SPDX-License-Identifier: GPL-2.0-only
"""Loading the next kernel and jumping to it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from pkernfs.errors import PkernfsError
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine

# Numbers of kexec_file_load(2): arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h.
_SYSCALL = {"x86_64": 320, "aarch64": 294, "riscv64": 294}

# include/uapi/linux/kexec.h
_KEXEC_FILE_UNLOAD = 1
_KEXEC_FILE_NO_INITRAMFS = 4

# include/uapi/linux/reboot.h
_REBOOT_MAGIC1 = 0xFEE1DEAD
_REBOOT_MAGIC2 = 672274793
_REBOOT_CMD_KEXEC = 0x45584543
_SYS_REBOOT = {"x86_64": 169, "aarch64": 142, "riscv64": 142}

_HINTS = {
    errno.EPERM: "needs root, and a kernel that does not forbid it: see pkernfs doctor",
    errno.ENOEXEC: "the kernel does not take it for an image it can start",
    errno.EKEYREJECTED: "its signature is not from a key that the running kernel trusts",
    errno.ENOKEY: "its signature is not from a key that the running kernel trusts",
    errno.ENODATA: "it is not signed, and the running kernel asks for a signature",
    errno.EBADMSG: "its signature does not fit its content",
    errno.EBUSY: "another kexec load is going on: try again",
    errno.ENOMEM: "not enough free memory for a second kernel",
    errno.EADDRNOTAVAIL: "no free range of memory is large enough for the kernel and its initrd",
    errno.ENOSYS: "the running kernel was built without CONFIG_KEXEC_FILE",
}


def _syscall(table: dict[str, int], *arguments: object) -> int:
    """Make a system call that the C library has no function for; 0 or an errno."""
    number = table.get(os.uname().machine)
    if number is None:
        return errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *arguments) >= 0:
        return 0
    return ctypes.get_errno()


def is_loaded(machine: Machine) -> bool:
    """Is a kernel loaded, ready to be started by kexec?"""
    return machine.read("sys/kernel/kexec_loaded") == "1"


def unload() -> None:
    """Forget the kernel that was loaded, if any."""
    _syscall(
        _SYSCALL,
        ctypes.c_int(-1),
        ctypes.c_int(-1),
        ctypes.c_ulong(0),
        None,
        ctypes.c_ulong(_KEXEC_FILE_UNLOAD),
    )


def load(kernel: Kernel, boot_line: str) -> None:
    """Load a kernel with kexec_file_load(2): the running kernel checks and places it.

    That call works with signed and unsigned kernels, whichever the policy allows; the
    older kexec_load(2) is refused under lockdown.

    :raises PkernfsError: a file can't be opened, or the running kernel refuses.
    """
    line = boot_line.encode() + b"\0"
    with contextlib.ExitStack() as files:
        try:
            image = files.enter_context(kernel.image.open("rb")).fileno()
            initrd = -1
            if kernel.initrd is not None:
                initrd = files.enter_context(kernel.initrd.open("rb")).fileno()
        except OSError as error:
            raise PkernfsError(f"can't read {error.filename}: {error.strerror}") from error
        result = _syscall(
            _SYSCALL,
            ctypes.c_int(image),
            ctypes.c_int(initrd),
            ctypes.c_ulong(len(line)),
            ctypes.c_char_p(line),
            ctypes.c_ulong(0 if kernel.initrd else _KEXEC_FILE_NO_INITRAMFS),
        )
    if result:
        raise PkernfsError(
            f"the running kernel refuses to load {kernel.image}: {os.strerror(result)}",
            _HINTS.get(result, "the kernel log may say more"),
        )


@contextlib.contextmanager
def loaded(kernel: Kernel, boot_line: str) -> Iterator[None]:
    """Have a kernel loaded within the block; whoever leaves it has not started it."""
    load(kernel, boot_line)
    try:
        yield
    finally:
        unload()


def jump() -> None:
    """Start the loaded kernel. Returns only by an error.

    By reboot(2), not through the service manager: its orderly stop of every service
    would count into the guests' blackout.

    :raises PkernfsError: the running kernel refuses.
    """
    result = _syscall(
        _SYS_REBOOT,
        ctypes.c_uint(_REBOOT_MAGIC1),
        ctypes.c_uint(_REBOOT_MAGIC2),
        ctypes.c_uint(_REBOOT_CMD_KEXEC),
        None,
    )
    reason = os.strerror(result) if result else "the call returned"
    raise PkernfsError(f"the running kernel refuses to start the loaded one: {reason}")
