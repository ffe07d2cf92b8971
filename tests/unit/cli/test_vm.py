# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs vm``: what each guest does, and what its unit does."""

from __future__ import annotations

import functools

import pytest

from pkernfs.cli import vm
from pkernfs.errors import PkernfsError
from pkernfs.host import systemd
from pkernfs.update import lock
from pkernfs.vmm import guests, process
from pkernfs.vmm.config import Saved
from pkernfs.vmm.guests import GuestStatus
from pkernfs.words import table
from tests.unit.vmm.fakes import FakeHost


def test_a_guest_that_waits_says_for_what() -> None:
    found = [
        GuestStatus("web", "running", 16 << 30, 4711, "/mnt/pkernfs"),
        GuestStatus("db", "saved", 32 << 20, None, "/mnt/pkernfs-node1"),
        GuestStatus("mail", "postmigrate", 1 << 30, 12, "/mnt/pkernfs"),
    ]
    head, web, db, mail = table(vm._rows(found), left=(0, 1, 4, 5))
    assert head.split() == ["guest", "state", "memory", "process", "store"]
    assert web.split() == ["web", "running", "16", "GiB", "4711", "/mnt/pkernfs"]
    assert db.endswith("/mnt/pkernfs-node1  waits for pkernfs resume")
    assert "pkernfs update --recover" in mail


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes that were moved into the unit."""
    found: list[int] = []
    monkeypatch.setattr(systemd, "move_here", found.append)
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    return found


@pytest.mark.parametrize("what", ["resume", "update"])
def test_a_guest_that_runs_enters_its_unit_whoever_has_the_lock(
    host: FakeHost, moved: list[int], what: str
) -> None:
    """resume has the units started of the guests that it has let run."""
    guest = host.start("web")
    child = process.running(guest)
    assert child is not None
    with lock.update_lock(host.places, what):
        vm._enter(host.places, "web")
    assert moved == [child.pid]


def test_a_unit_starts_no_guest_during_an_update(
    host: FakeHost, moved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("web")
    guests.stop(host.places, "web", force=True, delete=False)
    monkeypatch.setattr(guests, "start", functools.partial(guests.start, machine=host.machine))
    with (
        lock.update_lock(host.places),
        pytest.raises(PkernfsError, match="vm start web has to wait: update is going on"),
    ):
        vm._enter(host.places, "web")
    assert host.states() == {"web": "off"}
    assert moved == []
    vm._enter(host.places, "web")
    assert host.states() == {"web": "running"}
    assert len(moved) == 1


def test_a_unit_that_is_stopped_waits_for_the_end_of_an_update(
    host: FakeHost, moved: list[int]
) -> None:
    """And has nothing to do when that has saved the guest."""
    guest = host.start("web")
    with lock.update_lock(host.places):
        with pytest.raises(PkernfsError, match="vm stop web has to wait"):
            vm._leave(host.places, "web")
        guest.write_saved(Saved("20261130-170000-abcd", True, 0))
        vm._leave(host.places, "web")
    guest.forget_saved()
    assert host.states() == {"web": "running"}
    vm._leave(host.places, "web")
    assert host.states() == {"web": "off"}
