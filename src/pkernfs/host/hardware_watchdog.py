# SPDX-License-Identifier: GPL-2.0-only
"""The machine's own watchdog, armed across the jump: a next kernel that hangs becomes a reset.

Nothing in a kernel that hangs before its first programs can go back; a timer of the hardware
resets the machine, and an ordinary boot then resumes the guests, if memory was kept. The next
kernel stops the timer once its guests run, which takes the same driver there.

A driver stops its timer when a kernel is left, also by kexec, unless the kernel was told
otherwise before that driver came (``stop_on_reboot`` of drivers/watchdog/watchdog_core.c). So
whoever has not said ``watchdog.stop_on_reboot=0`` on the boot line has no watchdog here; and
one that somebody else uses, systemd for one, is theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, note, ok
from pkernfs.host.machine import Machine

#: What has to be on the boot line.
WORD = "watchdog.stop_on_reboot=0"

_CLASS = "sys/class/watchdog/watchdog0"
_NODE = "dev/watchdog0"
#: include/uapi/linux/watchdog.h
_SETTIMEOUT = 0xC0045706
#: A timer that is closed after this stops: Documentation/watchdog/watchdog-api.rst.
_MAGIC = b"V"
#: Until the node is there after its driver was loaded (seconds).
_NODE_S = 5.0


@dataclass(frozen=True)
class Timer:
    """A watchdog of the machine.

    :ivar identity: what its driver calls it.
    :ivar driver: the driver's module.
    :ivar obstacle: why it can't be armed across the jump; empty: it can.
    :ivar hint: what to do about that.
    """

    identity: str
    driver: str
    obstacle: str = ""
    hint: str = ""


def find(machine: Machine, release: str) -> Timer | None:
    """The machine's watchdog; None when no driver has found one.

    :param release: of the next kernel, which has to stop it.
    """
    identity = machine.read(f"{_CLASS}/identity")
    if identity is None:
        return None
    driver = _driver(machine)
    return Timer(identity, driver, *_obstacle(machine, driver, release))


def _driver(machine: Machine) -> str:
    """The module of its driver; empty when that can't be told."""
    with contextlib.suppress(OSError):
        link = machine.root / _CLASS / "device/driver/module"
        return link.resolve(strict=True).name
    # Not every driver says whose device it is. Who uses the core is one.
    users = machine.root.glob("sys/module/watchdog/holders/*")
    names = [path.name for path in users]
    return names[0] if len(names) == 1 else ""


def _obstacle(machine: Machine, driver: str, release: str) -> tuple[str, str]:
    if not driver:
        return "its driver is no module, or it can't be told which", ""
    if driver == "softdog":
        return "it is the kernel's own, and ends with it", ""
    if machine.read(f"{_CLASS}/state") != "inactive":
        return "somebody uses it", ""
    if machine.read(f"{_CLASS}/nowayout") != "0":
        return "it can't be stopped once it runs (nowayout)", ""
    if machine.read("sys/module/watchdog/parameters/stop_on_reboot") != "0":
        return (
            "it would be stopped at the jump",
            f"{WORD} on the boot line, from before its driver is loaded, keeps it going",
        )
    if machine.module_file(release, driver) is None:
        return f"{release} has no {driver}, and could not stop it", ""
    return "", ""


def examine(machine: Machine, release: str) -> Iterator[Finding]:
    """What doctor says of it."""
    topic, timer = "hardware watchdog", find(machine, release)
    if timer is None:
        return
    if timer.obstacle:
        text = f"{timer.identity} is not armed across the jump: {timer.obstacle}"
        yield note(topic, text, timer.hint, id="watchdog.hardware")
    else:
        yield ok(topic, f"{timer.identity} resets a next kernel that hangs")


@contextlib.contextmanager
def armed(machine: Machine, timer: str, seconds: float) -> Iterator[None]:
    """Have the watchdog run within the block; who leaves it has not left this kernel.

    :param timer: the driver; empty: there is none to arm.
    :param seconds: until it resets the machine, if its hardware can count so far.
    :raises PkernfsError: it can't be armed, or not be stopped again.
    """
    if not timer:
        yield
        return
    try:
        _arm(machine, int(seconds))
    except OSError as error:
        raise PkernfsError(f"the hardware watchdog can't be armed: {error.strerror}") from error
    try:
        yield
    finally:
        stop(machine, timer)


def _arm(machine: Machine, seconds: int) -> None:
    """Start the timer, and leave it running: it is closed without saying so."""
    fd = os.open(machine.root / _NODE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        longest = int(machine.read(f"{_CLASS}/max_timeout") or 0)
        limit = min(seconds, longest) if longest else seconds
        fcntl.ioctl(fd, _SETTIMEOUT, struct.pack("i", limit))
    except OSError:
        os.write(fd, _MAGIC)
        raise
    finally:
        os.close(fd)


def stop(machine: Machine, driver: str) -> None:
    """Stop the timer, also in the next kernel, where its driver may not be there yet.

    :raises PkernfsError: it runs on, and will reset the machine.
    """
    node = machine.root / _NODE
    deadline = time.monotonic() + _NODE_S
    with contextlib.suppress(OSError):
        if not node.exists():
            subprocess.run(["modprobe", driver], check=False, capture_output=True)
    while not node.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        with node.open("wb", buffering=0) as file:
            file.write(_MAGIC)
    except OSError as error:
        raise PkernfsError(
            f"the hardware watchdog was armed for the jump and can't be stopped: {error.strerror}",
            f"it resets the machine soon: modprobe {driver}, then printf V >/dev/watchdog0",
        ) from error
