# SPDX-License-Identifier: GPL-2.0-only
"""Which guests wait to be resumed, and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.update.timeline import Timeline
from pkernfs.vmm import fingerprint, process
from pkernfs.vmm.config import Guest, Places, Saved, saved_guests, started_guests
from pkernfs.vmm.launch import Launch

KEPT = "its files are kept: pkernfs resume"
_ENDED = "QEMU ended after it was told to let the guest run: what was saved is too old to be used"


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
class Standing:
    """A saved guest whose QEMU is there already."""

    guest: Guest
    saved: Saved


#: What to do about a guest whose memory did not outlive a reset.
_CHANGED = "nothing can go on with that; pkernfs vm start {name} --anew boots it from its disks"


def check_files(guest: Guest, machine: Machine) -> Saved:
    """Check that a guest's files are what was written at the update.

    Their content too, if another kernel runs than the update's: then there was a reset.

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
    unkept = saved.update != machine.update_marker and process.running(guest) is None
    if unkept and fingerprint.differs(guest, config, saved.fingerprint, saved.update):
        raise PkernfsError(
            f"guest {guest.name}: its memory or state is not what update {saved.update} saved:"
            " it did not outlive the reset",
            _CHANGED.format(name=guest.name),
        )
    return saved


def what_now(guest: Guest) -> str:
    """What to do about a guest that was not brought back."""
    from pkernfs.vmm.processor import lost

    if guest.started_file.exists() and process.running(guest) is None:
        return f"it can only be started from its disks: pkernfs vm start {guest.name}"
    if lost(guest):
        return (
            f"{KEPT} in a kernel that has that; or to let it run without:"
            f" pkernfs resume --any-processor {guest.name}"
        )
    return KEPT


@dataclass(frozen=True)
class Waiting:
    """Guests that wait, by what has to be done; ``passing`` have passed-through devices."""

    launches: list[tuple[Launch, bool]]
    standing: list[Standing]
    passing: list[Standing]
    failed: list[Resumed]


def sort_out(machine: Machine, places: Places, timeline: Timeline, under_way: set[str]) -> Waiting:
    """Check every guest that waits to be resumed, but for those that are under way."""
    done = Waiting([], [], [], [])
    waiting = [guest for guest in saved_guests(places) if guest.name not in under_way]
    started = [guest for guest in started_guests(places) if guest.name not in under_way]
    if under_way and not waiting and not started:
        return done
    from pkernfs.vmm.protocol import launch_of

    with timeline.phase("verify"):
        for guest in waiting:
            try:
                saved = check_files(guest, machine)
                if process.running(guest) is not None:
                    done.standing.append(Standing(guest, saved))
                elif guest.config().devices:
                    done.passing.append(Standing(guest, saved))
                else:
                    done.launches.append((launch_of(guest), saved.was_running))
            except PkernfsError as error:
                done.failed.append(Resumed(guest.name, error.what, error.hint))
        for guest in started:
            _add_started(guest, done)
    return done


def _add_started(guest: Guest, done: Waiting) -> None:
    """A guest that a resume before this one let run, but did not see run."""
    try:
        saved = guest.started()
    except PkernfsError as error:
        done.failed.append(Resumed(guest.name, error.what, error.hint))
        return
    if saved is not None and process.running(guest) is not None:
        done.standing.append(Standing(guest, saved))
    else:
        done.failed.append(Resumed(guest.name, f"guest {guest.name}: {_ENDED}", what_now(guest)))
