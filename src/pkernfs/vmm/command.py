# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line: what this program adds, and what the user's part can't contain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from pkernfs.errors import UsageError
from pkernfs.vmm import outlives
from pkernfs.vmm.config import RAM_ID, GuestConfig

_MONITOR = "pkernfs-qmp"

_BACKGROUND = "a guest in the background has no terminal: -chardev file,...,append=on or socket,..."
_OTHER_USER = "its files in the store belong to root, and it could not save into them"
_REFUSED = {
    "m": "the size of its memory is --ram SIZE",
    "mem-path": "its memory lies in the store",
    "mem-prealloc": "its memory in the store is allocated already",
    "qmp": "this program owns the first monitor: add another with -chardev socket and -mon",
    "qmp-pretty": "add a monitor of your own with -chardev socket and -mon",
    "incoming": "pkernfs resume says where its state is",
    "loadvm": "a guest starts fresh, or is resumed by pkernfs resume",
    "daemonize": "it runs in the background anyway",
    "pidfile": "pkernfs vm list --json shows the process",
    "S": "it must run on by itself after an update",
    "snapshot": "it keeps the disk's changes in a temporary file, which an update loses",
    "runas": _OTHER_USER,
    "chroot": _OTHER_USER,
    "readconfig": "give its content as arguments: what a file says can't be checked",
    "nographic": _BACKGROUND,
    "curses": _BACKGROUND,
}
#: Option, what in its value is refused, and why.
_REFUSED_VALUES = (
    ("run-with", re.compile(r"(^|,)(user|chroot)="), _OTHER_USER),
    ("set", re.compile(r"discard-data"), "QEMU would empty the guest's memory when it ends"),
)
_SERVERS = frozenset(("chardev", "serial", "parallel", "monitor", "debugcon", "gdb"))
_SERVER = re.compile(r"(^|,)server(=(on|yes|true|y))?(,|$)|\"server\"\s*:\s*true")
_NO_WAIT = re.compile(r"(^|,)(wait=(off|no|false)|nowait)(,|$)|\"wait\"\s*:\s*false")
_STDIO = re.compile(r"(^|[:,])(mon:)?stdio($|,)")
_DIRECT = re.compile(
    r"(^|,)cache=(none|directsync)(,|$)"
    r"|(^|,)(file\.)*cache\.direct(=(on|true|yes))?(,|$)"
    r"|(^|,)aio=native(,|$)"
    r'|"direct"\s*:\s*true'
    r'|"aio"\s*:\s*"native"'
)


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of option (no dash) and what follows it, "" when that is an option too.

    QEMU takes ``-option`` and ``--option`` alike.
    """
    for index, word in enumerate(arguments):
        if not word.startswith("-") or word == "-":
            continue
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        yield word.removeprefix("-").removeprefix("-"), following


def last_value(arguments: Sequence[str], *names: str) -> str | None:
    """What follows the last option of one of these names; None without such an option."""
    values = [value for option, value in options(arguments) if option in names]
    return values[-1] if values else None


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what can't work for a guest that outlives its host's kernel.

    :raises UsageError: names the argument, and what to write instead.
    """
    for option, value in options(arguments):
        if option in _REFUSED:
            raise UsageError(f"-{option} can't be used here", _REFUSED[option])
        _check_value(option, value)
        if option == "object" and "memory-backend" in value:
            raise UsageError(
                f"-object {value} can't be used here",
                "the guest's memory lies in the store: --ram SIZE",
            )
        if option in ("machine", "M") and re.search(r"(^|,)memory-backend=", value):
            raise UsageError(
                f"-{option} {value} can't be used here",
                "leave memory-backend= out: --ram SIZE sets it",
            )
        if option in ("serial", "monitor", "chardev", "parallel") and _STDIO.search(value):
            raise UsageError(f"-{option} {value} can't be used here", _BACKGROUND)
        if option == "device" and re.match(r"(vfio-|\{.*\"vfio-)", value):
            raise UsageError(
                f"-device {value} can't be used here",
                "give the device to the guest with --device BDF",
            )
    found = outlives.first_obstacle(arguments)
    if found is not None:
        raise UsageError(found.what, found.hint)


def _check_value(option: str, value: str) -> None:
    """Refuse what waits for somebody, or makes QEMU somebody else.

    :raises UsageError: names the argument, and what to write instead.
    """
    for name, pattern, hint in _REFUSED_VALUES:
        if option == name and pattern.search(value):
            raise UsageError(f"-{option} {value} can't be used here", hint)
    if option in _SERVERS and _SERVER.search(value) and not _NO_WAIT.search(value):
        raise UsageError(
            f"-{option} {value} would hold the guest up until somebody connects",
            "write wait=off behind server=on: who comes later is served as well",
        )


def direct_io_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments that make QEMU open a disk with O_DIRECT."""
    return [value for _, value in options(arguments) if _DIRECT.search(value)]


def check_direct_io(arguments: Sequence[str]) -> None:
    """Refuse disks opened with O_DIRECT, for memory that has no ``struct page``.

    The kernel pins the pages that O_DIRECT transfers from and to. Memory without
    ``struct page`` can't be pinned: the disk would answer every request with EFAULT.

    :raises UsageError: names the argument, and what to write instead.
    """
    for value in direct_io_arguments(arguments):
        raise UsageError(
            f"the disk {value!r} would be opened with O_DIRECT: the store's memory can't serve it",
            "write cache=writeback (or cache.direct=off, aio=threads or aio=io_uring) instead",
        )


def alignment(ram_bytes: int) -> int:
    """Alignment of the guest's memory in QEMU's address space (bytes).

    Only so can the kernel map it by 1 GiB or 2 MiB at a time; QEMU alone would ask
    for 4 KiB (file_ram_alloc() in system/physmem.c).
    """
    return 1 << 30 if ram_bytes >= 1 << 30 else 2 << 20


def base_arguments(
    name: str,
    ram: str,
    ram_bytes: int,
    machine: str,
    accelerator: str,
    user: Sequence[str],
    devices: Sequence[str] = (),
) -> tuple[str, ...]:
    """The arguments of every start of a guest: this program's, then the user's.

    :param ram: path of the file in the store.
    :param machine: value for -machine: versioned type and the user's properties.
    :param accelerator: "kvm" or "tcg".
    :param devices: PCI names of devices to pass through.
    """
    user = remove_options(user, "machine", "M", "accel", "enable-kvm")
    cpu = () if last_value(user, "cpu") is not None else ("-cpu", _cpu(accelerator))
    show = () if last_value(user, "display", "vnc", "spice") is not None else ("-display", "none")
    memory = f"memory-backend-file,id={RAM_ID},size={ram_bytes},mem-path={ram.replace(',', ',,')}"
    return (
        "-name",
        f"guest={name}",
        "-no-user-config",
        "-nodefaults",
        "-object",
        f"{memory},share=on,align={alignment(ram_bytes)}",
        "-machine",
        # Shared, QEMU's own memory can be handed over with the devices that see it.
        f"{machine},memory-backend={RAM_ID}" + (",aux-ram-share=on" if devices else ""),
        "-accel",
        accelerator,
        "-m",
        f"size={ram_bytes}B",
        *cpu,
        *show,
        *user,
        *(word for bdf in devices for word in ("-device", f"vfio-pci,host={bdf}")),
    )


def _cpu(accelerator: str) -> str:
    return "host" if accelerator.startswith("kvm") else "max"


def remove_options(arguments: Sequence[str], *names: str) -> tuple[str, ...]:
    """The arguments without these options and their values (-enable-kvm has none)."""
    kept = []
    skip = False
    for word in arguments:
        if skip:
            skip = False
            continue
        option = word.removeprefix("-").removeprefix("-") if word.startswith("-") else None
        if option in names:
            skip = option != "enable-kvm"
            continue
        kept.append(word)
    return tuple(kept)


def _monitor_option(version: str) -> tuple[str, str]:
    """QEMU 11.1 replaced -mon by an object, and complains about the old word."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= (11, 1):
        return "-object", f"monitor-qmp,id={_MONITOR},chardev={_MONITOR}-socket"
    return "-mon", f"id={_MONITOR},chardev={_MONITOR}-socket,mode=control"


def start_arguments(
    config: GuestConfig, monitor_fd: int, devices_fd: int | None = None, *, incoming: bool
) -> list[str]:
    """The full command of one start.

    :param monitor_fd: a listening socket that QEMU inherits: it can be connected to
        before QEMU is ready, so nobody has to poll for it.
    :param devices_fd: one on which it waits for passed-through devices before all else.
    :param incoming: wait for a saved state instead of starting the firmware, and stand still
        once it is loaded: what runs must not be loaded again, and that is noted before. The
        processor is then the one that the state was saved of.
    """
    arguments = config.arguments
    if incoming and config.processor:
        arguments = (*remove_options(arguments, "cpu"), "-cpu", config.processor)
    return [
        config.qemu,
        *arguments,
        "-chardev",
        f"socket,id={_MONITOR}-socket,fd={monitor_fd},server=on,wait=off",
        *_monitor_option(config.qemu_version),
        *(("-incoming", "defer", "-S") if incoming else ()),
        *(("-incoming", _devices_channel(devices_fd)) if devices_fd is not None else ()),
    ]


def _devices_channel(fd: int) -> str:
    address = {"transport": "socket", "type": "fd", "str": str(fd)}
    return json.dumps({"channel-type": "cpr", "addr": address})
