# SPDX-License-Identifier: GPL-2.0-only
"""In the next kernel: mount, check, start every saved guest, let it run.

Imports here count into the guests' blackout: what is not needed before QEMU starts is
imported after that, while QEMU is busy starting.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.host.stores import mount_stores
from pkernfs.update.lock import update_lock
from pkernfs.update.plan import directory, last_update
from pkernfs.update.timeline import Timeline
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest, Places, Saved, saved_guests

if TYPE_CHECKING:
    from pkernfs.vmm.monitor import Monitor

#: How long QEMU may take to start, and to load a state (seconds).
START_S = 120.0
LOAD_S = 120.0

CLEAN = "clean"


@dataclass(frozen=True)
class Resumed:
    """What became of a guest.

    :ivar error: why it does not run; empty when it does.
    :ivar hint: what to do about it.
    """

    name: str
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of everything.

    :ivar guests: by name.
    :ivar store: what the checker, which shares no code with the module, says of the store
        after all guests run: "clean", or what it found.
    """

    guests: list[Resumed]
    store: str

    @property
    def good(self) -> bool:
        """Does everything run, from a store in order?"""
        return self.store == CLEAN and not any(guest.error for guest in self.guests)


@dataclass(frozen=True)
class _Started:
    guest: Guest
    saved: Saved
    process: process.Process
    fresh: bool


def _since_start_of_process() -> int:
    """How long this process has been there, nanoseconds (exact to a clock tick, 10 ms)."""
    import os

    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    began = int(fields[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began)


def check_files(guest: Guest) -> Saved:
    """Check that a guest's files are what was written at the update.

    :raises PkernfsError: one is not.
    """
    config = guest.config()
    saved = guest.saved()
    if saved is None:
        raise PkernfsError(f"guest {guest.name} does not wait to be resumed")
    for path, size in ((guest.ram, config.ram_bytes), (guest.state, saved.state_bytes)):
        found = path.stat().st_size if path.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise PkernfsError(f"guest {guest.name}: {path} {what}")
    return saved


def _start(guest: Guest, saved: Saved) -> _Started:
    """Start QEMU for a saved guest, unless the one that saved it is still there."""
    old = process.running(guest)
    if old is not None:
        return _Started(guest, saved, old, fresh=False)
    return _Started(guest, saved, process.spawn(guest, guest.config(), incoming=True), fresh=True)


async def _restore(started: _Started, timeline: Timeline) -> None:
    from pkernfs.vmm.monitor import monitor, prepared

    name = started.guest.name
    async with monitor(started.guest, START_S) as session:
        if not started.fresh and await session.status() != "inmigrate":
            await _go_on(session, started)
            return
        async with prepared(session):
            timeline.mark("end", "start", name)
            await _load(session, started, timeline)


async def _load(session: Monitor, started: _Started, timeline: Timeline) -> None:
    from pkernfs.vmm.monitor import load

    name, run = started.guest.name, started.saved.was_running
    timeline.mark("begin", "load state", name)
    done, resumed = await load(session, started.guest.state, LOAD_S, run=run)
    timeline.mark("end", "load state", name, real_ns=done.real_ns)
    if resumed is not None:
        timeline.mark("begin", "run", name, real_ns=min(done.real_ns, resumed.real_ns))
        timeline.mark("end", "run", name, real_ns=resumed.real_ns)
        timeline.mark("moment", "running", name, real_ns=resumed.real_ns)


async def _go_on(session: Monitor, started: _Started) -> None:
    """The QEMU that saved the guest never went away: let it run on."""
    from pkernfs.vmm.monitor import go_on, unprepare

    await go_on(session, run=started.saved.was_running)
    await unprepare(session)


async def _restore_or_end(started: _Started, timeline: Timeline) -> Resumed:
    """Restore one guest; when that fails its QEMU is ended and its files stay."""
    import asyncio

    name = started.guest.name
    try:
        await _restore(started, timeline)
    except PkernfsError as error:
        if started.fresh:
            await asyncio.to_thread(process.kill, started.process)
        return Resumed(name, error.what, error.hint or "its files are kept: pkernfs resume")
    return Resumed(name)


def _start_all(guests: list[Guest], timeline: Timeline) -> tuple[list[_Started], list[Resumed]]:
    started, failed, checked = [], [], []
    with timeline.phase("verify"):
        for guest in guests:
            try:
                checked.append((guest, check_files(guest)))
            except PkernfsError as error:
                failed.append(Resumed(guest.name, error.what, error.hint))
    for guest, saved in checked:
        timeline.mark("begin", "start", guest.name)
        try:
            started.append(_start(guest, saved))
        except PkernfsError as error:
            failed.append(Resumed(guest.name, error.what, error.hint))
    return started, failed


def resume(
    machine: Machine, places: Places, started: Callable[[Timeline], None] = lambda _: None
) -> Outcome:
    """Bring back every guest that an update saved. Can be run again for those that failed.

    :param started: is called as soon as every QEMU has been started, the moment for what
        does not bring guests back, such as telling about them.
    :raises PkernfsError: the store can't be mounted.
    """
    timeline = Timeline(machine)
    ago = _since_start_of_process()
    with update_lock(places), contextlib.ExitStack() as stack:
        timeline.mark("moment", "kernel's clock", ago_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        timeline.mark("end", "kernel", ago_ns=ago)
        timeline.mark("begin", "interpreter", ago_ns=ago)
        timeline.mark("end", "interpreter")
        with timeline.phase("mount"):
            unmounted = mount_stores(machine, places.store)
        update = last_update(places, machine)
        if update is not None and directory(places, update).is_dir():
            timeline.open(directory(places, update) / "timeline.jsonl")
            stack.callback(timeline.close)
        begun, failed = _start_all(list(saved_guests(places)), timeline)
        begun += _left_behind(machine, places, update)
        started(timeline)
        results = sorted(failed + _run_all(begun, timeline), key=lambda result: result.name)
        return _finish(places, results, update, timeline, unmounted)


def _left_behind(machine: Machine, places: Places, update: str | None) -> list[_Started]:
    """Guests that an update of this very kernel stopped before it was killed.

    The next kernel that it may have loaded is forgotten: a reboot would start it.
    """
    if update is None or machine.update_marker == update:
        return []
    from pkernfs.host import kexec
    from pkernfs.update import plan as planning
    from pkernfs.update import timeline

    plan = planning.read(places, update)
    records = timeline.load(directory(places, update) / "timeline.jsonl")
    given_up = any(record.event == "outcome" for record in records)
    if plan.boot_id_before != machine.boot_id or given_up:
        return []
    kexec.unload()
    found = []
    for planned in plan.guests:
        guest = Guest(planned.name, places)
        child = process.running(guest)
        if child is not None and planned.was_running and not guest.saved_file.exists():
            found.append(_Started(guest, Saved(update, True, 0), child, fresh=False))
    return found


def _run_all(started: list[_Started], timeline: Timeline) -> list[Resumed]:
    if not started:
        return []
    import asyncio

    async def run() -> list[Resumed]:
        return list(await asyncio.gather(*(_restore_or_end(guest, timeline) for guest in started)))

    return asyncio.run(run())


def _finish(
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
            Guest(result.name, places).forget_saved()
    from pkernfs.update import devices

    devices.note(timeline)
    store = check_store()
    if unmounted:
        store = "; ".join([*(error.what for error in unmounted.values()), store])
    timeline.mark("store", "ok" if store == CLEAN else "damaged", text=store)
    if update is not None and directory(places, update).is_dir():
        from pkernfs.update import report

        report.write(places, update)
    return Outcome(results, store)


def check_store() -> str:
    """Check the metadata of every region; "clean", or what is wrong."""
    from pkernfs.store.check import check
    from pkernfs.store.findings import Verdict
    from pkernfs.store.regions import open_region, region_names

    wrong = []
    for name in region_names():
        try:
            with open_region(name) as image:
                result = check(image)
        except PkernfsError as error:
            wrong.append(error.what)
            continue
        if result.verdict is not Verdict.CLEAN:
            wrong.append(f"{name}: {result.verdict}: {'; '.join(map(str, result.findings[:3]))}")
    return "; ".join(wrong) or CLEAN
