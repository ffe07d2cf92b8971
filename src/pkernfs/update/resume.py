# SPDX-License-Identifier: GPL-2.0-only
"""In the next kernel: mount, check, start every saved guest, let it run.

Imports here count into the guests' blackout, unless :mod:`pkernfs.update.early` has started
the guests before: what is not needed before QEMU starts is imported after that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine, NoStoreError
from pkernfs.host.stores import mount_stores
from pkernfs.update import reported
from pkernfs.update.early import Early, now_ns, process_began_ns
from pkernfs.update.journal import path_of as journal_of
from pkernfs.update.lock import update_lock
from pkernfs.update.plan import WENT_BACK, directory, last_update
from pkernfs.update.timeline import Timeline
from pkernfs.update.waiting import Resumed, Standing, sort_out, what_now
from pkernfs.vmm import boots, process
from pkernfs.vmm.config import Guest, Places, all_guests, saved_guests, started_guests
from pkernfs.vmm.launch import LOAD_S, START_S, Attempt, Launch, Launcher

if TYPE_CHECKING:
    from pkernfs.update.network import Attached
    from pkernfs.vmm.cpr_replay import Handed
    from pkernfs.vmm.monitor import Monitor

#: How long a QEMU may take to load what a resume before this one told it to load (seconds).
_LOADS_BY_ITSELF_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What became of everything.

    :ivar guests: by name.
    :ivar store: what the checker, which shares no code with the module, says of the store
        after all guests run: "clean", or what it found.
    :ivar warning: why there is no report, or what else has to be known; mostly empty.
    :ivar interfaces: what became of the guests' network interfaces.
    :ivar cut_off: guests whose kernel ended without saving them.
    """

    guests: list[Resumed]
    store: str
    warning: str = ""
    interfaces: tuple[Attached, ...] = ()
    cut_off: tuple[str, ...] = ()

    @property
    def store_is_clean(self) -> bool:
        """Has the checker found nothing?"""
        from pkernfs.update.checked import CLEAN

        return self.store == CLEAN

    @property
    def good(self) -> bool:
        """Does everything run, from a store in order?"""
        return self.store_is_clean and not any(guest.error for guest in self.guests)


def _since_start_of_process() -> int:
    """How long this process has been there, nanoseconds."""
    return max(0, now_ns() - process_began_ns())


async def _restore(standing: Standing, timeline: Timeline) -> None:
    """Let a guest go on whose QEMU is there: it saved it, or a resume began to load it."""
    import asyncio

    from pkernfs.vmm.monitor import go_on, monitor, prepared, unprepare

    child = process.running(standing.guest)
    if child is not None and not await asyncio.to_thread(
        process.wait_mapped, child, standing.guest
    ):
        raise process.stranger(standing.guest)
    async with monitor(standing.guest, START_S) as session:
        deadline = time.monotonic() + _LOADS_BY_ITSELF_S
        while (status := await session.status()) == "inmigrate" and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if status == "inmigrate":
            async with prepared(session, may_stay=True):
                await _load(session, standing, timeline)
            return
        await go_on(session, run=standing.saved.was_running)
        await unprepare(session)


async def _load(
    session: Monitor, standing: Standing, timeline: Timeline, handed: Handed | None = None
) -> None:
    from pkernfs.vmm.monitor import load

    name, run = standing.guest.name, standing.saved.was_running
    timeline.mark("begin", "load state", name)
    done, resumed = await load(session, standing.guest.state, LOAD_S, run=run, handed=handed)
    timeline.mark("end", "load state", name, real_ns=done.real_ns)
    if resumed is not None:
        _mark_running(timeline, name, done.real_ns, resumed.real_ns)


def _mark_running(timeline: Timeline, name: str, loaded_ns: int, running_ns: int) -> None:
    timeline.mark("begin", "run", name, real_ns=min(loaded_ns, running_ns))
    timeline.mark("end", "run", name, real_ns=running_ns)
    timeline.mark("moment", "running", name, real_ns=running_ns)


async def _restore_or_say(standing: Standing, timeline: Timeline) -> Resumed:
    name = standing.guest.name
    try:
        await _restore(standing, timeline)
    except PkernfsError as error:
        return Resumed(name, error.what, error.hint or what_now(standing.guest))
    return Resumed(name)


class _Resume:
    """One run of ``pkernfs resume``."""

    def __init__(self, places: Places, timeline: Timeline) -> None:
        self.places = places
        self.timeline = timeline
        self.results: dict[str, Resumed] = {}
        self._launchers: list[Launcher] = []

    def add(self, launcher: Launcher) -> None:
        """Have guests that are being started."""
        self._launchers.append(launcher)

    def start(self, launches: list[tuple[Launch, bool]]) -> None:
        """Start guests, and wait for them as long as that holds back nobody."""
        launcher = Launcher(launches)
        launcher.run(to_the_end=False)
        self.add(launcher)

    def take(self, results: list[Resumed]) -> None:
        """Note results."""
        self.results |= {result.name: result for result in results}

    def finish(self, *, to_the_end: bool) -> None:
        """Note what became of the guests that were started.

        :param to_the_end: wait also for those that take long.
        """
        for launcher in self._launchers:
            if to_the_end:
                launcher.run(to_the_end=True)
            for attempt in launcher.attempts:
                if attempt.over and attempt.launch.name not in self.results:
                    self.take([self._one(attempt)])

    def _one(self, attempt: Attempt) -> Resumed:
        from pkernfs.vmm.restore import finish

        name, timeline = attempt.launch.name, self.timeline
        timeline.mark("begin", "start", name, ago_ns=max(0, now_ns() - attempt.spawned_ns))
        it = finish(attempt, Guest(name, self.places))
        if it.up_ns is not None:
            timeline.mark("end", "start", name, real_ns=it.up_ns)
            timeline.mark("begin", "load state", name, real_ns=it.up_ns)
        if it.loaded_ns is not None:
            timeline.mark("end", "load state", name, real_ns=it.loaded_ns)
        if it.running_ns is not None:
            _mark_running(timeline, name, it.loaded_ns or it.running_ns, it.running_ns)
        return Resumed(name, it.error, what_now(Guest(name, self.places)) if it.error else "")


def _mark_begin(machine: Machine, timeline: Timeline, early: Early | None, ago: int) -> None:
    """What happened before this module could note it."""
    timeline.mark("moment", "kernel's clock", ago_ns=now_ns())
    if early is None:
        # Reading the kernel log takes its time, and guests are waiting.
        timeline.mark("end", "kernel", ago_ns=ago)
        timeline.mark("begin", "interpreter", ago_ns=ago)
        timeline.mark("end", "interpreter")
        return
    from pkernfs.host.kmsg import first_program_ns

    first = first_program_ns(machine)
    first_ago = max(ago, now_ns() - first) if first is not None else ago
    timeline.mark("end", "kernel", ago_ns=first_ago)
    if first is not None:
        timeline.mark("begin", "init", ago_ns=first_ago)
        timeline.mark("end", "init", ago_ns=ago)
    timeline.mark("begin", "interpreter", ago_ns=ago)
    timeline.mark("end", "interpreter", ago_ns=now_ns() - early.loaded_ns)
    timeline.mark("begin", "verify", ago_ns=now_ns() - early.loaded_ns)
    timeline.mark("end", "verify", ago_ns=now_ns() - early.checked_ns)


def resume(
    machine: Machine,
    places: Places,
    started: Callable[[Timeline], None] = lambda _: None,
    early: Early | None = None,
    waits: Callable[[str], None] = lambda _: None,
    any_processor: Sequence[str] = (),
) -> Outcome:
    """Bring back every guest that an update saved. Can be run again for those that failed.

    :param started: is called as soon as every QEMU has been started, the moment for what
        does not bring guests back, such as telling about them.
    :param early: what has been done already.
    :param waits: is told, once, what is going on that is soon over: that is waited for.
    :param any_processor: names of guests that shall run though their processor lacks something
        in this kernel that it had.
    :raises PkernfsError: the store can't be mounted, or an update, a resume or a recovery is
        going on; or there is no such guest.
    """
    timeline = Timeline(machine)
    held = early.lock if early else None
    with update_lock(places, "resume", held, waits), contextlib.ExitStack() as stack:
        ago = _since_start_of_process()
        _mark_begin(machine, timeline, early, ago)
        with timeline.phase("mount") if early is None else contextlib.nullcontext():
            unmounted = mount_stores(machine, places.store)
        for name in any_processor:
            _take_any_processor(Guest(name, places))
        cut_off = tuple(guest.name for guest in all_guests(places) if boots.cut_off(guest, machine))
        if early is None and _is_idle(machine, places):
            from pkernfs.update.checked import CLEAN

            # A further region may be new: pkernfs-stores.service makes its store after this. Of
            # any other that can't be mounted nobody knows whether guests wait in it.
            failed = [it.what for it in unmounted.values() if not isinstance(it, NoStoreError)]
            return Outcome([], "; ".join(failed) or CLEAN, cut_off=cut_off)
        update = last_update(places, machine)
        if update is not None and directory(places, update).is_dir():
            timeline.open(directory(places, update) / "timeline.jsonl")
            stack.callback(timeline.close)
        for kernel in machine.boot_line.values(WENT_BACK):
            timeline.mark("moment", "went back", text=kernel)
        if machine.update_marker is None and not journal_of(places).exists():
            timeline.mark("moment", "reset")
        run = _Resume(places, timeline)
        if early is not None:
            run.add(early.launcher)
            run.finish(to_the_end=False)
        under_way = {it.launch.name for it in early.launcher.attempts} if early else set()
        run.take(_left_behind(machine, places))
        waiting = sort_out(machine, places, timeline, under_way)
        run.take(waiting.failed)
        run.start(waiting.launches)
        run.take(_pass_on(waiting.passing, timeline))
        started(timeline)
        run.finish(to_the_end=False)
        run.take(_let_go_on(waiting.standing, timeline))
        run.finish(to_the_end=True)
        results = [run.results[name] for name in sorted(run.results)]
        outcome = _finish(machine, places, results, update, timeline, unmounted)
        return dataclasses.replace(outcome, cut_off=cut_off)


def _is_idle(machine: Machine, places: Places) -> bool:
    """Is this an ordinary boot, and does nobody wait? Then no update's records are touched."""
    return (
        machine.update_marker is None
        and not journal_of(places).exists()
        and not any(saved_guests(places))
        and not any(started_guests(places))
    )


def _take_any_processor(guest: Guest) -> None:
    """Let a guest's QEMU start with as much of its processor as this kernel has.

    :raises PkernfsError: the guest does not wait.
    """
    from pkernfs.vmm.processor import not_enforced

    config = guest.config()
    if guest.saved() is None:
        raise PkernfsError(
            f"guest {guest.name} does not wait to be resumed", "pkernfs vm list shows which do"
        )
    guest.write_config(dataclasses.replace(config, processor=not_enforced(config.processor)))


def _left_behind(machine: Machine, places: Places) -> list[Resumed]:
    """Undo an update of this very kernel that was killed, if there is one."""
    if not journal_of(places).exists():
        return []
    from pkernfs.update import recover

    done = recover.undo(machine, places, "it was killed")
    if done is None:
        return []
    # A guest whose QEMU has ended after it was saved goes on from what was saved.
    failed = [each for each in done.failed if not Guest(each.guest, places).saved_file.exists()]
    hint = "pkernfs update --recover tries again"
    return [
        *(Resumed(name) for name in done.guests),
        *(Resumed(each.guest or "host", each.text, hint if each.again else "") for each in failed),
    ]


def _pass_on(passing: list[Standing], timeline: Timeline) -> list[Resumed]:
    """Start guests with passed-through devices; when that fails their files stay."""
    if not passing:
        return []
    import asyncio

    async def run() -> list[Resumed]:
        return list(await asyncio.gather(*(_pass_or_say(guest, timeline) for guest in passing)))

    return asyncio.run(run())


async def _pass_or_say(passing: Standing, timeline: Timeline) -> Resumed:
    import asyncio

    guest, child = passing.guest, None
    timeline.mark("begin", "start", guest.name)
    try:
        child = process.spawn(guest, guest.config(), incoming=True)
        await _pass(passing, timeline)
    except PkernfsError as error:
        if child is not None and not guest.started_file.exists():
            await asyncio.to_thread(process.kill, child)
        return Resumed(guest.name, error.what, error.hint or what_now(guest))
    return Resumed(guest.name)


async def _pass(passing: Standing, timeline: Timeline) -> None:
    from pkernfs.vmm.cpr_replay import handed_in
    from pkernfs.vmm.monitor import monitor, prepared

    # QEMU can't be talked to before it has its devices.
    async with (
        handed_in(passing.guest) as handed,
        monitor(passing.guest, START_S) as session,
        prepared(session, may_stay=True),
    ):
        timeline.mark("end", "start", passing.guest.name)
        await _load(session, passing, timeline, handed)


def _let_go_on(standing: list[Standing], timeline: Timeline) -> list[Resumed]:
    if not standing:
        return []
    import asyncio

    async def run() -> list[Resumed]:
        return list(await asyncio.gather(*(_restore_or_say(guest, timeline) for guest in standing)))

    return asyncio.run(run())


def _finish(
    machine: Machine,
    places: Places,
    results: list[Resumed],
    update: str | None,
    timeline: Timeline,
    unmounted: Mapping[Path, PkernfsError],
) -> Outcome:
    """What can wait until the guests run: their saved state, the store's check, the report."""
    for result in results:
        timeline.mark("result", "failed" if result.error else "ok", result.name, text=result.error)
        if not result.error:
            guest = Guest(result.name, places)
            guest.forget_saved()
            # In a full store it stays what it was: then the guest would be called lost, not off.
            with contextlib.suppress(OSError):
                boots.runs_here(guest, machine)
    running = sum(not result.error for result in results)
    # Guests of a store that can't be mounted are not known, but some there may be.
    reported.write(places, reported.Reported(len(results) + len(unmounted), running))
    from pkernfs.update import checked, devices, network, watchdog

    warning = watchdog.stop_hardware(machine, places, update)
    names = [result.name for result in results if not result.error]
    interfaces = tuple(network.put_back(machine, places, update, names, timeline) if update else ())
    devices.note(timeline)
    store = checked.check_store()
    if unmounted:
        store = "; ".join([*(error.what for error in unmounted.values()), store])
    timeline.mark("store", "ok" if store == checked.CLEAN else "damaged", text=store)
    if update is not None and directory(places, update).is_dir():
        from pkernfs.update import report

        try:
            report.write(places, update)
        except (PkernfsError, OSError) as error:
            warning = "; ".join(filter(None, [warning, f"there is no report: {error}"]))
    return Outcome(results, store, warning, interfaces)
