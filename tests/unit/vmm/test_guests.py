# SPDX-License-Identifier: GPL-2.0-only
"""Starting, listing and stopping guests, with a fake QEMU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.vmm import guests, process
from pkernfs.vmm.config import Guest, Saved, vms
from tests.answers import answers
from tests.unit.vmm.fakes import RAM, FakeHost


def test_a_guest_runs_from_files_in_the_store(host: FakeHost) -> None:
    guest = host.start("web", "-smp", "2")
    config = guest.config()
    assert config.machine == "pc-q35-11.1"
    assert config.qemu_version == "11.1.3"
    assert config.arguments[-2:] == ("-smp", "2")
    assert guest.ram.stat().st_size == RAM
    assert guest.ram.stat().st_blocks * 512 >= RAM
    assert host.states() == {"web": "running"}
    child = process.running(guest)
    assert child is not None
    assert os.getsid(child.pid) == child.pid


@pytest.mark.parametrize(
    ("gib", "user", "accelerator"),
    [
        (1, (), "kvm"),
        (64, (), "kvm,dirty-ring-size=4096"),
        (64, ("-accel", "kvm"), "kvm"),
        (64, ("-accel", "tcg"), "tcg"),
    ],
)
def test_kvm_logs_a_large_guest_in_a_ring(
    host: FakeHost, gib: int, user: tuple[str, ...], accelerator: str
) -> None:
    host.put("dev/kvm", "")
    guest = Guest("web", host.places)
    config = guests.plan_config(guest, gib << 30, user, process.DEFAULT_QEMU, host.machine)
    words = config.arguments
    assert words[words.index("-accel") + 1] == accelerator
    assert words.count("-accel") == 1


def test_a_name_can_be_used_once(host: FakeHost) -> None:
    host.start("web")
    with pytest.raises(PkernfsError, match="runs already"):
        host.start("web")


def test_a_qemu_that_dies_shows_its_own_words_and_leaves_nothing(host: FakeHost) -> None:
    host.misbehave("dies")
    with pytest.raises(PkernfsError, match="not a valid device"):
        host.start("web")
    assert list(vms(host.places.store).iterdir()) == []


def test_a_qemu_that_never_greets_is_ended(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.misbehave("mute")
    monkeypatch.setattr(guests, "START_S", 0.3)
    with pytest.raises(PkernfsError, match="can't be talked to"):
        host.start("web")
    assert process.running(Guest("web", host.places)) is None


@answers(
    phase="input",
    failure="more memory than the store has",
    outcome="refused before QEMU starts, nothing left behind",
)
def test_no_room_is_said_before_qemu_starts(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PkernfsError, match="no room for 4M"):
        host.start("web")
    assert list(vms(host.places.store).iterdir()) == []


@answers(
    phase="input",
    failure="a size of memory that can't be had",
    outcome="refused, nothing left behind",
)
@pytest.mark.parametrize("size", [0, -2, 4096, (2 << 20) + 1])
def test_sizes_that_the_store_does_not_hand_out(host: FakeHost, size: int) -> None:
    with pytest.raises(PkernfsError, match="can't have") as error:
        guests.start(host.places, "web", size, [], machine=host.machine)
    assert "multiple of 2M" in error.value.hint


def test_o_direct_is_refused_unless_the_memory_has_pages(host: FakeHost) -> None:
    disk = ("-drive", "file=d,if=virtio,cache=none")
    with pytest.raises(PkernfsError, match="O_DIRECT"):
        host.start("web", *disk)
    host.put("sys/fs/pkernfs/pkernfs/pages", "1\n")
    host.start("web", *disk)


def test_a_stopped_guest_gives_its_memory_back_and_starts_again(host: FakeHost) -> None:
    guest = host.start("web", "-smp", "2")
    guests.stop(host.places, "web", force=False, delete=False)
    assert host.states() == {"web": "off"}
    assert not guest.ram.exists()
    guests.start(host.places, "web", None, [], machine=host.machine)
    assert guest.config().arguments[-2:] == ("-smp", "2")
    assert host.states() == {"web": "running"}


def test_a_deleted_guest_is_gone(host: FakeHost) -> None:
    host.start("web")
    guests.stop(host.places, "web", force=True, delete=True)
    assert host.states() == {}
    with pytest.raises(PkernfsError, match="no guest web"):
        guests.stop(host.places, "web", force=True, delete=True)


def test_a_saved_guest_is_not_lost_by_mistake(host: FakeHost) -> None:
    guest = host.start("web")
    host.kill_all()
    guest.write_saved(Saved("u", True, 0))
    assert host.states() == {"web": "saved"}
    with pytest.raises(PkernfsError, match="waits to be resumed"):
        host.start("web")
    for force, delete in ((False, False), (True, False), (False, True)):
        with pytest.raises(PkernfsError, match="waits to be resumed"):
            guests.stop(host.places, "web", force=force, delete=delete)
    assert guest.ram.exists()
    guests.stop(host.places, "web", force=True, delete=True)
    assert host.states() == {}


def test_a_guest_whose_socket_is_gone_is_listed_and_can_be_forced_off(host: FakeHost) -> None:
    guest = host.start("web")
    guest.socket.unlink()
    assert host.states() == {"web": "unreachable"}
    with pytest.raises(PkernfsError, match="can't be talked to"):
        guests.stop(host.places, "web", force=False, delete=False)
    guests.stop(host.places, "web", force=True, delete=False)
    assert host.states() == {"web": "off"}


def test_a_recycled_pid_is_not_taken_for_the_guest(host: FakeHost) -> None:
    guest = host.start("web")
    host.kill_all()
    (guest.runtime / "pid").write_text(f"{os.getpid()} 12345\n")
    assert process.running(guest) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "pkernfs-vm/9"}'])
def test_a_configuration_that_can_not_be_read(host: FakeHost, text: str) -> None:
    guest = host.start("web")
    guest.config_file.write_text(text)
    with pytest.raises(PkernfsError, match=r"config\.json"):
        guest.config()


def test_the_machine_s_alias_is_pinned(host: FakeHost) -> None:
    assert process.versioned_machine(_qemu(), "q35,smm=off") == "pc-q35-11.1,smm=off"
    assert process.versioned_machine(_qemu(), "pc-q35-11.1") == "pc-q35-11.1"
    with pytest.raises(PkernfsError, match="no machine type"):
        process.versioned_machine(_qemu(), "toaster")


def _qemu() -> Path:
    return process.find_qemu()
