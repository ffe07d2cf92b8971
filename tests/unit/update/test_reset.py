# SPDX-License-Identifier: GPL-2.0-only
"""A store that a reset left as it was, or nearly: what of it is gone on with, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host import hardware_watchdog
from pkernfs.host.doctor import Finding, default_kernel
from pkernfs.host.machine import NoStoreError
from pkernfs.update import doctor, report, reported
from pkernfs.update import resume as resuming
from pkernfs.update.waiting import Resumed
from pkernfs.vmm import fingerprint, guests
from pkernfs.vmm.config import Guest
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, as_before, kexec_to, run_update
from tests.unit.vmm.fakes import RAM, REGION, FakeHost

_LINE = f"BOOT_IMAGE=/v quiet memmap=1G$4G pkernfs.region={REGION}"


def _reset(host: FakeHost) -> None:
    """The host is reset, and boots as it always does; its memory stays."""
    host.kill_all()
    for path in host.places.run.glob("*"):
        path.rename(host.root / f"gone-{path.name}")
    host.boot("6.12.1", "boot-after-reset", _LINE)


def _finding(host: FakeHost, id: str) -> Finding:
    found = doctor.examine(host.machine, host.places, default_kernel(host.machine))
    return next(it for it in found if it.id == id)


@answers(
    phase="up to the jump",
    failure="the host is reset while guests run, and its memory stays",
    outcome="vm list, doctor, resume and vm start say that they were cut off; vm start boots them"
    " from their disks",
)
def test_a_guest_that_ran_when_the_host_was_reset_is_neither_off_nor_saved(
    host: FakeHost,
) -> None:
    guest = host.start("a")
    host.start("stopped")
    guests.stop(host.places, "stopped", force=True, delete=False)
    _reset(host)
    assert host.states() == {"a": "lost", "stopped": "off"}
    said = _finding(host, "guest.a")
    assert "was on when its kernel ended without an update" in said.text
    assert "pkernfs vm start a" in said.hint
    outcome = resuming.resume(host.machine, host.places)
    assert (outcome.guests, outcome.cut_off, outcome.good) == ([], ("a",), True)
    guest.ram.write_bytes(b"stale" * (RAM // 5) + b"e" * (RAM % 5))
    guests.start(host.places, "a", None, [], machine=host.machine)
    assert host.states() == {"a": "running", "stopped": "off"}
    assert guest.ram.read_bytes()[:5] == bytes(5)
    assert resuming.resume(host.machine, host.places).cut_off == ()


def test_a_guest_that_ended_in_this_kernel_is_off(host: FakeHost) -> None:
    host.start("a")
    host.kill_all()
    assert host.states() == {"a": "off"}


def test_a_resumed_guest_belongs_to_the_kernel_that_resumed_it(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    host.kill_all()
    assert host.states() == {"a": "off"}
    _reset(host)
    assert host.states() == {"a": "lost"}


@answers(
    phase="next kernel",
    failure="it panics or hangs, and the host is reset; its memory stays",
    outcome="an ordinary boot checks the guests' fingerprints and resumes them",
)
def test_an_ordinary_boot_resumes_what_an_unfinished_update_saved(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    update = host.machine.update_marker
    _reset(host)
    assert host.states() == {"a": "saved"}
    said = _finding(host, "guest.a")
    assert f"saved by update {update}; this kernel is not the one" in said.text
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
    assert host.states() == {"a": "running"}
    as_before(Guest("a", host.places))
    value = report.build(host.places, update or "")
    assert value["vms"][0]["survived"]
    assert value["outcome"] == "went back"
    assert value["text"] == "the host was reset before its guests ran: 6.12.1 resumed them"


@answers(
    phase="next kernel",
    failure="it panics or hangs, the host is reset, and memory is not what it was",
    outcome="those guests stay saved, the others run; vm start --anew boots them from their disks",
)
@pytest.mark.parametrize("file", ["ram", "state"])
def test_a_guest_whose_memory_changed_is_not_resumed(
    host: FakeHost, jumper: FakeKexec, file: str
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    _reset(host)
    bad = Guest("a", host.places)
    with (bad.directory / file).open("r+b") as damaged:
        damaged.write(b"?" * min(RAM // 2, (bad.directory / file).stat().st_size))
    failed, fine = resuming.resume(host.machine, host.places).guests
    assert "it did not outlive the reset" in failed.error
    assert fine == Resumed("b")
    assert host.states() == {"a": "saved", "b": "running"}
    assert failed.hint.startswith("nothing can go on with that; pkernfs vm start a --anew")
    with pytest.raises(PkernfsError, match="waits to be resumed") as caught:
        guests.start(host.places, "a", None, [], machine=host.machine)
    assert "--anew" in caught.value.hint
    guests.start(host.places, "a", None, [], machine=host.machine, anew=True)
    assert host.states() == {"a": "running", "b": "running"}
    assert bad.saved() is None


def test_the_kernel_of_the_update_takes_no_time_to_check(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    monkeypatch.setattr(fingerprint, "differs", lambda *_: 1 / 0)
    assert resuming.resume(host.machine, host.places).good


def test_an_ordinary_boot_with_nobody_waiting_touches_no_record(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    (file,) = host.places.updates.glob("*/timeline.jsonl")
    before = file.read_bytes()
    _reset(host)
    assert resuming.resume(host.machine, host.places).good
    assert file.read_bytes() == before
    assert reported.read(host.places) is None


def test_a_further_region_that_has_no_store_yet_is_not_talked_about(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets one after this, at the first boot with it."""
    unmounted = {Path("/mnt/pkernfs-new"): NoStoreError("there is no store in the region")}
    monkeypatch.setattr(resuming, "mount_stores", lambda *_: unmounted)
    host.boot("6.12.1", "boot-two", _LINE)
    assert resuming.resume(host.machine, host.places).good


def test_a_further_store_that_can_not_be_mounted_is_talked_about(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guests may wait in it."""
    unmounted = {Path("/mnt/pkernfs-two"): PkernfsError("it is damaged")}
    monkeypatch.setattr(resuming, "mount_stores", lambda *_: unmounted)
    host.boot("6.12.1", "boot-two", _LINE)
    outcome = resuming.resume(host.machine, host.places)
    assert not outcome.good
    assert outcome.store == "it is damaged"


@pytest.fixture
def saved(host: FakeHost, jumper: FakeKexec) -> Iterator[Guest]:
    """A guest that is saved, with memory of its own."""
    guest = host.start("a")
    guest.ram.write_bytes(bytes(range(256)) * (RAM // 256))
    kexec_to(host, jumper)
    yield guest


def _write(guest: Guest, offset: int, size: int) -> None:
    with guest.ram.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize("kind", fingerprint.KINDS)
def test_what_each_fingerprint_finds(
    saved: Guest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = 64
    monkeypatch.setattr(fingerprint, "SAMPLES", parts)
    config = saved.config()
    size = RAM // parts

    def changed(offset: int, length: int) -> bool:
        content = saved.ram.read_bytes()
        taken = fingerprint.take(saved, config, kind, "seed")
        assert not fingerprint.differs(saved, config, taken, "seed")
        _write(saved, offset, length)
        found = fingerprint.differs(saved, config, taken, "seed")
        saved.ram.write_bytes(content)
        return found

    # One piece of two parts is found wherever it is; one byte only by looking at all.
    pieces = [changed(at, 2 * size) for at in range(0, RAM - 2 * size, size)]
    assert set(pieces) == {kind != fingerprint.NONE}
    assert changed(RAM - 1, 1) == (kind == fingerprint.WHOLE)


def test_which_pieces_are_read_is_decided_by_the_update(saved: Guest) -> None:
    pieces = [list(fingerprint._sample(1 << 30, seed)) for seed in ("one", "two", "one")]
    assert pieces[0] == pieces[2] != pieces[1]
    assert len({offset for offset, _ in pieces[0]}) == fingerprint.SAMPLES
    part = (1 << 30) // fingerprint.SAMPLES
    assert all(at // part == number for number, (at, _) in enumerate(pieces[0]))
    small = list(fingerprint._sample(16 * 512, "one"))
    assert small == [(at, 512) for at in range(0, 16 * 512, 512)]


def test_memory_into_which_devices_write_is_left_out(saved: Guest) -> None:
    config = replace(saved.config(), devices=("0000:01:00.0",))
    taken = fingerprint.take(saved, config, fingerprint.WHOLE, "seed")
    _write(saved, 0, RAM)
    assert not fingerprint.differs(saved, config, taken, "seed")
    saved.state.write_bytes(b"?" * saved.state.stat().st_size)
    assert fingerprint.differs(saved, config, taken, "seed")


def test_a_kind_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no fingerprint 'half'"):
        fingerprint.check_kind("half")


@pytest.fixture
def timer(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine has a watchdog; the file says what was done to it last."""
    home = "sys/class/watchdog/watchdog0"
    host.put(f"{home}/identity", "fake timer\n")
    host.put(f"{home}/state", "inactive\n")
    host.put(f"{home}/nowayout", "0\n")
    host.put("sys/module/watchdog/parameters/stop_on_reboot", "0\n")
    host.put("sys/module/fake_wdt/refcnt", "0\n")
    host.put("lib/modules/7.3.4/kernel/fake_wdt.ko", "")
    host.put(f"{home}/device/driver/bind", "")
    (host.root / home / "device/driver/module").symlink_to(host.root / "sys/module/fake_wdt")
    node = host.put("dev/watchdog0", "")
    armed = f"{hardware_watchdog.__name__}._arm"
    monkeypatch.setattr(armed, lambda _, seconds: node.write_text(f"armed {seconds}"))
    return node


def test_a_hardware_watchdog_runs_from_the_jump_until_the_guests_run(
    host: FakeHost, jumper: FakeKexec, timer: Path
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    assert timer.read_text() == "armed 420"
    assert resuming.resume(host.machine, host.places).warning == ""
    assert timer.read_text() == "V"


def test_a_jump_that_is_refused_leaves_no_hardware_watchdog_running(
    host: FakeHost, jumper: FakeKexec, timer: Path
) -> None:
    host.start("a")
    with pytest.raises(PkernfsError):
        run_update(host)
    assert timer.read_text() == "V"
    assert host.states() == {"a": "running"}


def test_a_hardware_watchdog_that_runs_on_is_said(
    host: FakeHost, jumper: FakeKexec, timer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    monkeypatch.setattr(hardware_watchdog, "_NODE_S", 0.1)
    log = host.put("dev/kmsg", "")
    timer.unlink()
    timer.mkdir()
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [Resumed("a")]
    assert "the hardware watchdog was armed for the jump and can't be stopped" in outcome.warning
    assert b"modprobe fake_wdt" in log.read_bytes()
