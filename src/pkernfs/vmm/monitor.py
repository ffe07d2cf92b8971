# SPDX-License-Identifier: GPL-2.0-only
"""Talking to a running QEMU by QMP: pause and save, load and run.

What is sent, and why it is cpr-reboot with x-ignore-shared (docs/operations.md has the
measurements): see :func:`save` and :mod:`pkernfs.vmm.protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from pkernfs.errors import PartlyError, PkernfsError
from pkernfs.vmm import process, protocol
from pkernfs.vmm.config import RAM_ID, Guest
from pkernfs.vmm.process import log_tail

if TYPE_CHECKING:
    from pkernfs.vmm.cpr_replay import Handed

#: How long a healthy QEMU may take to answer (seconds); it is slow under emulation.
ANSWER_S = 30.0

#: Runs the guest's processors, or would if the guest were not asleep by itself.
_RUNNING = frozenset({"running", "suspended"})

#: States of a migration in which QEMU refuses to let the guest run on.
_UNDER_WAY = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})


@dataclass(frozen=True)
class Moment:
    """Something that QEMU reported.

    :ivar real_ns: when it happened by QEMU's own time stamp, CLOCK_REALTIME.
    """

    event: str
    real_ns: int


def _moment(event: Mapping[str, Any]) -> Moment:
    name = str(event["event"])
    if name == "MIGRATION":
        name += "/" + str(event["data"]["status"])
    stamp = event["timestamp"]
    return Moment(name, stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1_000)


class Monitor:
    """One QMP session."""

    def __init__(self, guest: Guest, client: QMPClient, events: EventListener) -> None:
        self.guest = guest
        self._client = client
        self._events = events
        self._seen: dict[str, Moment] = {}
        #: What has to be closed for QEMU to give up a state that it has handed over.
        self.undo = contextlib.ExitStack()

    @property
    def passes_devices(self) -> bool:
        """Has the guest passed-through devices? It is saved and loaded in another way then."""
        return bool(self.guest.config().devices)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = ANSWER_S
    ) -> Any:
        """Run a command and return its answer.

        :param timeout: seconds to wait for the answer.
        :raises PkernfsError: QEMU refused, did not answer, or is gone.
        """
        try:
            return await asyncio.wait_for(
                self._client.execute(command, dict(arguments) if arguments else None), timeout
            )
        except ExecuteError as error:
            raise PkernfsError(
                f"guest {self.guest.name}: QEMU refuses {command}: {error}"
            ) from error
        except TimeoutError as error:
            raise PkernfsError(
                f"guest {self.guest.name}: QEMU did not answer {command} within {timeout:g} s"
            ) from error
        except (QMPError, EOFError, OSError) as error:
            raise PkernfsError(self._gone(command)) from error

    def _gone(self, doing: str) -> str:
        said = log_tail(self.guest)
        return f"guest {self.guest.name}: QEMU ended at {doing}" + (f": {said}" if said else "")

    def forget_events(self) -> None:
        """From here on only what is yet to come counts."""
        self._events.clear()
        self._seen.clear()

    async def wait_for(self, timeout: float, *wanted: str) -> Moment:
        """Wait for the first of these events, or return one that came already.

        :param timeout: seconds.
        :param wanted: names; an event MIGRATION is called ``MIGRATION/STATUS``.
        :raises PkernfsError: it did not come in time, or QEMU is gone.
        """
        deadline = time.monotonic() + timeout
        while True:
            for name in wanted:
                if name in self._seen:
                    return self._seen.pop(name)
            moment = await self._next_event(deadline)
            if moment is None:
                what = " or ".join(wanted)
                raise PkernfsError(f"guest {self.guest.name}: no {what} within {timeout:g} s")
            self._seen[moment.event] = moment

    async def _next_event(self, deadline: float) -> Moment | None:
        """The next event; None when the time is up (seconds of time.monotonic())."""
        getting = asyncio.ensure_future(self._events.get())
        ending = asyncio.ensure_future(self._until_disconnected())
        try:
            await asyncio.wait(
                {getting, ending},
                timeout=max(0.0, deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                return _moment(getting.result())
            if ending.done():
                raise PkernfsError(self._gone("waiting for it"))
            return None
        finally:
            getting.cancel()
            ending.cancel()

    async def _until_disconnected(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def status(self) -> str:
        """QEMU's run state, e.g. "running", "paused", "postmigrate"."""
        return str((await self.execute("query-status"))["status"])

    async def is_running(self) -> bool:
        """Do the guest's processors run?"""
        return await self.status() in _RUNNING

    async def accelerator(self) -> str:
        """By what the guest's processors run: "kvm" or "tcg", QEMU's own emulation."""
        return "kvm" if (await self.execute("query-kvm"))["enabled"] else "tcg"

    async def other_memory(self) -> int:
        """Bytes of the guest's memory outside of the store: what a saved state holds of it."""
        try:
            answer = await self.execute("x-query-ramblock")
        except PkernfsError:
            return 64 << 20
        return sum_other_memory(answer["human-readable-text"], self.guest.config().ram_id)


def sum_other_memory(table: str, ram_id: str = RAM_ID) -> int:
    """Add up the sizes in x-query-ramblock's table, but for the guest's memory proper.

    :param ram_id: id of the object that is the guest's memory.
    """
    total = 0
    for line in table.splitlines()[1:]:
        sizes = re.findall(r"0x[0-9a-f]+", line)
        if ram_id not in line and len(sizes) >= 2:
            total += int(sizes[1], 16)
    return total


@contextlib.asynccontextmanager
async def monitor(guest: Guest, timeout: float = ANSWER_S) -> AsyncIterator[Monitor]:
    """Have a QMP session with a guest's QEMU within the block.

    :param timeout: seconds until QEMU must have greeted.
    :raises PkernfsError: nobody answers at the socket.
    """
    client = QMPClient(guest.name)
    events = EventListener(names=("MIGRATION", "STOP", "RESUME", "SHUTDOWN"))
    client.register_listener(events)
    try:
        await asyncio.wait_for(client.connect(str(guest.socket)), timeout)
    except (QMPError, OSError, TimeoutError) as error:
        said = log_tail(guest)
        raise PkernfsError(
            f"guest {guest.name}: its QEMU can't be talked to at {guest.socket}"
            + (f": {said}" if said else f": {error or type(error).__name__}"),
            "is another program connected to that socket, or was the file removed?",
        ) from error
    session = Monitor(guest, client, events)
    try:
        yield session
    finally:
        session.undo.close()
        with contextlib.suppress(QMPError, EOFError, OSError):
            await client.disconnect()


class StillPreparedError(PartlyError):
    """A guest's QEMU could not be told to forget what an update had told it."""


@contextlib.asynccontextmanager
async def prepared(session: Monitor, *, may_stay: bool = False) -> AsyncIterator[None]:
    """Have QEMU know within the block how state is saved and loaded.

    See :mod:`pkernfs.vmm.protocol`.

    A guest with passed-through devices is saved as if another QEMU took it over at once:
    ``cpr-transfer``, see :mod:`pkernfs.vmm.cpr_record`.

    :param may_stay: the guest is worth more than its settings: it is no failure when they
        can't be taken back. Doctor finds them then.
    :raises PkernfsError: this QEMU can't.
    :raises StillPreparedError: it can't be taken back; says also what else went wrong.
    """
    failed: BaseException | None = None
    try:
        await _configure(session)
        yield
    except BaseException as error:
        failed = error
        raise
    finally:
        try:
            await unprepare(session)
        except PkernfsError as error:
            # A QEMU that has ended has forgotten everything.
            if not may_stay and process.running(session.guest) is not None:
                before = f"{failed}; " if failed is not None and str(failed) else ""
                raise StillPreparedError(
                    f"{before}guest {session.guest.name}: what its QEMU was told for the update "
                    f"can't be taken back: {error.what}",
                    "pkernfs update --recover tries again",
                ) from (failed or error)


async def unprepare(session: Monitor) -> None:
    """Take back what :func:`prepared` told QEMU, if nobody else will.

    :raises PkernfsError: QEMU refuses.
    """
    refused = None
    for command, arguments in protocol.settings(update=False, devices=session.passes_devices):
        try:
            await session.execute(command, arguments)
        except PkernfsError as error:
            if not isinstance(error.__cause__, ExecuteError):
                raise
            refused = refused or error
    # A QEMU that does not know a setting refuses also to take it back.
    if refused is not None and await settings_left(session):
        raise refused


async def _configure(session: Monitor) -> None:
    for command, arguments in protocol.settings(update=True, devices=session.passes_devices):
        await session.execute(command, arguments)


async def settings_left(session: Monitor) -> list[str]:
    """Which of an update's settings QEMU has now, in its own words; nothing is changed."""
    capabilities = await session.execute("query-migrate-capabilities")
    on = {each["capability"] for each in capabilities if each["state"]}
    mode = (await session.execute("query-migrate-parameters")).get("mode", "normal")
    ours = {"x-ignore-shared"} | ({"return-path"} if session.passes_devices else set())
    return [*sorted(on & ours), *([f"mode {mode}"] if mode != "normal" else [])]


async def why_not_saved(session: Monitor) -> str | None:
    """What forbids saving this guest; None when nothing does."""
    reasons = (await session.execute("query-migrate")).get("blocked-reasons")
    return "; ".join(reasons) if reasons else None


async def save(
    session: Monitor,
    state: Path,
    timeout: float,
    saw: Callable[[bool], None] = lambda _: None,
) -> tuple[Moment | None, Moment]:
    """Stop the guest and write its devices to a file; its memory is not in there.

    QEMU is left standing in the state "postmigrate": its disks are flushed and given
    back, its memory is at rest, and :func:`go_on` lets it run on as if nothing had been.

    :param state: file to write.
    :param timeout: seconds that stopping and saving may take together.
    :param saw: is told whether the processors run, right before they are stopped.
    :returns: when the processors stopped (None when they did not run before), and when
        the state was complete.
    :raises PkernfsError: it failed; QEMU's own message is in it.
    """
    if session.passes_devices:
        from pkernfs.vmm import cpr_record

        return await cpr_record.save(session, state, timeout, saw)
    # Its user may have paused it since the session began, and let it run again.
    session.forget_events()
    run = await session.is_running()
    saw(run)
    await session.execute("migrate", {"uri": f"file:{state}"})
    done = await session.wait_for(
        timeout, "MIGRATION/completed", "MIGRATION/failed", "MIGRATION/cancelled"
    )
    if done.event != "MIGRATION/completed":
        reason = await _migration_error(session)
        raise PkernfsError(f"guest {session.guest.name}: its state can't be saved: {reason}")
    return (await session.wait_for(timeout, "STOP") if run else None), done


async def _migration_error(session: Monitor) -> str:
    answer = await session.execute("query-migrate")
    return str(answer.get("error-desc") or answer.get("status") or "no reason given")


async def load(
    session: Monitor, state: Path, timeout: float, *, run: bool, handed: Handed | None = None
) -> tuple[Moment, Moment | None]:
    """Load what :func:`save` wrote into a QEMU that was started to wait for it.

    A guest that ran when it was saved runs again when this returns.

    :param timeout: seconds that loading may take.
    :param run: did the guest run when it was saved?
    :param handed: its passed-through devices.
    :returns: when the state was in place, and when the processors ran (None: not ``run``).
    :raises PkernfsError: it failed; QEMU's own message is in it.
    """
    if handed is not None:
        return await _load_with_devices(session, state, timeout, run, handed)
    await session.execute(
        "migrate-incoming", {"uri": f"file:{state}", "exit-on-error": False}, timeout
    )
    done = await _loaded(session, timeout)
    return done, await _let_run(session, timeout) if run else None


async def _let_run(session: Monitor, timeout: float) -> Moment:
    """Let the processors run: QEMU was told at its start that they must not run by themselves."""
    await _cont(session)
    return await session.wait_for(timeout, "RESUME")


async def _cont(session: Monitor) -> None:
    session.guest.begins_to_run()
    try:
        await session.execute("cont")
    except PkernfsError as error:
        # It refuses before anything runs: qmp_cont() in monitor/qmp-cmds.c.
        if isinstance(error.__cause__, ExecuteError):
            session.guest.waits_again()
        raise


async def _load_with_devices(
    session: Monitor, state: Path, timeout: float, run: bool, handed: Handed
) -> tuple[Moment, Moment | None]:
    from pkernfs.vmm.cpr import channels
    from pkernfs.vmm.cpr_replay import feed

    # QEMU speaks on the return path, so a file does not do.
    path = session.guest.runtime / "main.sock"
    path.unlink(missing_ok=True)
    arguments = {**channels(main=path), "exit-on-error": False}
    await session.execute("migrate-incoming", arguments, timeout)
    feeding = asyncio.ensure_future(feed(path, state.read_bytes()))
    try:
        done = await _loaded(session, timeout)
    except PkernfsError as error:
        # The section that it stumbled over is in its log only.
        said = log_tail(session.guest)
        raise PkernfsError(f"{error.what}; QEMU says: {said}", error.hint) from error
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    handed.settle()
    if not run:
        return done, None
    resumed = await _let_run(session, timeout)
    handed.raise_interrupts()
    return done, resumed


async def _loaded(session: Monitor, timeout: float) -> Moment:
    done = await session.wait_for(timeout, "MIGRATION/completed", "MIGRATION/failed")
    if done.event != "MIGRATION/completed":
        reason = await _migration_error(session)
        raise PkernfsError(f"guest {session.guest.name}: its state can't be loaded: {reason}")
    return done


async def go_on(session: Monitor, *, run: bool) -> None:
    """Let a guest run on that was stopped, saved, or is about to be.

    :param run: did its processors run before?
    :raises PkernfsError: QEMU does not let it.
    """
    await session.execute("migrate_cancel")
    deadline = time.monotonic() + ANSWER_S
    while (await session.execute("query-migrate")).get("status") in _UNDER_WAY:
        if time.monotonic() > deadline:
            raise PkernfsError(f"guest {session.guest.name}: saving it can't be cancelled")
        await asyncio.sleep(0.02)
    session.undo.close()
    if run and not await session.is_running():
        await _cont(session)
