# SPDX-License-Identifier: GPL-2.0-only
"""The watchdog: when it goes back, to what, and when it must not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host.bootline import BootLine
from pkernfs.update import handover, plan, report, reported, watchdog
from pkernfs.update import resume as resuming
from pkernfs.update.waiting import Resumed
from pkernfs.vmm import process
from pkernfs.vmm.config import Guest
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, jumper, kexec_to
from tests.unit.vmm.fakes import REGION, FakeHost, host

__all__ = ["host", "jumper"]


class Jumped(BaseException):
    """The kernel before was started."""


@pytest.fixture
def back(jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    """A jump that the test survives, and a clock that says that the time is up."""

    def jump() -> None:
        jumper.jumped_to = jumper.loaded
        raise Jumped

    jumper.jump = jump
    monkeypatch.setattr(watchdog, "since_boot", lambda: 1000.0)
    return jumper


def _order(host: FakeHost) -> watchdog.Order:
    found = watchdog.order(host.machine)
    assert found is not None
    return found


def _watch(host: FakeHost) -> None:
    watchdog.watch(host.machine, host.places, _order(host), lambda _: None)


def test_the_order_is_in_the_boot_line_alone(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    kexec_to(host, jumper, append="nosmp pkernfs_lab_store=no", watchdog=77)
    found = _order(host)
    assert found.seconds == 77
    assert found.kernel.image == host.root / "boot/vmlinuz-6.12.1"
    assert found.kernel.initrd == host.root / "boot/initrd.img-6.12.1"
    # What was appended for the next kernel is not for the one before.
    assert str(found.line) == (
        f"quiet memmap=1G$4G pkernfs.region={REGION} pkernfs_went_back=7.3.4 "
        f"pkernfs_update={found.update} panic=30"
    )
    # It does not go back and forth.
    host.boot("6.12.1", "boot-three", str(found.line))
    assert watchdog.order(host.machine) is None
    # And a later update has no trace of it.
    line = handover.dry_run(host.machine, host.places, handover.Request(watchdog=0)).boot_line
    assert not any(word in line for word in ("went_back", "pkernfs_back", "watchdog"))


def test_a_kernel_that_no_update_started_has_no_watchdog(host: FakeHost) -> None:
    assert watchdog.order(host.machine) is None


@answers(
    phase="next kernel",
    failure="pkernfs resume does not report in time",
    outcome="the watchdog goes back to the kernel before, which resumes; the report says went back",
)
def test_without_a_report_it_goes_back(host: FakeHost, back: FakeKexec, jumper: FakeKexec) -> None:
    host.start("a")
    kexec_to(host, jumper)
    with pytest.raises(Jumped):
        _watch(host)
    line = back.jumped_to
    assert line is not None
    assert BootLine.parse(line).values("pkernfs_went_back") == ["7.3.4"]
    # The files are as they were: the kernel before resumes the guest.
    host.boot("6.12.1", "boot-three", line)
    assert resuming.resume(host.machine, host.places).guests == [Resumed("a")]
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "went back"
    assert value["text"] == ("the watchdog left 7.3.4: pkernfs resume did not report within 300 s")
    assert value["host"]["kernel_after"] == "6.12.1"
    assert [vm["survived"] for vm in value["vms"]] == [True]


@answers(
    phase="next kernel",
    failure="it has no module or does not mount the store",
    outcome="the watchdog goes back to the kernel before, which resumes",
)
def test_a_store_that_is_not_mounted_is_no_obstacle(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    host.put("proc/self/mountinfo", "")
    away = host.places.store.rename(host.places.store.with_name("away"))
    with pytest.raises(Jumped):
        _watch(host)
    away.rename(host.places.store)
    host.put("proc/self/mountinfo", f"22 1 0:20 / {host.places.store} rw - pkernfs none rw\n")
    host.boot("6.12.1", "boot-three", back.jumped_to or "")
    assert resuming.resume(host.machine, host.places).good
    value = report.build(host.places, host.machine.update_marker or "")
    assert (value["outcome"], "not mounted there" in value["text"]) == ("went back", True)


def test_a_guest_that_is_back_ends_the_watch(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    _watch(host)
    assert back.jumped_to is None


def test_an_update_without_guests_ends_the_watch(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    kexec_to(host, jumper)
    resuming.resume(host.machine, host.places)
    _watch(host)


@answers(
    phase="next kernel",
    failure="no guest at all can be resumed",
    outcome="the watchdog goes back to the kernel before, which resumes",
)
def test_when_no_guest_comes_back_it_goes_back(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    """Resume has reported, but the next kernel can't run any of them."""
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    host.misbehave("refuses")
    assert not resuming.resume(host.machine, host.places).good
    host.misbehave("")
    assert reported.read(host.places) == reported.Reported(2, 0)
    with pytest.raises(Jumped):
        _watch(host)
    host.boot("6.12.1", "boot-three", back.jumped_to or "")
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "running", "b": "running"}


def _hung_resume(host: FakeHost, until: Callable[[], bool]) -> int:
    """A resume that hangs; its process."""
    child = os.fork()
    if child == 0:
        try:
            resuming.resume(host.machine, host.places)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return child


@answers(
    phase="resume",
    failure="it hangs before a guest ran",
    outcome="the watchdog ends it and goes back",
)
def test_a_resume_that_hangs_before_a_guest_ran_is_ended(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    host.misbehave("stuck")  # the state never comes to be loaded
    guest = Guest("a", host.places)
    child = _hung_resume(host, lambda: process.running(guest) is not None)
    with pytest.raises(Jumped):
        _watch(host)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert process.running(guest) is None
    host.misbehave("")
    assert guest.saved() is not None
    host.boot("6.12.1", "boot-three", back.jumped_to or "")
    assert resuming.resume(host.machine, host.places).good


@answers(
    phase="resume",
    failure="a QEMU hangs, and nobody knows whether its guest ran",
    outcome="the watchdog stays",
)
def test_a_qemu_that_does_not_answer_keeps_it_from_going_back(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell whether its guest has run. Resume itself ends it after a while."""
    monkeypatch.setattr(watchdog, "_ANSWER_S", 0.3)
    host.start("a")
    kexec_to(host, jumper)
    host.misbehave("mute")
    guest = Guest("a", host.places)
    child = _hung_resume(host, lambda: process.running(guest) is not None)
    with pytest.raises(PkernfsError, match="may have run"):
        _watch(host)
    os.waitpid(child, 0)
    assert process.running(guest) is not None


@answers(
    phase="resume",
    failure="one guest runs, another one's QEMU is mute when the watchdog's time is up",
    outcome="the watchdog stays and leaves resume alone, which ends the mute one by itself",
)
def test_a_guest_that_has_run_keeps_it_from_going_back(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory has gone on, so its saved state is void: going back would lose it."""
    host.start("a")
    kexec_to(host, jumper)
    with monkeypatch.context() as patched:
        patched.setattr(resuming, "_finish", lambda *_: time.sleep(60))
        timeline = plan.directory(host.places, host.machine.update_marker or "") / "timeline.jsonl"
        child = _hung_resume(host, lambda: '"running"' in timeline.read_text())
    _watch(host)
    assert back.jumped_to is None
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "resume was ended"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert host.states() == {"a": "running"}


@answers(
    phase="resume",
    failure="a guest was let run, and its QEMU has ended since",
    outcome="it is not taken for one that is back: the watchdog goes back for the others",
)
def test_a_guest_whose_qemu_has_ended_is_not_back(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    guest.begins_to_run()
    with pytest.raises(Jumped):
        _watch(host)


def test_what_somebody_does_by_hand_keeps_it_from_going_back(
    host: FakeHost, back: FakeKexec, jumper: FakeKexec
) -> None:
    from pkernfs.update.lock import update_lock

    kexec_to(host, jumper)
    with (
        update_lock(host.places, "recovery"),
        pytest.raises(PkernfsError, match="recovery is going on"),
    ):
        _watch(host)


@answers(
    phase="next kernel",
    failure="the kernel before is not on disk any more",
    outcome="the watchdog stays and says so in the kernel log",
)
def test_a_kernel_that_is_gone_is_said(host: FakeHost, back: FakeKexec, jumper: FakeKexec) -> None:
    kexec_to(host, jumper)
    (host.root / "boot/vmlinuz-6.12.1").unlink()
    with pytest.raises(PkernfsError, match=r"can't read the kernel .*vmlinuz-6\.12\.1"):
        _watch(host)


@answers(
    phase="check",
    failure="the running kernel's image is gone",
    outcome="no watchdog, doctor has a note; refused if --watchdog is given",
)
def test_the_running_kernel_must_be_there_to_go_back_to(host: FakeHost, jumper: FakeKexec) -> None:
    (host.root / "boot/vmlinuz-6.12.1").unlink()
    with pytest.raises(PkernfsError, match="nothing to go back to"):
        handover.dry_run(host.machine, host.places, handover.Request(watchdog=100))
    planned = handover.dry_run(host.machine, host.places, handover.Request())
    assert planned.watchdog_s == 0
    assert "watchdog" not in planned.boot_line


def test_a_kernel_that_was_started_from_elsewhere_is_found(
    host: FakeHost, jumper: FakeKexec
) -> None:
    """The plan of the update that started it knows its files."""
    image = host.put("srv/kernel", (host.root / "boot/vmlinuz-7.3.4").read_bytes())
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    kexec_to(host, jumper, image=image)
    assert host.machine.kernel == "7.3.4"
    assert watchdog.running_kernel(host.machine, host.places).image == image


@pytest.mark.parametrize("seconds", [1, 29.9, -5])
def test_a_time_in_which_no_kernel_comes_up_is_refused(
    host: FakeHost, jumper: FakeKexec, seconds: float
) -> None:
    with pytest.raises(UsageError, match="too short"):
        handover.dry_run(host.machine, host.places, handover.Request(watchdog=seconds))


@answers(
    phase="check",
    failure="--append would give the range to the next kernel, or name other regions",
    outcome="refused, nothing touched",
)
@pytest.mark.parametrize(
    ("append", "says"),
    [
        ("pkernfs.region=1G!5G", "other regions"),
        ("pkernfs.region=", "other regions"),
        ("memmap=1G@4G", "for other memory"),
        ("memmap=64M!4G", "for other memory"),
        ("pkernfs_update=none", "mark of the update"),
    ],
)
def test_words_that_would_give_the_range_away_are_refused(
    host: FakeHost, jumper: FakeKexec, append: str, says: str
) -> None:
    with pytest.raises(PkernfsError, match=says) as caught:
        handover.dry_run(host.machine, host.places, handover.Request(append=append))
    assert "--append" in caught.value.hint


def test_the_verb_without_an_order_ends_at_once() -> None:
    code = "import sys; sys.argv = ['pkernfs', 'watchdog']; from pkernfs.cli import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "no watchdog" in done.stdout
