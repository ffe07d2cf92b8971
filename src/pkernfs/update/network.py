# SPDX-License-Identifier: GPL-2.0-only
"""The part that guests' network interfaces have in an update.

QEMU makes a tap anew in the next kernel, down and on no bridge. What was set on it was noted
when the update was planned; here it is set again once the guests run, and the guest's address
is announced when that is done. A bridge that is not there yet, since the network comes up
later than the guests, is waited for by ``pkernfs vm network``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host import ports
from pkernfs.host.machine import Machine
from pkernfs.host.ports import Port, State
from pkernfs.update import plan as planning
from pkernfs.update import report
from pkernfs.update.timeline import Timeline
from pkernfs.vmm.config import Guest, Places
from pkernfs.vmm.monitor import monitor

#: Five packets within a second or so, as QEMU sends after a migration (milliseconds).
_ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
_POLL_S = 1.0
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Attached:
    """What became of an interface.

    :ivar state: a value of :class:`pkernfs.host.ports.State`, or "failed".
    :ivar error: why, if it failed.
    """

    guest: str
    interface: str
    bridge: str
    state: str
    error: str = ""

    def __str__(self) -> str:
        what = f"guest {self.guest}: {self.interface}"
        on = f" on {self.bridge}" if self.bridge else ""
        return {
            "back": f"{what} is back{on}",
            "waits": f"{what} waits for the bridge {self.bridge}: pkernfs vm network",
            "elsewhere": f"{what} was{on}, and is on another bridge now: left there",
            "gone": f"{what} is not there any more",
            "failed": f"{what} is not back{on}: {self.error}",
        }[self.state]


def put_back(
    machine: Machine, places: Places, update: str, names: Iterable[str], timeline: Timeline
) -> list[Attached]:
    """Put the interfaces of guests that run again where they were, and note what became of each.

    :param names: the guests.
    """
    wanted = set(names)
    try:
        planned = planning.read(places, update).guests
    except PkernfsError:
        return []
    done: list[Attached] = []
    for guest in planned:
        if guest.name in wanted:
            away = {port for port in guest.ports if not ports.is_back(machine, port)}
            found = {port: _restore(machine, guest.name, port) for port in guest.ports}
            if any(found[port].state == State.BACK.value for port in away):
                _announce(Guest(guest.name, places))
            done += found.values()
    for each in done:
        note = {"bridge": each.bridge, "state": each.state, "error": each.error}
        timeline.mark("network", each.interface, each.guest, text=json.dumps(note))
    return done


def wait_for_bridges(
    machine: Machine, places: Places, names: Sequence[str], seconds: float
) -> list[Attached]:
    """Put interfaces back as bridges appear, and write the last update's report anew.

    :param names: the guests; none for all that run.
    :param seconds: how long to wait for bridges that are not there.
    :raises PkernfsError: no such guest runs.
    """
    update = planning.last_update(places, machine)
    running = [guest.name for guest in planning.running_guests(places)]
    if unknown := sorted(set(names) - set(running)):
        raise PkernfsError(f"no guest {unknown[0]} runs", "pkernfs vm list names them")
    if update is None:
        return []
    deadline = time.monotonic() + seconds
    while True:
        timeline = Timeline(machine)
        found = put_back(machine, places, update, names or running, timeline)
        waiting = any(each.state == State.WAITS.value for each in found)
        if not waiting or time.monotonic() + _POLL_S > deadline:
            break
        time.sleep(_POLL_S)
    if found:
        timeline.open(planning.directory(places, update) / "timeline.jsonl")
        timeline.close()
        report.write(places, update)
    return found


def _restore(machine: Machine, guest: str, port: Port) -> Attached:
    try:
        state = ports.restore(machine, port)
    except PkernfsError as error:
        return Attached(guest, port.interface, port.master, "failed", error.what)
    return Attached(guest, port.interface, port.master, state.value)


def _announce(guest: Guest) -> None:
    """Have switches learn where the guest's address is: QEMU did it before the link was up."""

    async def run() -> None:
        async with monitor(guest, _ANSWER_S) as session:
            await session.execute("announce-self", _ANNOUNCE)

    # The network learns it from the guest's own next packet as well.
    with contextlib.suppress(PkernfsError):
        asyncio.run(run())
