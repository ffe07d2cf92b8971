# SPDX-License-Identifier: GPL-2.0-only
"""Loading the next kernel and jumping to it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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

# include/uapi/linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int)
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878

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


def freezable_mounts(machine: Machine) -> list[Path]:
    """Mount points of writable filesystems on block devices, the innermost first."""
    seen: set[str] = set()
    found = []
    for line in (machine.read("proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        device, point = fields.split()[2], fields.split()[4]
        source, options = rest.split()[1], rest.split()[2].split(",")
        # 0:N are filesystems without a device of their own, but for btrfs.
        if (device.startswith("0:") and not source.startswith("/dev/")) or "ro" in options:
            continue
        if device not in seen:
            seen.add(device)
            found.append(Path(point.replace("\\040", " ")))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


#: Is told of a filesystem: None before it is frozen, then whether it is.
NoteFreeze = Callable[[Path, bool | None], None]


@contextlib.contextmanager
def frozen_filesystems(
    machine: Machine, note: NoteFreeze = lambda point, frozen: None
) -> Iterator[None]:
    """Have every filesystem on a disk written out and at rest within the block.

    Like a clean unmount for the next kernel (no journal to replay), but it can be
    undone when the jump fails. Nobody, this program included, may write to a disk
    within the block. A filesystem that can't be frozen is synced only, one that somebody
    else has frozen is left to him.

    :param note: keeps what :func:`thaw` has to undo if this process is killed.
    """
    os.sync()
    with contextlib.ExitStack() as undo:
        for point in freezable_mounts(machine):
            note(point, None)
            try:
                fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                fcntl.ioctl(fd, _FIFREEZE, 0)
            except OSError:
                note(point, False)
                continue
            undo.callback(fcntl.ioctl, fd, _FITHAW, 0)
            note(point, True)
        yield


def thaw(points: Sequence[Path]) -> list[Path]:
    """Let filesystems be written again that a process froze which is dead.

    :param points: their mount points, in the order in which they were frozen.
    :returns: those that can't be reached. One that is not frozen is fine.
    """
    failed = []
    for point in reversed(points):
        try:
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            failed.append(point)
            continue
        try:
            fcntl.ioctl(fd, _FITHAW, 0)
        except OSError as error:
            # EINVAL: it was not frozen (thaw_super_locked() in fs/super.c).
            if error.errno != errno.EINVAL:
                failed.append(point)
        finally:
            os.close(fd)
    return failed


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
