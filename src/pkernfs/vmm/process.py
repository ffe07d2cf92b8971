# SPDX-License-Identifier: GPL-2.0-only
"""QEMU as a process: started in a session of its own, found again by its pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.vmm import launch
from pkernfs.vmm.command import start_arguments
from pkernfs.vmm.config import Guest, GuestConfig

DEFAULT_QEMU = "qemu-system-x86_64"

#: The first version whose cpr-reboot stops the guest before it saves (9.0, commit
#: "migration: stop vm for cpr"); the file: URI and the mode itself are older (8.2).
MIN_VERSION = (9, 0)
#: The first version that hands VFIO devices over in the mode cpr-transfer.
MIN_PASSTHROUGH = (10, 1)


def find_qemu(name: str = DEFAULT_QEMU) -> Path:
    """Absolute path of a QEMU binary.

    :raises PkernfsError: there is none.
    """
    path = shutil.which(name)
    if path is None:
        raise PkernfsError(f"there is no {name}", "install QEMU: apt install qemu-system-x86")
    return Path(path).absolute()


def qemu_version(qemu: Path) -> str:
    """Version of a QEMU binary, e.g. "11.1.3".

    :raises PkernfsError: it does not run, or says something else.
    """
    text = _ask(qemu, "--version")
    match = re.search(r"version (\d+\.\d+\.\d+)", text)
    if match is None:
        raise PkernfsError(f"{qemu} does not say its version")
    return match[1]


def version_tuple(version: str) -> tuple[int, ...]:
    """Makes versions comparable."""
    return tuple(int(part) for part in version.split("."))


def versioned_machine(qemu: Path, machine: str) -> str:
    """The versioned machine type that an alias means for this QEMU.

    :param machine: value of -machine: a type, and properties behind a comma.
    """
    kind, comma, properties = machine.partition(",")
    kind = kind.removeprefix("type=")
    for line in _ask(qemu, "-machine", "help").splitlines():
        name = line.split(" ", 1)[0]
        if name == kind or kind == name:
            alias = re.search(r"\(alias of ([^)]+)\)", line)
            return (alias[1] if alias else name) + comma + properties
    raise PkernfsError(f"{qemu} has no machine type {kind!r}", f"{qemu} -machine help lists them")


def _ask(qemu: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([str(qemu), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PkernfsError(f"{qemu} does not run: {error}") from error
    return done.stdout


@dataclass(frozen=True)
class Process:
    """A QEMU process. The time it began tells it from a later one with the same pid."""

    pid: int
    began: str

    def alive(self) -> bool:
        """Does it still run?"""
        return launch.start_time(self.pid) == self.began


def running(guest: Guest) -> Process | None:
    """The QEMU process of a guest; None when it has none."""
    try:
        pid, began = (guest.runtime / "pid").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    process = Process(int(pid), began)
    return process if process.alive() else None


def maps_memory(process: Process, guest: Guest) -> bool:
    """Has this QEMU the guest's own memory file mapped?

    One that was started while another file lay at that path, such as on the bare mount point of
    a store, is not the guest that the store has.
    """
    try:
        state = guest.ram.stat()
        lines = Path(f"/proc/{process.pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return False
    # proc_pid_maps(5): address, permissions, offset, device, inode, path.
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}"
    wanted = [device, str(state.st_ino)]
    return any(line.split(None, 5)[3:5] == wanted for line in lines.splitlines())


def wait_mapped(process: Process, guest: Guest, timeout: float = 5.0) -> bool:
    """Like :func:`maps_memory`, for a QEMU that may have begun just now.

    :param timeout: seconds that it may take to map its memory.
    """
    deadline = time.monotonic() + timeout
    while not maps_memory(process, guest):
        if time.monotonic() > deadline or not process.alive():
            return False
        time.sleep(0.02)
    return True


def stranger(guest: Guest) -> PkernfsError:
    """The error about a QEMU that passes for a guest's, and has other memory."""
    return PkernfsError(
        f"guest {guest.name}: the QEMU that runs has not the memory that lies in {guest.store}",
        f"it was started while that store was not mounted: shut it down (kill), then"
        f" pkernfs resume, or pkernfs vm start {guest.name}",
    )


def log_tail(guest: Guest, lines: int = 5) -> str:
    """The end of what QEMU printed, in one line."""
    try:
        text = guest.log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "; ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())


def _processors(config: GuestConfig) -> contextlib.AbstractContextManager[None]:
    """What is started within the block runs on the processors of the guest's node."""
    if config.node is None:
        return contextlib.nullcontext()
    from pkernfs.host import numa
    from pkernfs.host.machine import Machine

    return numa.running_on(numa.cpus(Machine(), config.node))


@contextlib.contextmanager
def _devices_listener(guest: Guest, *, wanted: bool) -> Iterator[dict[int, int]]:
    """The socket on which QEMU waits for passed-through devices, by its number in QEMU."""
    if not wanted:
        yield {}
        return
    guest.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
    guest.cpr_socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest.cpr_socket))
        listener.listen(1)
        # Above all numbers that it could get in QEMU's way.
        fd = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 16)
        try:
            yield {launch.DEVICES_FD: fd}
        finally:
            os.close(fd)


def spawn(guest: Guest, config: GuestConfig, *, incoming: bool) -> Process:
    """Start QEMU. It can be talked to at ``guest.socket`` as soon as this returns.

    With ``incoming`` and passed-through devices, it waits at ``guest.cpr_socket`` first.

    :param incoming: wait for a saved state instead of starting the firmware.
    :raises PkernfsError: the binary can't be started.
    """
    waits = incoming and bool(config.devices)
    devices_fd = launch.DEVICES_FD if waits else None
    command = start_arguments(config, launch.MONITOR_FD, devices_fd, incoming=incoming)
    try:
        with _processors(config), _devices_listener(guest, wanted=waits) as more:
            pid, began = launch.spawn(
                tuple(command), config.directory, str(guest.runtime), config.ram_bytes, more
            )
    except OSError as error:
        raise PkernfsError(f"can't start {config.qemu}: {error.strerror}") from error
    return Process(pid, began)


def kill(process: Process) -> None:
    """End a QEMU process that can't be talked to, and wait until it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        deadline = time.monotonic() + 5
        while process.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
