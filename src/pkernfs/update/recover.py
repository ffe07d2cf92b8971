# SPDX-License-Identifier: GPL-2.0-only
"""The way back from an update that was killed: everything runs as if it had not been.

Used by the guard of an update at once (pkernfs.update.guard), by ``pkernfs update
--recover`` and by ``pkernfs resume``. What there is to undo is in the journal; every step
may be made again, so a recovery that was killed itself is simply repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host import freeze, kexec
from pkernfs.host.devices import Control
from pkernfs.host.machine import Machine
from pkernfs.update import journal
from pkernfs.update.journal import Begun
from pkernfs.update.lock import update_lock
from pkernfs.update.plan import directory
from pkernfs.update.timeline import Timeline
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest, Places
from pkernfs.vmm.monitor import go_on, monitor, unprepare

#: Until a QEMU has greeted (seconds). The update's own session ended with it.
_GREET_S = 30.0


@dataclass(frozen=True)
class Failure:
    """Something that could not be undone.

    :ivar guest: whose it is; empty: the host's.
    :ivar again: can it be tried again? Not for a guest whose QEMU has ended.
    """

    guest: str
    text: str
    again: bool = True


@dataclass(frozen=True)
class Recovered:
    """What became of an update that was killed.

    :ivar update: its id; empty when it was killed before it had one.
    :ivar guests: the guests that run on, by name. A guest that was paused before the update
        is paused again.
    :ivar failed: what could not be undone.
    """

    update: str
    guests: tuple[str, ...]
    failed: tuple[Failure, ...]

    @property
    def unfinished(self) -> bool:
        """Is there something that can be tried again?"""
        return any(failure.again for failure in self.failed)

    @property
    def failures(self) -> str:
        """What could not be undone, in one line."""
        return "; ".join(failure.text for failure in self.failed)

    def summary(self) -> str:
        """One line for a person."""
        name = f"update {self.update}" if self.update else "an update"
        if self.failed:
            return f"{name} was ended; NOT all of it is undone: {self.failures}"
        who = ", ".join(self.guests) or "no guest was concerned"
        return f"{name} was ended and is undone; as before: {who}"


async def _let_run(guest: Guest, run: bool) -> None:
    async with monitor(guest, _GREET_S) as session:
        await go_on(session, run=run)
        await unprepare(session)
    guest.forget_saved()


async def _let_all_run(
    places: Places, begun: Begun, timeline: Timeline
) -> tuple[list[str], list[Failure]]:
    """The guests as they were, and what failed; each one's result is recorded."""
    fine, failed = [], []

    async def one(guest: Guest, run: bool) -> None:
        if process.running(guest) is None:
            failed.append(Failure(guest.name, f"guest {guest.name}: its QEMU has ended", False))
            return
        try:
            await _let_run(guest, run)
        except PkernfsError as error:
            failed.append(Failure(guest.name, error.what))
            return
        fine.append(guest.name)
        if run:
            timeline.mark("moment", "running", guest.name)
        timeline.mark("result", "ok", guest.name)

    await asyncio.gather(*(one(Guest(name, places), run) for name, run in begun.guests.items()))
    for failure in failed:
        timeline.mark("result", "failed", failure.guest, text=failure.text)
    return sorted(fine), failed


def undo(machine: Machine, places: Places, why: str) -> Recovered | None:
    """Undo what the journal says; the caller holds the lock, so that update is dead.

    Disks come first, because a guest that runs on writes to them; but guests, because they
    wait, wait for them no longer than a limit.

    :param why: what ended the update, for the report, if the journal does not say it.
    :returns: what was done; None when there is nothing to undo.
    """
    begun = journal.read(places)
    if begun is None:
        journal.remove(places)  # there may be one that has no step
        return None
    frozen = freeze.thaw(begun.frozen)
    timeline = Timeline(machine)
    fine, unwell = asyncio.run(_let_all_run(places, begun, timeline))
    # From here on nobody waits.
    frozen = freeze.thaw(frozen[::-1]) if frozen else []
    failed = [Failure("", f"{point} may still be frozen") for point in frozen] + unwell
    control = Control()
    if begun.armed and control.armed:
        try:
            control.disarm()
        except PkernfsError as error:
            failed.append(Failure("", error.what))
    if begun.loaded:
        kexec.unload()
    result = Recovered(begun.update, tuple(fine), tuple(failed))
    if not result.unfinished:
        journal.remove(places)
    _report(timeline, places, result, begun.why or why)
    return result


def _report(timeline: Timeline, places: Places, result: Recovered, why: str) -> None:
    """Say in the update's records how it ended; a store that can't be written is no reason
    to fail."""
    if not result.update or not directory(places, result.update).is_dir():
        return
    text = why + (f"; not undone: {result.failures}" if result.failed else "")
    try:
        timeline.open(directory(places, result.update) / "timeline.jsonl")
        timeline.mark("outcome", "rolled back", text=text)
        timeline.close()
    except OSError:
        return


def recover(
    machine: Machine, places: Places, waits: Callable[[str], None] | None = None
) -> Recovered | None:
    """Undo what an update left behind that is dead.

    :param waits: see :func:`pkernfs.update.lock.update_lock`.
    :returns: what was done; None when no update left anything.
    :raises PkernfsError: an update is alive, or is being undone already.
    """
    with update_lock(places, "recovery", waits=waits):
        return undo(machine, places, "it was killed")
