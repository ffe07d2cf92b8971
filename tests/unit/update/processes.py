# SPDX-License-Identifier: GPL-2.0-only
"""Updates in processes of their own, which can be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from pkernfs.update import lock
from tests.unit.vmm.fakes import FakeHost


def in_child(block: Callable[[], object]) -> int:
    """Run something in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        try:
            block()
        finally:
            os._exit(1)
    return child


def killed(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def until_free(host: FakeHost) -> None:
    """Wait until nobody updates or brings anything back."""
    deadline = time.monotonic() + 20
    while lock.holder(host.places) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
