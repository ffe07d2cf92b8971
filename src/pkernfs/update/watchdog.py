# SPDX-License-Identifier: GPL-2.0-only
"""Going back to the kernel before, by kexec, when the guests do not come back in time.

All that it takes is in the boot line of the next kernel, because the store may be what
can't be reached there::

    pkernfs_watchdog=SECONDS     from the start of the kernel
    pkernfs_back=IMAGE,INITRD    the kernel before, on disk

and the kernel before gets the words that stand before the update's marker: what the
user appended for the next kernel stands behind it. The store stays as it is: its guests
are saved, and the kernel before resumes them.

A guest that has run in this kernel can't be taken back like that. When there is one, or
when that can't be excluded, the watchdog stays where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host import freeze, hardware_watchdog, kernels, kexec
from pkernfs.host.bootline import MARKER, BootLine, next_boot_line, word_name
from pkernfs.host.devices import Control, next_kernel_line
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from pkernfs.mountinfo import FSTYPE
from pkernfs.update import plan as planning
from pkernfs.update import reported
from pkernfs.update.lock import holder, update_lock
from pkernfs.update.plan import BACK, WATCHDOG, WENT_BACK
from pkernfs.update.timeline import Timeline
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest, Places, all_guests
from pkernfs.vmm.monitor import monitor

#: From the start of the next kernel until its guests must be back (seconds). Firmware is
#: not in it, a kexec has none. Longer than a guest's QEMU may take to start and load.
DEFAULT_S = 300.0

#: Less than a host needs to come to its first programs (seconds).
LEAST_S = 30.0

_POLL_S = 2.0
_KILL_S = 10.0
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Order:
    """What the watchdog of this kernel is to do.

    :ivar seconds: after the start of the kernel.
    :ivar kernel: where to go back to.
    :ivar line: its boot line.
    :ivar update: id of the update that started this kernel.
    """

    seconds: float
    kernel: Kernel
    line: BootLine
    update: str


def running_kernel(machine: Machine, places: Places) -> Kernel:
    """The files of the kernel that runs.

    :raises PkernfsError: they are not there any more.
    """
    found = [kernel for kernel in kernels.installed(machine) if kernel.release == machine.kernel]
    if machine.update_marker is not None:
        with contextlib.suppress(PkernfsError):
            plan = planning.read(places, machine.update_marker)
            initrd = Path(plan.initrd) if plan.initrd else None
            found.insert(0, Kernel(plan.kernel_after, Path(plan.image), initrd))
    for kernel in found:
        with contextlib.suppress(PkernfsError):
            chosen = kernels.choose(machine, kernel.image, kernel.initrd)
            if chosen.release == machine.kernel:
                return chosen
    raise PkernfsError(
        f"no image of the running kernel {machine.kernel} is on disk: nothing to go back to",
        f"install it again (linux-image-{machine.kernel}), or pkernfs update --watchdog 0",
    )


def words(kernel: Kernel, seconds: float) -> tuple[str, ...]:
    """The words for the next kernel.

    :param kernel: where to go back to.
    :raises PkernfsError: its files have names that can't stand in a boot line.
    """
    paths = [str(kernel.image), str(kernel.initrd or "")]
    if any(set(path) & set(' \t\n,"') for path in paths):
        raise PkernfsError(
            f"{kernel.image} or its initrd has a name that can't stand in a boot line",
            "pkernfs update --watchdog 0, or rename it",
        )
    return (f"{WATCHDOG}={seconds:g}", f"{BACK}={','.join(paths)}")


def ordered(machine: Machine, places: Places, seconds: float | None) -> tuple[str, ...]:
    """The words for an update's next kernel; none when there is to be no watchdog.

    :param seconds: what the user said: 0 for none; None for the default, and none where
        that can't work.
    :raises PkernfsError: the user asked for it, and it can't work.
    """
    if seconds == 0:
        return ()
    if seconds is not None and seconds < LEAST_S:
        raise UsageError(
            f"--watchdog {seconds:g} is too short for a kernel to come up",
            f"at least {LEAST_S:g} seconds, or 0 for none",
        )
    try:
        return words(running_kernel(machine, places), seconds or DEFAULT_S)
    except PkernfsError:
        if seconds is None:
            return ()
        raise


def without_words(line: BootLine) -> BootLine:
    """A boot line without what this module added to it."""
    return line.without(WATCHDOG, BACK, WENT_BACK)


def order(machine: Machine) -> Order | None:
    """What the running kernel's boot line says; None: there is nothing to watch."""
    line = machine.boot_line
    seconds, back = line.values(WATCHDOG), line.values(BACK)
    update = machine.update_marker
    if not seconds or not back or update is None:
        return None
    image, _, initrd = back[-1].partition(",")
    try:
        limit = float(seconds[-1])
    except ValueError as error:
        raise PkernfsError(f"{WATCHDOG}={seconds[-1]} is not a number") from error
    kernel = Kernel("", Path(image), Path(initrd) if initrd else None)
    return Order(limit, kernel, _line_back(machine, update), update)


def _line_back(machine: Machine, update: str) -> BootLine:
    line = machine.boot_line
    names = [word_name(word) for word in line.words]
    before = BootLine(line.words[: names.index(MARKER)], line.init)
    before = without_words(before).plus(BootLine((f"{WENT_BACK}={machine.kernel}",)))
    return next_boot_line(before, line.regions(), update)


def since_boot() -> float:
    """Seconds since the kernel began to count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def watch(machine: Machine, places: Places, order: Order, say: Callable[[str], None]) -> None:
    """Wait for the guests, and go back when the time is up.

    Returns when a resume has brought a guest back, or had none to bring back. Whether it still
    waits for others is its own affair: it has limits for that.

    :raises PkernfsError: the time is up, and going back is not possible or not safe.
    """
    while not _has_come_back(places):
        left = order.seconds - since_boot()
        if left <= 0:
            break
        time.sleep(min(_POLL_S, left))
    else:
        return
    what = "no guest came back" if reported.read(places) else "pkernfs resume did not report"
    reason = f"{what} within {order.seconds:g} s"
    say(f"{reason}: going back to {order.kernel.image}")
    _end_resume(places)
    with update_lock(places, "return to the kernel before"):
        asyncio.run(_end_guests(places, order.kernel.image))
        go_back(machine, places, order, reason)


def _has_come_back(places: Places) -> bool:
    """Does a guest run again, or is there none that should?"""
    result = reported.read(places)
    if result is not None and (result.running or not result.guests):
        return True
    with contextlib.suppress(OSError, PkernfsError):
        # A resume reports at its end, and a guest that runs need not wait for that: see
        # Guest.begins_to_run().
        return any(
            guest.started_file.exists() and process.running(guest) is not None
            for guest in all_guests(places)
        )
    return False


def _end_resume(places: Places) -> None:
    """End a resume that hangs, so that nothing changes any more.

    :raises PkernfsError: something else is going on, by somebody's order.
    """
    found = holder(places)
    if found is None:
        return
    pid, what = found
    if what != "resume" or pid is None:
        raise PkernfsError(f"not going back: {what} is going on, process {pid}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_S
    while holder(places) is not None and time.monotonic() < deadline:
        time.sleep(0.1)


async def _end_guests(places: Places, image: Path) -> None:
    """End what resume has started, if none of it has run a guest.

    :param image: of the kernel before, for what to do otherwise.
    :raises PkernfsError: a guest has run, or may have.
    """
    ends = []
    for guest in all_guests(places):
        child = process.running(guest)
        if child is None:
            continue
        if not await _will_not_run(guest):
            raise PkernfsError(
                f"not going back: guest {guest.name} runs in this kernel, or may have run",
                "pkernfs resume brings back the others; "
                f"pkernfs update --kernel {image} goes back with all",
            )
        ends.append(child)
    for child in ends:
        process.kill(child)


async def _will_not_run(guest: Guest) -> bool:
    """Make certain that a guest's processors have not run in this kernel, and won't.

    While its state is being loaded, "stop" only keeps QEMU from running the guest after
    that (qmp_stop() in monitor/qmp-cmds.c); any other guest is left alone.
    """
    try:
        async with monitor(guest, _ANSWER_S) as session:
            if await session.status() != "inmigrate":
                return False
            await session.execute("stop")
            if await session.status() == "inmigrate":
                return True
            # It was loaded just in between: it may have run, so it shall.
            await session.execute("cont")
            return False
    except PkernfsError:
        return False


def go_back(machine: Machine, places: Places, order: Order, reason: str) -> None:
    """Start the kernel before. Returns only by an error.

    :raises PkernfsError: it can't be loaded or started.
    """
    # Read again: a file that was replaced meanwhile is no kernel to go back to blindly.
    kernel = kernels.choose(machine, order.kernel.image, order.kernel.initrd)
    control = Control()
    line = order.line
    with contextlib.ExitStack() as stack:
        if control.devices():
            # A device that can't be handed over is cut off; its guest comes back without it.
            with contextlib.suppress(PkernfsError):
                line = next_kernel_line(line, control.arm())
                stack.callback(control.disarm)
        stack.enter_context(kexec.loaded(kernel, str(line)))
        _mark(machine, places, order, reason)
        stack.enter_context(freeze.frozen_filesystems(machine))
        kexec.jump()


def _mark(machine: Machine, places: Places, order: Order, reason: str) -> None:
    path = planning.directory(places, order.update)
    if machine.filesystem_of(places.store) != FSTYPE or not path.is_dir():
        return
    timeline = Timeline(machine)
    timeline.open(path / "timeline.jsonl")
    timeline.mark("moment", "going back", text=reason)
    timeline.close()


def stop_hardware(machine: Machine, places: Places, update: str | None) -> str:
    """Stop the watchdog that was armed for the jump: this kernel has not hung.

    :returns: why it could not be stopped; empty: it is, or there was none.
    """
    if update is None or update != machine.update_marker:
        return ""
    try:
        driver = planning.read(places, update).hardware_watchdog
    except PkernfsError:  # there will be no report either, which is said
        return ""
    if not driver:
        return ""
    try:
        hardware_watchdog.stop(machine, driver)
    except PkernfsError as error:
        with contextlib.suppress(OSError):
            machine.log(f"<2>pkernfs: {error.what}; {error.hint}\n".encode())
        return f"{error.what}; {error.hint}"
    return ""


def get_ready() -> None:
    """Be able to act when the machine is in a bad way: real time, memory that stays."""
    with contextlib.suppress(OSError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
