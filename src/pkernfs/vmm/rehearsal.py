# SPDX-License-Identifier: GPL-2.0-only
"""A guest's successor, started in this kernel while the guest lives, and ended at once.

What does not start here would not start in the next kernel, where the guest waits for it. And
what the successor has is compared with what the running QEMU has by now
(:mod:`pkernfs.vmm.living`): a disk that was switched to another image since the start would be
opened as it was then, under memory that knows a newer one. Where it can be done
(:mod:`pkernfs.vmm.following`) the successor gets what the disk has now.

The rehearsed QEMU waits for a state that never comes. It has memory of its own, and is attached
to nothing (:mod:`pkernfs.vmm.rehearsal_words`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, blocker, note
from pkernfs.vmm import definitions, launch, living, process, processor
from pkernfs.vmm.command import start_arguments
from pkernfs.vmm.config import Guest, GuestConfig, Places
from pkernfs.vmm.differences import Difference, chain, differences, replaced
from pkernfs.vmm.following import followed
from pkernfs.vmm.living import Contents
from pkernfs.vmm.monitor import Monitor, monitor
from pkernfs.vmm.rehearsal_words import rehearsed

#: Ids of findings begin so; the guest's name follows.
ID = "rehearsal."

#: Until QEMU greets (seconds): under emulation its start alone takes many.
_START_S = 120.0
#: Until it is gone when it is killed.
_END_S = 20.0

#: Starts QEMU, and ends it when nobody holds the other end of standard input any more: also
#: when this process is killed. prctl(2)'s PR_SET_PDEATHSIG does not survive QEMU's change to
#: another user. The descriptor is closed so that QEMU's end is seen at the socket.
_KEEPER = f"""
scratch=$1
cd -- "$2" 2>/dev/null || cd /
shift 2
"$@" </dev/null &
exec {launch.MONITOR_FD}<&-
read -r _
kill -9 $!
wait
rm -rf -- "$scratch"
"""

_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


def _slot() -> asyncio.Semaphore:
    """So many QEMUs start at a time as there are processors."""
    loop = asyncio.get_running_loop()
    return _slots.setdefault(loop, asyncio.Semaphore(len(os.sched_getaffinity(0))))


class _NotStartedError(PkernfsError):
    """The successor does not start."""


@contextlib.asynccontextmanager
async def _successor(
    guest: Guest, config: GuestConfig, arguments: Sequence[str], scratch: Path
) -> AsyncIterator[Monitor]:
    """Have a session with a successor within the block; its QEMU is gone afterwards.

    :param arguments: QEMU's, without what belongs to one start.
    :param scratch: directory for its socket and log, which is removed.
    :raises _NotStartedError: it does not start; QEMU's words are in it.
    """
    stand_in = Guest(guest.name, Places(scratch, scratch), scratch)
    stand_in.runtime.mkdir()
    detached = dataclasses.replace(config, arguments=tuple(arguments), devices=())
    argv = start_arguments(detached, launch.MONITOR_FD, incoming=True)
    keeper, line = _spawn([str(scratch), config.directory, *argv], stand_in)
    try:
        async with contextlib.AsyncExitStack() as stack:
            try:
                session = await stack.enter_async_context(monitor(stand_in, _START_S))
            except PkernfsError as error:
                raise _NotStartedError(_words(stand_in) or error.what) from error
            yield session
    finally:
        os.close(line)
        _wait(keeper)


def _wait(keeper: int) -> None:
    """Wait until a rehearsed QEMU is gone, but not for one that hangs in a disk: that ends yet."""
    deadline = time.monotonic() + _END_S
    while os.waitpid(keeper, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)


def _spawn(words: Sequence[str], stand_in: Guest) -> tuple[int, int]:
    """Start a QEMU and who ends it.

    :param words: of the keeper; the first one is the directory that it removes.
    :returns: the keeper's process, and what has to be closed for it to end both.
    :raises PkernfsError: there is no shell.
    """
    log = os.open(stand_in.log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    reading, writing = os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(stand_in.socket))
        listener.listen(1)
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _KEEPER, "sh", *words],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), launch.MONITOR_FD),
            ],
            # Away from the terminal, whose Ctrl-C would end the keeper alone.
            setsid=True,
            setsigmask=(),
        )
    except OSError as error:
        os.close(writing)
        shutil.rmtree(words[0], ignore_errors=True)
        raise PkernfsError(f"can't rehearse {stand_in.name}: {error.strerror}") from error
    finally:
        listener.close()
        os.close(reading)
        os.close(log)
    return pid, writing


def _words(stand_in: Guest) -> str:
    """What a QEMU that did not start said, in one line."""
    said = process.log_tail(stand_in, 20).split("; ")
    return "; ".join(line for line in said if ": warning: " not in line)


@dataclass(frozen=True)
class Rehearsal:
    """What came of a rehearsal.

    :ivar config: how the successor is started.
    :ivar differences: what it would have otherwise.
    :ivar follows: disks whose images differ from what the guest was started with, and which
        the successor gets as they are now.
    """

    config: GuestConfig
    differences: tuple[Difference, ...] = ()
    follows: tuple[str, ...] = ()


async def _tried(guest: Guest, config: GuestConfig, running: Contents) -> Contents:
    """What a guest's successor has, which is started for that and ended.

    :raises _NotStartedError: it does not start.
    :raises PkernfsError: it can't be asked.
    """
    guest.places.run.mkdir(parents=True, exist_ok=True)
    async with _slot():
        scratch = Path(tempfile.mkdtemp(prefix=".try-", dir=guest.places.run))
        words = rehearsed(config.arguments, scratch)
        async with _successor(guest, config, words.arguments, scratch) as session:
            return words.complete(await living.ask(session), running)


async def rehearse(guest: Guest, running: Contents) -> Rehearsal:
    """Start a guest's successor, compare, and end it.

    :param running: what the running QEMU has, see :func:`pkernfs.vmm.living.ask`.
    :raises PkernfsError: the successor can't be asked.
    """
    config = guest.config()
    other_files = _replaced(guest, config, running)
    config = dataclasses.replace(
        config, processor=processor.written_out(config.arguments, running.processor)
    )
    try:
        written = await _tried(guest, config, running)
        unknown = processor.more(running.processor, written.processor)
        if unknown:  # by a QEMU that is newer than the one that runs
            line = processor.written_out(config.arguments, running.processor, unknown)
            config = dataclasses.replace(config, processor=line)
            written = await _tried(guest, config, running)
        found = differences(running, written, config.directory)
        if found and not other_files:
            follows = await _following(guest, config, running, written)
            if follows is not None:
                return follows
    except _NotStartedError as error:
        hint = "mend that; or shut the guest down and start it with what it is to have"
        found = [Difference(f"its successor does not start: {error.what}", hint)]
        # Who goes on in spite of that gets what was typed.
        config = dataclasses.replace(config, processor="")
    return Rehearsal(config, (*other_files, *found))


def _replaced(guest: Guest, config: GuestConfig, running: Contents) -> list[Difference]:
    child = process.running(guest)
    if child is None:
        return []
    return replaced(running.files, living.opened(child.pid), config.directory)


async def _following(
    guest: Guest, config: GuestConfig, running: Contents, written: Contents
) -> Rehearsal | None:
    """A successor with the images of now; None: that is none without a difference."""
    arguments = followed(config.arguments, running.disks, written.disks, config.directory)
    if arguments is None:
        return None
    config = dataclasses.replace(config, arguments=arguments)
    try:
        found = await _tried(guest, config, running)
    except _NotStartedError:
        return None
    if differences(running, found, config.directory):
        return None
    names = [name for name, disk in running.disks.items() if disk != written.disks[name]]
    return Rehearsal(
        config,
        follows=tuple(f"disk {name}: {chain(running.disks[name].images)}" for name in names),
    )


def finding_of(guest: Guest, it: Rehearsal) -> Finding | None:
    """What has to be said of a rehearsal; None: nothing."""
    if it.follows:
        text = f"guest {guest.name} goes on with what it has now, {'; '.join(it.follows)}"
        return note("rehearsal", text, id=ID + guest.name)
    if not it.differences:
        return None
    text = "; ".join(difference.text for difference in it.differences)
    hints = dict.fromkeys(difference.hint for difference in it.differences)
    return blocker(
        "rehearsal",
        f"guest {guest.name}: {text}",
        "; ".join(hints),
        ID + guest.name,
        overridable=True,
    )


async def finding(guest: Guest, running: Contents) -> Finding | None:
    """Whether a guest would be there in the next kernel as it is now; None: it would.

    :param running: what its running QEMU has, see :func:`pkernfs.vmm.living.ask`.
    :raises PkernfsError: the successor can't be asked.
    """
    return finding_of(guest, await rehearse(guest, running))


async def examine(sessions: Iterable[Monitor], *, keep: bool) -> list[Finding]:
    """Rehearse the guests of an update.

    :param keep: write down what the successors are started with, their processors among it.
    :raises PkernfsError: one can't be asked.
    """
    asked = [(session.guest, await living.ask(session)) for session in sessions]
    results = await asyncio.gather(*(rehearse(guest, contents) for guest, contents in asked))
    found = []
    for (guest, _), result in zip(asked, results, strict=True):
        if keep and result.config != guest.config():
            guest.write_config(result.config)
        if keep and result.follows:
            definitions.keep_up(guest)
        found.append(finding_of(guest, result))
    return [each for each in found if each is not None]


def own(override: frozenset[str]) -> frozenset[str]:
    """Those ids of findings that are about rehearsals."""
    return frozenset(id for id in override if id.startswith(ID))
