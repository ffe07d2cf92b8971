# SPDX-License-Identifier: GPL-2.0-only
"""The log of landed frames: in a file of pkernfs, so that it survives what it records.

A frame is logged before its descriptor goes back to the device. A receiver can thus be killed,
or its kernel replaced, at any moment: what it did not log is still in the ring, what it logged
but did not give back is recognised when it is read again (same number in the same slot).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from pkernfs.errors import PkernfsError
from pkernfs.vfio.frame import NumberedFrame

_HEAD: Final = struct.Struct("<8sIIQ")  # magic, version, ring, entries
_MAGIC: Final = b"PKLANDED"
_VERSION: Final = 1
_ENTRY: Final = struct.Struct("<IIIIQQ")  # kind, generation, run, slot, first, last
_FIRST: Final = 64
_COUNT: Final = struct.Struct("<Q")
_COUNT_AT: Final = 16
_SLOT_LAST: Final = 24  # offset of "last" in an entry


class Kind(IntEnum):
    """What an entry records."""

    FRAMES = 1  # intact frames first to last, in consecutive slots
    DAMAGED = 2  # one frame that arrived damaged
    ADOPTED = 3  # a receiver began: first = frames waiting in the ring, last = RDH


@dataclass(frozen=True)
class Landing:
    """An entry of the log.

    :ivar generation: which receiver wrote it, from 0; one more at each adoption.
    :ivar run: run of the sender.
    :ivar slot: receive descriptor of frame ``first``.
    :ivar first: first frame number (for ADOPTED: how many were waiting).
    :ivar last: last frame number (for ADOPTED: RDH).
    """

    kind: Kind
    generation: int
    run: int
    slot: int
    first: int
    last: int

    def to_json(self) -> dict[str, Any]:
        """For transport to the lab."""
        return {**vars(self), "kind": self.kind.name.lower()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Landing:
        """The reverse of :meth:`to_json`."""
        return cls(**{**value, "kind": Kind[value["kind"].upper()]})


class LandingLog:
    """A log in memory that a file backs.

    :param view: its bytes.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        magic, version, self.ring, self._count = _HEAD.unpack_from(view)
        if magic != _MAGIC or version != _VERSION:
            raise PkernfsError("no log of frames in this memory")
        last = self.entry(self._count - 1) if self._count else None
        self.generation = last.generation if last else 0

    @classmethod
    def format(cls, view: memoryview, ring: int) -> LandingLog:
        """A new, empty log.

        :param ring: receive descriptors of the ring that it belongs to.
        """
        _HEAD.pack_into(view, 0, _MAGIC, _VERSION, ring, 0)
        return cls(view)

    def entry(self, index: int) -> Landing:
        """Entry ``index``."""
        kind, generation, run, slot, first, last = _ENTRY.unpack_from(self._view, self._at(index))
        return Landing(Kind(kind), generation, run, slot, first, last)

    def entries(self) -> list[Landing]:
        """All entries, oldest first."""
        return [self.entry(index) for index in range(self._count)]

    def begin(self, waiting: int, head: int) -> None:
        """A new receiver begins, with so many frames in the ring."""
        self.generation += 1
        self._append(Landing(Kind.ADOPTED, self.generation, 0, 0, waiting, head))

    def add(self, frame: NumberedFrame, slot: int) -> bool:
        """Record a frame.

        :returns: False if it was recorded already by a receiver that could not give it back.
        """
        last = self._last_run(frame.run)
        if last is not None and self._replayed(last, frame.sequence, slot):
            return False
        if not frame.intact:
            number = frame.sequence
            kind = Kind.DAMAGED
            self._append(Landing(kind, self.generation, frame.run, slot, number, number))
        elif self._extends(frame, slot):
            # One aligned store of 8 bytes: the entry is never half old and half new.
            at = self._at(self._count - 1) + _SLOT_LAST
            _COUNT.pack_into(self._view, at, frame.sequence)
        else:
            number = frame.sequence
            kind = Kind.FRAMES
            self._append(Landing(kind, self.generation, frame.run, slot, number, number))
        return True

    def _extends(self, frame: NumberedFrame, slot: int) -> bool:
        if not self._count:
            return False
        last = self.entry(self._count - 1)
        return (
            last.kind is Kind.FRAMES
            and last.run == frame.run
            and frame.sequence == last.last + 1
            and slot == self._slot_of(last, frame.sequence)
        )

    def _last_run(self, run: int) -> Landing | None:
        """The newest entry of frames, unless an older receiver's is all there is."""
        for index in range(self._count - 1, -1, -1):
            entry = self.entry(index)
            if entry.kind is Kind.FRAMES:
                return entry if entry.run == run else None
            if entry.kind is Kind.DAMAGED:
                return None
        return None

    def _replayed(self, last: Landing, sequence: int, slot: int) -> bool:
        age = last.last - sequence
        return (
            last.first <= sequence <= last.last
            and age < self.ring
            and slot == self._slot_of(last, sequence)
        )

    def _slot_of(self, entry: Landing, sequence: int) -> int:
        return int((entry.slot + sequence - entry.first) % self.ring)

    def _append(self, entry: Landing) -> None:
        at = self._at(self._count)
        if at + _ENTRY.size > len(self._view):
            raise PkernfsError("the log of frames is full", "frames arrive out of order")
        _ENTRY.pack_into(
            self._view,
            at,
            entry.kind,
            entry.generation,
            entry.run,
            entry.slot,
            entry.first,
            entry.last,
        )
        self._count += 1
        # The entry counts from this store on.
        _COUNT.pack_into(self._view, _COUNT_AT, self._count)

    def _at(self, index: int) -> int:
        return _FIRST + index * _ENTRY.size
