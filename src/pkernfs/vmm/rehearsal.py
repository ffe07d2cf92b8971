# SPDX-License-Identifier: GPL-2.0-only
"""A guest's successor, started in this kernel while the guest lives, and ended at once.

What does not start here would not start in the next kernel, where the guest waits for it. And
what the successor has is compared with what the running QEMU has by now
(:mod:`pkernfs.vmm.living`): a disk that was switched to another image since the start would be
opened as it was then, under memory that knows a newer one.

The rehearsed QEMU waits for a state that never comes. It has memory of its own, and is attached
to nothing (:mod:`pkernfs.vmm.rehearsal_words`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, blocker
from pkernfs.vmm import launch, living, process
from pkernfs.vmm.command import start_arguments
from pkernfs.vmm.config import Guest, GuestConfig, Places
from pkernfs.vmm.living import Contents, Difference
from pkernfs.vmm.monitor import Monitor, monitor
from pkernfs.vmm.rehearsal_words import rehearsed

#: Ids of findings begin so; the guest's name follows.
ID = "rehearsal."

#: Until QEMU greets (seconds): under emulation its start alone takes many.
_START_S = 120.0

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
        os.waitpid(keeper, 0)


def _spawn(words: Sequence[str], stand_in: Guest) -> tuple[int, int]:
    """Start a QEMU and who ends it.

    :param words: of the keeper.
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


async def differences(guest: Guest, running: Contents) -> list[Difference]:
    """Start a guest's successor, compare, and end it.

    :param running: what the running QEMU has.
    :raises PkernfsError: the successor can't be asked.
    """
    config = guest.config()
    found = []
    child = process.running(guest)
    if child is not None:
        open_now = living.opened(child.pid)
        found = living.replaced(running.files, open_now, config.directory)
    guest.places.run.mkdir(parents=True, exist_ok=True)
    async with _slot():
        scratch = Path(tempfile.mkdtemp(prefix=".try-", dir=guest.places.run))
        words = rehearsed(config.arguments, scratch)
        try:
            async with _successor(guest, config, words.arguments, scratch) as session:
                next_one = words.complete(await living.ask(session), running)
        except _NotStartedError as error:
            hint = "mend that; or shut the guest down and start it with what it is to have"
            return [*found, Difference(f"its successor does not start: {error.what}", hint)]
    return [*found, *living.differences(running, next_one, config.directory)]


async def finding(guest: Guest, running: Contents) -> Finding | None:
    """Whether a guest would be there in the next kernel as it is now; None: it would.

    :param running: what its running QEMU has, see :func:`pkernfs.vmm.living.ask`.
    :raises PkernfsError: the successor can't be asked.
    """
    found = await differences(guest, running)
    if not found:
        return None
    text = "; ".join(difference.text for difference in found)
    hints = dict.fromkeys(difference.hint for difference in found)
    return blocker(
        "rehearsal",
        f"guest {guest.name}: {text}",
        "; ".join(hints),
        ID + guest.name,
        overridable=True,
    )


async def examine(sessions: Iterable[Monitor]) -> list[Finding]:
    """Rehearse the guests of an update.

    :raises PkernfsError: one can't be asked.
    """
    asked = [(session.guest, await living.ask(session)) for session in sessions]
    found = await asyncio.gather(*(finding(guest, contents) for guest, contents in asked))
    return [each for each in found if each is not None]


def own(override: frozenset[str]) -> frozenset[str]:
    """Those ids of findings that are about rehearsals."""
    return frozenset(id for id in override if id.startswith(ID))
