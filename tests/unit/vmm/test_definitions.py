# SPDX-License-Identifier: GPL-2.0-only
"""Guests whose store was lost with the power."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.ranges import Range
from pkernfs.vmm import definitions, guests
from pkernfs.vmm.config import Guest, Places
from tests.unit.vmm.fakes import RAM, FakeHost


def _lose_power(host: FakeHost) -> None:
    host.kill_all()
    for store in host.places.stores:
        shutil.rmtree(store / "vms", ignore_errors=True)


def test_a_guest_can_be_started_again_after_its_store_was_lost(
    host: FakeHost, tmp_path: Path
) -> None:
    guest = host.start("web", "-smp", "2")
    before = guest.config()
    definitions.keep(guest, tmp_path / "kept")
    assert not definitions.restore(host.places, "web", tmp_path / "kept", host.machine)
    _lose_power(host)
    assert not guest.exists()
    assert definitions.restore(host.places, "web", tmp_path / "kept", host.machine)
    assert guest.config() == before
    guests.start(host.places, "web", None, (), machine=host.machine)
    assert host.states() == {"web": "running"}


def test_a_deleted_guest_is_not_kept(host: FakeHost, tmp_path: Path) -> None:
    definitions.keep(host.start("web"), tmp_path)
    definitions.forget("web", tmp_path)
    _lose_power(host)
    assert not definitions.restore(host.places, "web", tmp_path)
    definitions.forget("web", tmp_path)


def test_a_store_that_is_not_there_is_named(host: FakeHost, tmp_path: Path) -> None:
    definitions.keep(host.start("web"), tmp_path)
    elsewhere = Places(tmp_path / "elsewhere", host.places.run)
    with pytest.raises(PkernfsError, match="lay in a store at"):
        definitions.restore(elsewhere, "web", tmp_path)
    assert not Guest("web", elsewhere).exists()


def test_nothing_is_put_on_the_mount_point_of_a_store_that_is_not_mounted(
    host: FakeHost, tmp_path: Path
) -> None:
    second = host.add_region("second", Range(8 << 30, 1 << 30))
    guests.start(host.places, "web", RAM, [], machine=host.machine, store=second)
    definitions.keep(Guest("web", host.places), tmp_path / "kept")
    host.kill_all()
    # After a reboot: the directory is bare, what lay in the store is under no mount point.
    shutil.rmtree(second / "vms")
    mounts = host.machine.read("proc/self/mountinfo") or ""
    left = [line for line in mounts.splitlines() if str(second) not in line.split()]
    host.put("proc/self/mountinfo", "\n".join(left) + "\n")
    kept = (host.places, "web", tmp_path / "kept", host.machine)
    for refused in (definitions.require_home, definitions.restore):
        with pytest.raises(PkernfsError, match="no store at") as caught:
            refused(*kept)
        assert "pkernfs mount" in caught.value.hint
    with pytest.raises(PkernfsError, match="no store at"):
        guests.start(host.places, "web", RAM, [], machine=host.machine, store=second)
    assert not (second / "vms").exists()
