# SPDX-License-Identifier: GPL-2.0-only
"""Would an update of this host work right now? What pkernfs.host.doctor can't ask: the guests,
the room for their states, what an earlier update left, and the way back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host import devices_doctor, hardware_watchdog
from pkernfs.host import doctor as host_doctor
from pkernfs.host.doctor import Finding, Status, blocker, hint_of, note, ok
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from pkernfs.mountinfo import FSTYPE
from pkernfs.update import journal, outsiders, units, watchdog
from pkernfs.update import plan as planning
from pkernfs.update.lock import check_free
from pkernfs.update.plan import PlannedGuest
from pkernfs.vmm import boots, living, nested, process, rehearsal
from pkernfs.vmm import doctor as vmm_doctor
from pkernfs.vmm.config import Guest, Places, all_guests
from pkernfs.vmm.monitor import monitor, settings_left, why_not_saved

#: A QEMU that nobody has prepared names what forbids a migration to another host; not all
#: of that forbids an update.
_ASKS_PROPERLY = (
    "pkernfs update --dry-run asks QEMU as an update does; when it refuses too, remove that"
    " device, or switch the guest off for the update"
)


def _leftovers(places: Places) -> Iterator[Finding]:
    topic = "leftovers"
    begun = journal.read(places)
    if begun is None:
        yield ok(topic, "no update was killed and is not undone")
        return
    parts = [f"guests {', '.join(begun.guests)}"] if begun.guests else []
    parts += [f"frozen: {', '.join(map(str, begun.frozen))}"] if begun.frozen else []
    parts += ["a kernel is loaded"] if begun.loaded else []
    yield blocker(
        topic,
        "an update was killed and is not undone: " + ("; ".join(parts) or "nothing was touched"),
        "pkernfs update --recover",
        "leftovers",
    )


def _store(machine: Machine, places: Places) -> Iterator[Finding]:
    from pkernfs.update import checked

    if machine.filesystem_of(places.store) != FSTYPE:
        return
    found = checked.check_store()
    if found == checked.CLEAN:
        yield ok("store", "its checker finds it clean")
    else:
        yield blocker(
            "store",
            f"its checker says: {found}",
            "pkernfs check says more; save what is in it before anything else",
            "store.damaged",
            overridable=True,
        )


def _watchdog(machine: Machine, places: Places) -> Iterator[Finding]:
    topic = "watchdog"
    try:
        kernel = watchdog.running_kernel(machine, places)
        watchdog.words(kernel, watchdog.DEFAULT_S)
    except PkernfsError as error:
        yield note(
            topic, f"an update has no way back: {error.what}", error.hint, id="watchdog.none"
        )
        return
    yield ok(topic, f"without guests after {watchdog.DEFAULT_S:g} s, back to {kernel.image}")


async def _guest(
    guest: Guest, machine: Machine, kernel: Kernel | None
) -> tuple[list[Finding], PlannedGuest | None]:
    """Ask a guest's QEMU; it is told nothing, so that this may be killed at any time."""
    topic, id = "guest", f"guest.{guest.name}"
    found = []
    try:
        async with monitor(guest) as session:
            left = await settings_left(session)
            if left:
                found.append(_left_on(guest, left))
            reason = await why_not_saved(session)
            planned = await planning.measure_guest(session)
            status = await session.status()
            passes = session.passes_devices
            contents = await living.ask(session)
            if kernel is not None:
                found += await nested.examine([session], machine, kernel)
        rehearsed = await rehearsal.finding(guest, contents)
        found += [rehearsed] if rehearsed is not None else []
    except PkernfsError as error:
        hint = error.hint or "pkernfs vm list"
        return [*found, blocker(topic, error.what, hint, id)], None
    # A QEMU that nobody has prepared says what forbids an ordinary migration.
    if reason is not None and not passes:
        text = f"guest {guest.name} can't be saved: {reason}"
        return [*found, blocker(topic, text, _ASKS_PROPERLY, id)], None
    takes = f"its state takes at most {planned.state_limit >> 20} MiB"
    if reason is not None:
        text = f"{guest.name} passes devices through, so no other host could take it: {reason}"
        found.append(note(topic, text, _ASKS_PROPERLY, id=id))
    if not planned.was_running:
        found.append(note(topic, f"{guest.name} is {status}: it stays so; {takes}", id=id))
    elif reason is None:
        found.append(ok(topic, f"{guest.name} can be saved, {takes}"))
    return found, planned


def _left_on(guest: Guest, left: list[str]) -> Finding:
    how = "--dry-run" if journal.read(guest.places) is None else "--recover"
    return note(
        "guest",
        f"something that was killed has left {' and '.join(left)} set on guest {guest.name}: "
        "a migration to another host would leave its memory out",
        f"pkernfs update {how} takes that back",
        id=f"settings.{guest.name}",
    )


def _unused(machine: Machine, guest: Guest) -> Finding | None:
    """About a guest without a QEMU, or one that can't be started again."""
    runs = process.running(guest) is not None
    id = f"guest.{guest.name}"
    try:
        guest.config()
        saved = guest.saved()
    except PkernfsError as error:
        hint = error.hint or f"pkernfs vm stop {guest.name} --force --delete gives it up"
        text = f"guest {guest.name}: {error.what}"
        if runs:
            return blocker("guest", f"{text}: the next kernel could not start it", hint, id)
        return note("guest", text, hint, id=id)
    if not runs and saved is not None:
        text = f"{guest.name} waits to be resumed, saved by update {saved.update}"
        if saved.update != machine.update_marker:
            text += "; this kernel is not the one that it started"
        return note("guest", text, "pkernfs resume", id=id)
    if boots.cut_off(guest, machine):
        hint = boots.HINT.format(name=guest.name)
        return note("guest", boots.what_happened(guest), hint, id=id)
    return None


def guests(machine: Machine, places: Places, kernel: Kernel | None) -> list[Finding]:
    """Ask every guest whether it can be saved now, and whether all states find room."""
    found: list[Finding] = []
    running = []
    for guest in all_guests(places):
        finding = _unused(machine, guest)
        if finding is not None:
            found.append(finding)
        elif process.running(guest) is not None:
            running.append(guest)

    async def ask() -> list[tuple[list[Finding], PlannedGuest | None]]:
        return list(await asyncio.gather(*(_guest(guest, machine, kernel) for guest in running)))

    asked = asyncio.run(ask())
    found += [finding for findings, _ in asked for finding in findings]
    try:
        planning.check_space(places, tuple(planned for _, planned in asked if planned))
    except (PkernfsError, OSError) as error:
        hint = error.hint if isinstance(error, PkernfsError) else "pkernfs mount"
        found.append(blocker("space", str(error), hint, "space"))
    else:
        found.append(ok("space", f"there is room for the states of {len(running)} guest(s)"))
    return found


def host(machine: Machine, places: Places, kernel: Kernel | None) -> list[Finding]:
    """Everything but the guests, which an update asks by itself; nothing is changed."""
    return [
        *host_doctor.examine(machine, places.store, kernel),
        *vmm_doctor.examine(machine, kernel),
        *devices_doctor.examine(machine, kernel),
        *_store(machine, places),
        *_watchdog(machine, places),
        *hardware_watchdog.examine(machine, kernel.release if kernel else machine.kernel),
        *units.examine(machine),
        *outsiders.examine(machine, places),
    ]


def _updates(
    machine: Machine, places: Places, kernel: Kernel | None, *, ask: bool
) -> list[Finding]:
    """What concerns updates that were, and guests: neither is to be seen while one goes on.

    The lock is not taken for it: nobody is refused because somebody asks.

    :param ask: talk to the guests?
    """
    try:
        check_free(places)
        found = [*_leftovers(places), *(guests(machine, places, kernel) if ask else [])]
        check_free(places)
    except PkernfsError as error:
        return [blocker("guests", error.what, error.hint, "update.running")]
    return found


def examine(machine: Machine, places: Places, kernel: Kernel | None) -> list[Finding]:
    """Answer every question; nothing is changed."""
    ask = os.geteuid() == 0 and machine.filesystem_of(places.store) == FSTYPE
    return [*host(machine, places, kernel), *_updates(machine, places, kernel, ask=ask)]


def check(findings: Iterable[Finding], override: frozenset[str]) -> None:
    """Refuse an update for a blocker that is not overridden.

    :param override: ids of findings that the user takes upon himself.
    :raises PkernfsError: the first such blocker; or an id that can't be overridden.
    """
    blockers = [finding for finding in findings if finding.status is Status.BLOCKER]
    ids = {finding.id for finding in blockers}
    # A virtual machine that was named may have ended since.
    unknown = sorted(id for id in override - ids if not id.startswith(outsiders.FOREIGN))
    if unknown:
        raise UsageError(
            f"--override {unknown[0]}: doctor finds no such blocker",
            f"it finds: {', '.join(sorted(ids)) or 'none'}",
        )
    for finding in blockers:
        if finding.id in override and not finding.overridable:
            raise UsageError(f"{finding.id} can't be overridden: {finding.text}", finding.hint)
    left = [finding for finding in blockers if finding.id not in override]
    if left and left[0].topic == outsiders.TOPIC:
        raise outsiders.refusal(left)
    if left:
        more = f" (and {len(left) - 1} more: pkernfs doctor)" if len(left) > 1 else ""
        raise PkernfsError(left[0].text + more, hint_of(left[0]))
