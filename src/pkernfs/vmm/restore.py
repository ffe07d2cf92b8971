# SPDX-License-Identifier: GPL-2.0-only
"""What became of a launch: read from all that QEMU said, once the guests run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pkernfs.vmm import protocol
from pkernfs.vmm.config import Guest
from pkernfs.vmm.launch import Attempt
from pkernfs.vmm.process import Process, kill, log_tail
from pkernfs.vmm.processor import lost

#: How long QEMU may take to answer (seconds).
_ANSWER_S = 30.0

_MARK = "pkernfs-restore"


@dataclass(frozen=True)
class Restored:
    """What became of a launch; times by QEMU's own stamps, CLOCK_REALTIME.

    :ivar up_ns: when QEMU began to load; None if it did not come to that.
    :ivar loaded_ns: when the state was in place.
    :ivar running_ns: when the processors ran; None also for a guest that was paused before.
    :ivar error: why the guest does not run; empty when it is as it was.
    """

    name: str
    up_ns: int | None
    loaded_ns: int | None
    running_ns: int | None
    error: str


def _messages(received: bytes) -> Iterator[dict[str, Any]]:
    for line in received.splitlines():
        try:
            message = json.loads(line)
        except ValueError:  # cut short: QEMU ended
            continue
        if isinstance(message, dict):
            yield message


def _stamp(received: bytes, name: str, status: str | None = None) -> int | None:
    for message in _messages(received):
        if message.get("event") == name and status in (None, message.get("data", {}).get("status")):
            stamp = message["timestamp"]
            return int(stamp["seconds"]) * 1_000_000_000 + int(stamp["microseconds"]) * 1_000
    return None


def finish(attempt: Attempt, guest: Guest) -> Restored:
    """Read what QEMU said, and hang up.

    A QEMU that loaded its state is told to forget how; one that did not is ended, but not when
    it was told to let the guest run: it may do so yet. The guest's files stay as they are.
    """
    error = f"guest {guest.name}: {_reason(attempt, guest)}" if attempt.error else ""
    if error:
        if attempt.pid and not attempt.told:
            kill(Process(attempt.pid, attempt.began))
    else:
        _ask(attempt, *protocol.settings(update=False))
    if attempt.connection is not None:
        attempt.connection.close()
    said = attempt.received
    up = _stamp(said, "MIGRATION", "setup") or _stamp(said, "MIGRATION", "active")
    loaded, running = _stamp(said, "MIGRATION", "completed"), _stamp(said, "RESUME")
    return Restored(guest.name, up or loaded or running, loaded, running, error)


def _reason(attempt: Attempt, guest: Guest) -> str:
    """Why the guest does not run, with QEMU's own words where it has some."""
    refused = [it["error"].get("desc") for it in _messages(attempt.received) if "error" in it]
    if refused:
        return f"{attempt.error}: {refused[0]}"
    if not attempt.greeted:
        missing = lost(guest)
        if missing:
            return f"its processor has {', '.join(missing)}, which this kernel does not offer"
        said = log_tail(guest)
        return attempt.error + (f": {said}" if said else "")
    answer = _ask(attempt, ("query-migrate", {}))
    said = str(answer[0].get("error-desc") or "") if answer else log_tail(guest)
    return attempt.error + (f": {said}" if said else "")


def _ask(attempt: Attempt, *requests: protocol.Request) -> list[dict[str, Any]]:
    """Make requests and wait for the answers; fewer than that if QEMU is gone."""
    connection = attempt.connection
    if connection is None:
        return []
    answers: list[dict[str, Any]] = []
    pending = b""
    deadline = time.monotonic() + _ANSWER_S
    try:
        connection.settimeout(_ANSWER_S)
        connection.sendall(protocol.encode(requests, _MARK).encode())
        while len(answers) < len(requests) and time.monotonic() < deadline:
            chunk = connection.recv(65536)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            said = [it for it in _messages(b"\n".join(lines)) if it.get("id") == _MARK]
            answers += [it.get("return", {}) for it in said]
    except OSError:
        pass
    return answers
