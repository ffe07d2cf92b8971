# SPDX-License-Identifier: GPL-2.0-only
"""Pausing and saving guests, in such a way that leaving the block lets them run on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from pkernfs.errors import PartlyError, PkernfsError
from pkernfs.files import write_atomic
from pkernfs.update.early import LAUNCH_FILE
from pkernfs.update.plan import Plan, PlannedGuest, directory
from pkernfs.update.timeline import Timeline
from pkernfs.vmm import fingerprint, launch
from pkernfs.vmm.config import Guest, Saved
from pkernfs.vmm.monitor import Monitor, go_on, save
from pkernfs.vmm.protocol import launch_of

#: How long a guest may take to stop and be saved (seconds).
SAVE_S = 60.0


#: Is told the name of a guest that runs, right before it is paused.
Paused = Callable[[str], None]


class NotAllRunError(PartlyError):
    """The update was given up, and a guest could not be let run on."""


async def let_run(session: Monitor, *, ran: bool) -> None:
    """Let a guest be as it was, and forget what was saved of it.

    :param ran: did it run when it was paused? False also when it was not paused: its user may
        have done that meanwhile.
    :raises PkernfsError: QEMU does not let it.
    """
    await go_on(session, run=ran)
    session.guest.forget_saved()


async def _run_on(session: Monitor, timeline: Timeline, *, ran: bool) -> None:
    """Let a guest run on, and record it: the report says how long it was paused for nothing."""
    name = session.guest.name
    try:
        await let_run(session, ran=ran)
    except PkernfsError as error:
        timeline.mark("result", "failed", name, text=error.what)
        raise
    if ran:
        timeline.mark("moment", "running", name)
    timeline.mark("result", "ok", name)


async def _quiesce(
    session: Monitor, planned: PlannedGuest, plan: Plan, timeline: Timeline, paused: Paused
) -> None:
    guest = session.guest
    timeline.mark("begin", "pause", guest.name)
    stopped, done = await save(
        session, guest.state, SAVE_S, lambda runs: paused(guest.name) if runs else None
    )
    stopped_ns = stopped.real_ns if stopped else None
    timeline.mark("end", "pause", guest.name, real_ns=stopped_ns)
    timeline.mark("begin", "save", guest.name, real_ns=stopped_ns)
    if stopped is not None:
        timeline.mark("moment", "stopped", guest.name, real_ns=stopped.real_ns)
    timeline.mark("end", "save", guest.name, real_ns=done.real_ns)
    size = guest.state.stat().st_size
    if size > planned.state_limit:
        raise PkernfsError(
            f"guest {guest.name}: its saved state has {size >> 20} MiB, so its memory is in it"
        )
    timeline.mark("moment", "state bytes", guest.name, text=str(size))
    with timeline.phase("fingerprint", guest.name):
        taken = await asyncio.to_thread(
            fingerprint.take, guest, guest.config(), plan.fingerprint, plan.update
        )
    guest.write_saved(Saved(plan.update, stopped is not None, size, taken))


def by_priority(
    pairs: Sequence[tuple[Monitor, PlannedGuest]],
) -> list[list[tuple[Monitor, PlannedGuest]]]:
    """Guests in groups of one priority, the lowest first.

    A group is paused when the one before is saved: so a guest that is slow to save keeps
    those above it running, not waiting.
    """
    groups: dict[int, list[tuple[Monitor, PlannedGuest]]] = {}
    for pair in pairs:
        groups.setdefault(pair[1].priority, []).append(pair)
    return [groups[priority] for priority in sorted(groups)]


async def _quiesce_all(
    pairs: Sequence[tuple[Monitor, PlannedGuest]], plan: Plan, timeline: Timeline, paused: Paused
) -> None:
    """Pause and save guests, one on each processor at a time: each saves as fast as it can."""
    free = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def one(session: Monitor, guest: PlannedGuest) -> None:
        async with free:
            await _quiesce(session, guest, plan, timeline, paused)

    tasks = [asyncio.ensure_future(one(*pair)) for pair in pairs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def write_launches(plan: Plan, guests: Sequence[Guest]) -> None:
    """Have it ready for the next kernel how each guest is started, in the order of the plan.

    :raises PkernfsError: a guest's configuration can't be used.
    """
    if not guests:
        return
    # Those with passed-through devices take more: pkernfs.update.resume starts them.
    by_name = {guest.name: launch_of(guest) for guest in guests if not guest.config().devices}
    launches = [by_name[guest.name] for guest in plan.guests if guest.name in by_name]
    path = directory(guests[0].places, plan.update) / LAUNCH_FILE
    write_atomic(path, launch.dump(launches))


@contextlib.asynccontextmanager
async def quiesced(
    sessions: Sequence[Monitor], plan: Plan, timeline: Timeline, note: Paused = lambda _: None
) -> AsyncIterator[None]:
    """Have all guests of the plan paused and saved within the block.

    Whichever way the block is left, the guests run on: only a new kernel does not come
    back here. Those run on that ran right before they were paused, whatever the plan says:
    it is older, and their users may have paused them since, or let them run.

    :param note: is told the name of each guest that runs, right before it is paused.
    :raises PkernfsError: a guest can't be saved, or one can't run on.
    """
    planned = {guest.name: guest for guest in plan.guests}
    pairs = [(session, planned[session.guest.name]) for session in sessions]
    ran: set[str] = set()

    def paused(name: str) -> None:
        note(name)
        ran.add(name)

    write_launches(plan, [session.guest for session in sessions])
    # What is written before the pause need not be written while guests wait.
    await asyncio.to_thread(os.sync)
    try:
        for group in by_priority(pairs):
            await _quiesce_all(group, plan, timeline, paused)
        yield
    finally:
        results = await asyncio.gather(
            *(_run_on(session, timeline, ran=session.guest.name in ran) for session in sessions),
            return_exceptions=True,
        )
        failed = [str(result) for result in results if isinstance(result, Exception)]
        if failed:
            raise NotAllRunError(
                "after the update was given up, not every guest runs on: " + "; ".join(failed),
                "pkernfs vm list shows them; pkernfs update --recover tries again",
            )


@contextlib.contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP cancel the current task, once, within the block.

    Ctrl-Z does nothing meanwhile: it would stop this program, and paused guests with it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    begun = time.monotonic()
    given_up = False

    def give_up() -> None:
        # A second signal must not interrupt the way back.
        nonlocal given_up
        if not given_up:
            given_up = True
            task.cancel(f"interrupted after {time.monotonic() - begun:.1f} s")

    for number in numbers:
        loop.add_signal_handler(number, give_up)
    stop = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, stop)
        for number in numbers:
            loop.remove_signal_handler(number)
