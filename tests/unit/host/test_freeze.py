# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems are frozen before what they rest on, and nothing that hangs holds an update."""

from __future__ import annotations

import errno
import fcntl
import time
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import freeze, mounts
from pkernfs.host.machine import Machine
from tests.answers import answers

_NAMES = {freeze._FIFREEZE: "freeze", freeze._FITHAW: "thaw"}


class Disks:
    """Mounts and block devices of a machine made of files, and what is done to them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.machine = Machine(root)
        self.hang: dict[tuple[str, str], float] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self._log = root / "log"
        self._mounts: list[str] = []
        root.mkdir()
        self._log.touch()
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)
        monkeypatch.setattr(freeze, "_sync", lambda fd: self._note("sync", self._name(fd)))
        monkeypatch.setattr(freeze, "FREEZE_S", 2.0)
        monkeypatch.setattr(freeze, "THAW_S", 1.0)

    def _name(self, fd: int) -> str:
        return Path(f"/proc/self/fd/{fd}").readlink().name

    def _note(self, what: str, name: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{what} {name}\n")

    def _ioctl(self, fd: int, request: int, argument: int) -> int:
        step = (_NAMES[request], self._name(fd))
        time.sleep(self.hang.get(step, 0))
        if step in self.errors:
            raise OSError(self.errors[step], "fake")
        self._note(*step)
        return 0

    @property
    def done(self) -> list[str]:
        return self._log.read_text().splitlines()

    def point(self, name: str) -> Path:
        return self.root / "at" / name

    def mount(
        self, name: str, number: str, kind: str = "ext4", source: str = "/dev/x", more: str = ""
    ) -> None:
        point = self.point(name)
        point.mkdir(parents=True, exist_ok=True)
        where = str(point).replace(" ", "\\040")
        self._mounts.append(f"1 0 {number} / {where} rw - {kind} {source} rw{more}\n")
        file = self.root / "proc/self/mountinfo"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(self._mounts))

    def device(
        self, number: str, name: str, *, slaves: tuple[str, ...] = (), backing: str = ""
    ) -> Path:
        device = self.root / "sys/devices" / name
        device.mkdir(parents=True)
        (device / "dev").write_text(number + "\n")
        for folder, link in (("dev/block", number), ("class/block", device.name)):
            path = self.root / "sys" / folder / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(device)
        (device / "slaves").mkdir()
        for slave in slaves:
            (device / "slaves" / Path(slave).name).symlink_to(self.root / "sys/devices" / slave)
        if backing:
            (device / "loop").mkdir()
            (device / "loop/backing_file").write_text(backing + "\n")
        return device

    def order(self) -> list[list[str]]:
        return [sorted(m.point.name for m in layer) for layer in mounts.in_layers(self.machine)]

    def nested(self) -> None:
        """The one on a loop device is mounted at the shorter path."""
        self.device("8:0", "sda")
        self.device("7:0", "loop0", backing=f"{self.point('deep/er/outer')}/file")
        self.mount("deep/er/outer", "8:0")
        self.mount("inner", "7:0")


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(tmp_path / "root", monkeypatch)


def test_a_loop_device_is_frozen_before_the_disk_that_has_its_file(disks: Disks) -> None:
    disks.nested()
    noted = []
    with freeze.frozen_filesystems(disks.machine, lambda *note: noted.append(note)):
        assert disks.done == ["freeze inner", "freeze outer"]
    assert disks.done[2:] == ["thaw outer", "thaw inner"]
    names = [(point.name, frozen) for point, frozen in noted]
    assert names == [("inner", None), ("inner", True), ("outer", None), ("outer", True)]


def test_devices_made_of_devices(disks: Disks) -> None:
    """LVM on RAID on two partitions, one of a loop device whose file lies on a third disk."""
    disks.device("8:0", "sda")
    disks.device("8:1", "sda/sda1")
    (disks.root / "sys/devices/sda/sda1/partition").write_text("1")
    disks.device("8:16", "sdb")
    disks.device("7:0", "loop0", backing=f"{disks.point('b b')}/x (deleted)")
    disks.device("259:0", "loop0/loop0p1")
    (disks.root / "sys/devices/loop0/loop0p1/partition").write_text("1")
    disks.device("9:0", "md0", slaves=("sda/sda1", "loop0/loop0p1"))
    disks.device("253:0", "dm-0", slaves=("md0",))
    disks.mount("b b", "8:16")
    disks.mount("lv", "253:0")
    disks.mount("whole", "8:0")
    disks.mount("other", "8:32")
    assert disks.order() == [["lv", "other"], ["b b", "whole"]]


def test_btrfs_has_several_devices_and_an_overlay_an_upper(disks: Disks) -> None:
    disks.device("8:0", "sda")
    disks.device("7:0", "loop0", backing=f"{disks.point('disk')}/x")
    devices = disks.root / "sys/fs/btrfs/uuid/devices"
    devices.mkdir(parents=True)
    for name in ("sda", "loop0"):
        (devices / name).symlink_to(disks.root / "sys/devices" / name)
    disks.mount("disk", "8:16")
    disks.mount("pool", "0:40", "btrfs", "/dev/sda")
    disks.mount("merged", "0:41", "overlay", "overlay", f",upperdir={disks.point('pool')}/up")
    assert disks.order() == [["merged"], ["pool"], ["disk"]]


def test_what_has_no_disk_is_synced_first_but_after_what_rests_on_it(disks: Disks) -> None:
    disks.device("7:0", "loop0", backing=f"{disks.point('net')}/x")
    disks.mount("memory", "0:30", "tmpfs", "tmpfs")
    disks.mount("net", "0:31", "nfs4", "server:/x")
    disks.mount("disk", "8:16")
    disks.mount("on net", "7:0")
    with freeze.frozen_filesystems(disks.machine):
        assert disks.done == ["freeze on net", "sync net", "freeze disk"]
    assert disks.done[3:] == ["thaw disk", "thaw on net"]


def test_a_circle_is_no_endless_loop(disks: Disks) -> None:
    disks.device("7:0", "loop0", backing=f"{disks.point('b')}/x")
    disks.device("7:1", "loop1", backing=f"{disks.point('a')}/x")
    disks.mount("a", "7:0")
    disks.mount("b", "7:1")
    assert disks.order() == [["a", "b"]]


def test_a_mount_that_another_hides_is_not_taken_for_it(disks: Disks) -> None:
    disks.mount("one", "8:0")
    disks.mount("here", "8:0")
    disks.mount("one", "8:16")
    found = [(mount.point.name, mount.number) for mount in mounts.writable(disks.machine)]
    assert found == [("here", "8:0"), ("one", "8:16")]


def test_what_can_not_be_frozen_is_synced_and_somebody_elses_is_left(disks: Disks) -> None:
    disks.mount("fat", "8:0", "vfat")
    disks.mount("theirs", "8:16")
    disks.errors = {
        ("freeze", "fat"): errno.EOPNOTSUPP,
        ("freeze", "theirs"): errno.EBUSY,
    }
    with freeze.frozen_filesystems(disks.machine):
        pass
    assert disks.done == ["sync fat"]


@answers(
    phase="hand over",
    failure="a filesystem does not come to rest",
    outcome="given up after 30 s; those frozen are thawed, all guests run on",
)
def test_a_freeze_that_hangs_ends_the_update_and_is_thawed_later(disks: Disks) -> None:
    disks.nested()
    disks.hang["freeze", "outer"] = 4.0
    begun = time.monotonic()
    with (
        pytest.raises(freeze.StillFrozenError, match=r"outer was not at rest.*may still be frozen"),
        freeze.frozen_filesystems(disks.machine),
    ):
        raise AssertionError("all of it was frozen")
    assert time.monotonic() - begun < 3.9
    assert disks.done == ["freeze inner", "thaw inner"]
    time.sleep(4.0 - (time.monotonic() - begun) + 1.0)
    assert disks.done[2:] == ["freeze outer", "thaw outer"]


def test_a_freeze_that_was_slow_is_undone_at_once(disks: Disks) -> None:
    disks.nested()
    disks.hang["freeze", "outer"] = 2.4
    with (
        pytest.raises(PkernfsError, match=r"outer was not at rest after 2 s$"),
        freeze.frozen_filesystems(disks.machine),
    ):
        raise AssertionError("all of it was frozen")
    assert disks.done[2:] == ["freeze outer", "thaw outer"]


@answers(
    phase="hand over",
    failure="a filesystem does not thaw after that",
    outcome="guests wait 2 s for it, then run on; said; tried again by the guard, then --recover",
)
def test_a_thaw_that_hangs_is_said(disks: Disks) -> None:
    disks.nested()
    disks.hang["thaw", "outer"] = 6.0
    begun = time.monotonic()
    with (
        pytest.raises(freeze.StillFrozenError, match=r"no jump; .*outer may still be frozen"),
        freeze.frozen_filesystems(disks.machine),
    ):
        raise PkernfsError("no jump")
    assert time.monotonic() - begun < 3.0
    assert disks.done[2:] == ["thaw inner"]
    begun = time.monotonic()
    points = [disks.point("inner"), disks.point("deep/er/outer")]
    assert freeze.thaw(points) == [points[1]]
    assert time.monotonic() - begun < 3.0
