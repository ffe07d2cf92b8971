# SPDX-License-Identifier: GPL-2.0-only
"""What happened when: a line per event, written by both kernels into the store.

Each line has the readings of all clocks, so that the common scale can be found
afterwards, when both sides are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.host import clock
from pkernfs.host.machine import Machine


@dataclass(frozen=True)
class Record:
    """One line.

    :ivar event: "begin" or "end" of a phase, "moment", "result" of a guest, "device",
        "network", "store", or "outcome".
    :ivar subject: name of the phase, moment, device or interface; for a result "ok" or "failed".
    :ivar guest: whose it is; None: of the whole update.
    :ivar reading: the clocks when the line was written.
    :ivar ago_ns: how much earlier it happened, nanoseconds.
    :ivar text: the error, for a result or outcome; JSON of what is known of a device or interface.
    """

    event: str
    subject: str
    guest: str | None
    reading: clock.Reading
    ago_ns: int
    boot_id: str
    kernel: str
    text: str = ""


class Timeline:
    """Collects records, and appends them to a file as soon as there is one."""

    def __init__(self, machine: Machine) -> None:
        self._boot_id = machine.boot_id
        self._kernel = machine.kernel
        self._fd: int | None = None
        self._waiting: list[bytes] = []
        self._records: list[Record] = []
        self._watch: Callable[[Record], None] | None = None

    def watch(self, watch: Callable[[Record], None]) -> None:
        """Show every record from now on, first those that are there already.

        :param watch: must neither block nor raise: guests may be paused.
        """
        self._watch = watch
        for record in self._records:
            watch(record)

    def open(self, path: Path) -> None:
        """Append to this file from now on, first what was collected until now."""
        if self._fd is not None:
            return
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._flush()

    def close(self) -> None:
        """Make the file durable and close it."""
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None

    def _flush(self) -> None:
        if self._fd is not None and self._waiting:
            os.write(self._fd, b"".join(self._waiting))
            self._waiting.clear()

    def mark(
        self,
        event: str,
        subject: str,
        guest: str | None = None,
        *,
        ago_ns: int = 0,
        real_ns: int | None = None,
        text: str = "",
    ) -> None:
        """Write a record.

        :param ago_ns: how much earlier it happened, nanoseconds.
        :param real_ns: or when it happened, by CLOCK_REALTIME.
        """
        reading = clock.read()
        if real_ns is not None:
            ago_ns = max(0, reading.real_ns - real_ns)
        record = Record(event, subject, guest, reading, ago_ns, self._boot_id, self._kernel, text)
        line = json.dumps(dataclasses.asdict(record)) + "\n"
        self._waiting.append(line.encode())
        self._flush()
        self._records.append(record)
        if self._watch is not None:
            self._watch(record)

    @contextlib.contextmanager
    def phase(self, name: str, guest: str | None = None) -> Iterator[None]:
        """Record the begin and the end of the block."""
        self.mark("begin", name, guest)
        try:
            yield
        finally:
            self.mark("end", name, guest)


def _record(value: dict[str, Any]) -> Record:
    return Record(**{**value, "reading": clock.Reading(**value["reading"])})


def load(path: Path) -> list[Record]:
    """Read a timeline. A last line that a crash cut short is left out."""
    records = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            continue
    return records


def sides(records: Sequence[Record]) -> list[list[clock.Reading]]:
    """The readings of each kernel, in order of time."""
    by_boot: dict[str, list[clock.Reading]] = {}
    for record in records:
        by_boot.setdefault(record.boot_id, []).append(record.reading)
    return list(by_boot.values())


class Times:
    """Turns records into seconds since the first of them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.scale = clock.calibrate(*sides(records))
        self._first = records[0]

    def of(self, record: Record) -> float:
        """When it happened, seconds."""
        return self.scale.seconds(self._first.reading, record.reading) - record.ago_ns / 1e9
