# SPDX-License-Identifier: GPL-2.0-only
"""What an update has begun and would have to undo, readable after it was killed.

A line per step, written before the step is made, into a file that ends with the kernel
(RUN/update.journal). The file is removed when nothing is left to be undone, so one that
no live update owns says that an update was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pkernfs.vmm.config import Places

#: Steps. Each line is a pair of a step and what it is about.
UPDATE = "update"
GUARD = "guard"
GUEST = "guest"
RAN = "ran"
LOAD = "load"
ARM = "arm"
WHY = "why"
FREEZE = "freeze"
NOT_FROZEN = "not frozen"


def path_of(places: Places) -> Path:
    """Where the journal lies."""
    return places.run / "update.journal"


class Journal:
    """The journal of the running update, for writing."""

    def __init__(self, places: Places) -> None:
        self._path = path_of(places)
        places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)

    def note(self, step: str, subject: str = "") -> None:
        """Write a line. One write(2): whoever is killed has written all of it or nothing."""
        os.write(self._fd, json.dumps([step, subject]).encode() + b"\n")

    def note_freeze(self, point: Path, frozen: bool | None) -> None:
        """Write how a filesystem's freezing goes; see freeze.frozen_filesystems()."""
        if frozen is not True:
            self.note(FREEZE if frozen is None else NOT_FROZEN, str(point))

    def close(self, *, undone: bool) -> None:
        """Close it.

        :param undone: is everything as it was before? Then the file is removed.
        """
        os.close(self._fd)
        if undone:
            self._path.unlink(missing_ok=True)


@dataclass
class Begun:
    """What a journal says.

    :ivar update: id of the update; empty when it was killed before it had one.
    :ivar guests: the guests that it talked to, and whether each of them ran before (False
        also when it was not asked yet: then it was not paused either).
    :ivar frozen: mount points of filesystems that it may have frozen, in that order.
    :ivar loaded: it may have loaded a kernel.
    :ivar armed: it may have armed the preserved devices.
    :ivar why: what ended it, if it lived to say so; empty: it was killed.
    """

    update: str = ""
    guests: dict[str, bool] = field(default_factory=dict)
    frozen: list[Path] = field(default_factory=list)
    loaded: bool = False
    armed: bool = False
    why: str = ""

    def add(self, step: str, subject: str) -> None:
        """Take one line into account."""
        if step == UPDATE:
            self.update = subject
        elif step == GUEST:
            self.guests.setdefault(subject, False)
        elif step == RAN:
            self.guests[subject] = True
        elif step == FREEZE:
            self.frozen.append(Path(subject))
        elif step == NOT_FROZEN:
            with contextlib.suppress(ValueError):
                self.frozen.remove(Path(subject))
        elif step == LOAD:
            self.loaded = True
        elif step == ARM:
            self.armed = True
        elif step == WHY:
            self.why = subject


def read(places: Places) -> Begun | None:
    """What an update has begun; None when there is nothing to undo.

    An update that was killed before its first step has begun nothing.
    """
    try:
        text = path_of(places).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    begun = Begun()
    for line in text.splitlines():
        try:
            step, subject = json.loads(line)
        except (ValueError, TypeError):
            continue
        begun.add(str(step), str(subject))
    return begun if begun != Begun() else None


def remove(places: Places) -> None:
    """Everything was undone."""
    path_of(places).unlink(missing_ok=True)
