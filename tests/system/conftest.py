# SPDX-License-Identifier: GPL-2.0-only
"""A guest that counts, for tests of what an update leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pkernfs.lab.machine import Machine
from tests.conftest import with_kvm

from . import tick
from .tick import Tick


@pytest.fixture(scope="module")
def counting(
    request: pytest.FixtureRequest, shared_host: Callable[[str, bool], Machine]
) -> Iterator[Tick]:
    """A counting guest on the shared host, for all tests that leave it running."""
    host = shared_host("6.12", with_kvm(request.node))
    yield tick.start(host, "tick")
    host.sh("pkernfs vm stop tick --force --delete; rm -rf /mnt/pkernfs/updates").check()


@pytest.fixture
def guest(host: Machine, counting: Tick) -> Tick:
    """The guest, running, and no trace of an earlier update, also of one whose test failed."""
    left = "/run/pkernfs/update.journal"
    host.sh(f"! [ -e {left} ] || pkernfs update --recover; rm -rf /mnt/pkernfs/updates").check()
    counting.counts_on()
    return counting
