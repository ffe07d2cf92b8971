# SPDX-License-Identifier: GPL-2.0-only
"""Who would be lost with this kernel: found before an update, and right before its jump."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, blocker, hint_of, ok
from pkernfs.host.machine import Machine
from pkernfs.update.plan import Plan, running_guests
from pkernfs.vmm import process
from pkernfs.vmm.census import Census, Outsider
from pkernfs.vmm.config import Places

TOPIC = "machines"

#: What the ids of these findings begin with.
FOREIGN = "foreign."

_HINT = "shut it down, or move it to another host"
_ADOPT = "pkernfs vm adopt takes it along; or shut it down"


def _own(places: Places) -> set[int]:
    children = (process.running(guest) for guest in running_guests(places))
    return {child.pid for child in children if child is not None}


def _text(it: Outsider) -> str:
    who = f"{it.name} (process {it.pid}, {it.program})" if it.name else f"{it.program} {it.pid}"
    where = f" though it has memory of {it.store}" if it.store else ""
    return f"virtual machine {who} is no guest of pkernfs's{where}: it ends with this kernel"


def findings(found: Sequence[Outsider]) -> list[Finding]:
    """A blocker for each virtual machine; its id has its name, or its process if that is not
    one machine's."""
    names = [re.sub(r"[^A-Za-z0-9_.-]", "-", it.name) for it in found]
    count = Counter(names)
    ids = [
        name if name and count[name] == 1 else f"{name}.{it.pid}" if name else str(it.pid)
        for name, it in zip(names, found, strict=True)
    ]
    return [
        blocker(
            TOPIC,
            _text(it),
            _ADOPT if it.store else _HINT,
            FOREIGN + id,
            overridable=True,
        )
        for id, it in zip(ids, found, strict=True)
    ]


def examine(machine: Machine, places: Places) -> list[Finding]:
    """What doctor says of them."""
    found = findings(Census(machine).outsiders(_own(places)))
    return found or [ok(TOPIC, "every virtual machine of this host is a guest of pkernfs's")]


def refusal(left: Iterable[Finding]) -> PkernfsError:
    """The error about all of these: each one would be lost, so each one is named."""
    left = list(left)
    texts = "; ".join(finding.text for finding in left)
    if len(left) == 1:
        return PkernfsError(texts, hint_of(left[0]))
    words = " ".join(f"--override {finding.id}" for finding in left)
    return PkernfsError(
        texts, f"shut them down, or adopt them; to go on in spite of them: pkernfs update {words}"
    )


class RollCall:
    """Makes sure that all who run are in the plan, as often as it is asked."""

    def __init__(
        self, machine: Machine, places: Places, plan: Plan, override: frozenset[str]
    ) -> None:
        self._census = Census(machine)
        self._places = places
        self._planned = {guest.name for guest in plan.guests}
        self._override = override

    def check(self) -> None:
        """Ask it. The first time takes longest: that is for before guests are paused.

        :raises PkernfsError: somebody runs who would be lost with this kernel.
        """
        new = [it.name for it in running_guests(self._places) if it.name not in self._planned]
        if new:
            raise PkernfsError(
                f"guest {', '.join(new)} began to run after the update was checked:"
                " it would be lost with this kernel",
                "try again: the next update takes it along",
            )
        found = findings(self._census.outsiders(_own(self._places)))
        left = [finding for finding in found if finding.id not in self._override]
        if left:
            raise refusal(left)
