# SPDX-License-Identifier: GPL-2.0-only
"""The update up to the jump into the next kernel, and the way back if it does not come to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from pkernfs.errors import PkernfsError
from pkernfs.host import freeze, hardware_watchdog, kernels, kexec
from pkernfs.host.bootline import BootLine
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine, require_store
from pkernfs.update import devices, doctor, journal, outsiders, recover, watchdog
from pkernfs.update import plan as planning
from pkernfs.update.guard import AGAIN_S, Guard, guarded
from pkernfs.update.journal import Journal
from pkernfs.update.lock import update_lock
from pkernfs.update.plan import Plan
from pkernfs.update.quiesce import NotAllRunError, cancelled_by_signals, quiesced
from pkernfs.update.timeline import Record, Timeline
from pkernfs.vmm import fingerprint, nested, passthrough, rehearsal
from pkernfs.vmm.config import Places
from pkernfs.vmm.monitor import Monitor, StillPreparedError, monitor, prepared

#: The hardware's watchdog waits so much longer than the other one (seconds), which may yet go
#: back to the kernel before, and that has to come up.
_HANGS_S = 120.0

#: Is shown what happens: the plan once, and every record.
Watch = Callable[[Plan | Record], None]

#: Writes a line into the journal.
Note = Callable[[str, str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    :ivar image: the next kernel, or its release; None for the newest installed one.
    :ivar initrd: its initrd; None for the one that belongs to it.
    :ivar append: more words for its boot line.
    :ivar order: names of guests that come before all others, in order.
    :ivar watchdog: seconds until it goes back to this kernel if the guests are not back; 0:
        never; None: the default, where it can work.
    :ivar override: ids of doctor's findings that do not stop it.
    :ivar fingerprint: which fingerprint is taken of saved guests.
    """

    image: Path | None = None
    initrd: Path | None = None
    append: str = ""
    order: tuple[str, ...] = ()
    watchdog: float | None = None
    override: frozenset[str] = frozenset()
    fingerprint: str = fingerprint.SAMPLED


def check_host(
    machine: Machine, kernel: Kernel, places: Places, override: frozenset[str] = frozenset()
) -> None:
    """Refuse an update that doctor calls impossible.

    :param override: ids of findings that don't count.
    :raises PkernfsError: the first thing that is wrong, and what to do about it.
    """
    require_store(places.store, machine)
    doctor.check(doctor.host(machine, places, kernel), override)


def check_leftovers(places: Places) -> None:
    """Refuse an update after one that was killed and is not undone.

    :raises PkernfsError: see above.
    """
    begun = journal.read(places)
    if begun is None:
        return
    what = f"update {begun.update}" if begun.update else "an update"
    end = "given up" if begun.why else "killed"
    who = f" (guests {', '.join(begun.guests)})" if begun.guests else ""
    raise PkernfsError(f"{what} was {end} and is not undone{who}", "pkernfs update --recover")


async def _plan(
    machine: Machine,
    places: Places,
    request: Request,
    stack: contextlib.AsyncExitStack,
    note: Note,
    *,
    keep: bool = False,
) -> tuple[Plan, list[Monitor]]:
    """Check everything; the sessions with all guests stay open on ``stack``.

    :param keep: write down how the guests are started again, where that has changed.
    """
    kernel = kernels.choose(machine, request.image, request.initrd)
    about_guests = rehearsal.own(request.override) | nested.own(request.override)
    check_host(machine, kernel, places, request.override - about_guests)
    passthrough.forget_idle(places)
    sessions = []
    for guest in planning.running_guests(places):
        note(journal.GUEST, guest.name)
        session = await stack.enter_async_context(monitor(guest))
        await stack.enter_async_context(prepared(session))
        sessions.append(session)
    planned = [await planning.plan_guest(session) for session in sessions]
    guests = planning.in_order(planned, request.order)
    planning.check_space(places, guests)
    watch = watchdog.ordered(machine, places, request.watchdog)
    plan = planning.make(machine, kernel, guests, request.append, watch)
    timer = hardware_watchdog.find(machine, kernel.release)
    driver = timer.driver if timer is not None and not timer.obstacle else ""
    plan = dataclasses.replace(plan, fingerprint=request.fingerprint, hardware_watchdog=driver)
    line = BootLine.parse(plan.boot_line)
    found = await nested.examine(sessions, machine, kernel, line)
    doctor.check([*found, *await rehearsal.examine(sessions, keep=keep)], about_guests)
    return plan, sessions


class WayBack(NamedTuple):
    """What brings everything back if this process can't.

    :ivar written: the journal of what would have to be undone.
    :ivar guard: the process that reads it then.
    """

    written: Journal
    guard: Guard


#: Leaves this kernel, once all guests are saved.
Leave = Callable[[Machine, Plan, Timeline, WayBack], None]


@contextlib.contextmanager
def _undoable(machine: Machine, places: Places) -> Iterator[WayBack]:
    """Have everything brought back that the block begins, also if this process is killed.

    The block goes back by itself when it can. What that leaves is tried once more, and
    again by the guard, which lives on for that.

    :raises PkernfsError: an earlier update is not undone yet.
    """
    check_leftovers(places)
    written = Journal(places)
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(guarded(machine, places))
        written.note(journal.GUARD, str(guard.pid))
        try:
            yield WayBack(written, guard)
        except (NotAllRunError, StillPreparedError, freeze.StillFrozenError) as error:
            written.note(journal.WHY, str(error))
            written.close(undone=False)
            result = recover.undo(machine, places, str(error))
            if result is not None and not result.failed:
                raise PkernfsError(f"{error.what}; now it is undone", "pkernfs vm list") from error
            if result is not None and result.unfinished and guard.takes_over():
                hint = f"process {guard.pid} tries again for {AGAIN_S / 60:.0f} minutes"
                raise PkernfsError(error.what, f"{hint}; pkernfs vm list") from error
            raise
        except BaseException:
            written.close(undone=True)
            raise
        written.close(undone=True)


def dry_run(
    machine: Machine,
    places: Places,
    request: Request,
    waits: Callable[[str], None] | None = None,
) -> Plan:
    """Make all checks and return what an update would do.

    :param waits: see :func:`pkernfs.update.lock.update_lock`.
    :raises PkernfsError: an update would not work.
    """

    async def check() -> Plan:
        async with contextlib.AsyncExitStack() as stack:
            plan, _ = await _plan(machine, places, request, stack, written.note)
            written.note(journal.ARM)
            with devices.armed(plan) as plan:
                return plan

    with update_lock(places, "dry run", waits=waits), _undoable(machine, places) as (written, _):
        return asyncio.run(check())


def _jump(machine: Machine, plan: Plan, timeline: Timeline, way_back: WayBack) -> None:
    """Start the loaded kernel; from here on no signal ends this program.

    :raises PkernfsError: the kernel refuses. There is no other way to return.
    """
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with freeze.frozen_filesystems(machine, way_back.written.note_freeze):
            timeline.mark("end", "hand over")
            timeline.mark("begin", "kernel")
            timeline.close()
            way_back.guard.jumping()
            seconds = (plan.watchdog_s or watchdog.DEFAULT_S) + _HANGS_S
            with hardware_watchdog.armed(machine, plan.hardware_watchdog, seconds):
                kexec.jump()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


async def _update(
    machine: Machine,
    places: Places,
    request: Request,
    way_back: WayBack,
    watch: Watch,
    leave: Leave,
) -> None:
    timeline = Timeline(machine)
    timeline.watch(watch)
    note = way_back.written.note
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(cancelled_by_signals())
        with timeline.phase("check"):
            plan, sessions = await _plan(machine, places, request, stack, note, keep=True)
            note(journal.ARM)
            plan = stack.enter_context(devices.armed(plan))
            devices.note(timeline)
            note(journal.UPDATE, plan.update)
        path = planning.write(places, plan)
        timeline.open(path / "timeline.jsonl")
        stack.callback(timeline.close)
        watch(plan)
        try:
            kernel = Kernel(
                plan.kernel_after, Path(plan.image), Path(plan.initrd) if plan.initrd else None
            )
            with timeline.phase("load"):
                note(journal.LOAD)
                stack.enter_context(kexec.loaded(kernel, plan.boot_line))
            present = outsiders.RollCall(machine, places, plan, request.override)
            present.check()
            way_back.guard.pausing()
            await _leave(machine, plan, sessions, timeline, way_back, leave, present)
        except BaseException as error:
            timeline.open(path / "timeline.jsonl")
            timeline.mark("outcome", "rolled back", text=str(error))
            raise


async def _leave(
    machine: Machine,
    plan: Plan,
    sessions: list[Monitor],
    timeline: Timeline,
    way_back: WayBack,
    leave: Leave,
    present: outsiders.RollCall,
) -> None:
    def note(name: str) -> None:
        way_back.written.note(journal.RAN, name)

    async with quiesced(sessions, plan, timeline, note):
        devices.check_again()
        present.check()
        timeline.mark("begin", "hand over")
        leave(machine, plan, timeline, way_back)


def update(
    machine: Machine,
    places: Places,
    request: Request,
    watch: Watch,
    leave: Leave = _jump,
    waits: Callable[[str], None] | None = None,
) -> NoReturn:
    """Replace the running kernel under the guests. Returns only by an error.

    :param watch: is shown the plan and every record of the timeline, also while guests are
        paused: it must neither block nor raise.
    :param leave: what is done once all guests are saved; it does not come back but by an error.
    :param waits: see :func:`pkernfs.update.lock.update_lock`.
    :raises PkernfsError: it failed, nothing has changed, and all guests run on.
    """
    with update_lock(places, waits=waits), _undoable(machine, places) as way_back:
        try:
            asyncio.run(_update(machine, places, request, way_back, watch, leave))
        except asyncio.CancelledError as error:
            raise PkernfsError(f"{error or 'interrupted'}; nothing was changed") from error
    raise AssertionError("an update came back without an error")
