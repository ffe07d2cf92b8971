# SPDX-License-Identifier: GPL-2.0-only
"""Updates that fail before the jump: all guests run on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec
from pkernfs.host.kernels import Kernel
from pkernfs.update import handover, plan, quiesce, report
from pkernfs.update.lock import update_lock
from tests.answers import answers
from tests.unit.update.fakes import (
    FakeKexec,
    all_run_on,
    run_update,
)
from tests.unit.vmm.fakes import REGION, FakeHost


def _wait_until_paused(host: FakeHost) -> None:
    """By the timeline: QEMU's monitor has one user at a time, and that is the update."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for path in host.places.updates.glob("*/timeline.jsonl"):
            if '"pause"' in path.read_text():
                time.sleep(0.3)
                return
        time.sleep(0.02)
    raise AssertionError("no guest was paused")


def test_a_jump_that_fails_lets_all_run_on(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    host.start("b")
    with pytest.raises(PkernfsError, match="refuses to start"):
        run_update(host)
    all_run_on(host, jumper, "a", "b")
    update = plan.last_update(host.places, host.machine)
    assert update is not None
    value = report.build(host.places, update)
    assert value["outcome"] == "rolled back"
    assert "refuses to start" in value["text"]
    # They were paused for nothing, and it says for how long.
    assert [(vm["name"], vm["survived"]) for vm in value["vms"]] == [("a", True), ("b", True)]
    assert all(0 < vm["blackout_s"] < 60 for vm in value["vms"])


@answers(
    phase="pause, save",
    failure="a guest can't be saved, its saving fails, or it is not paused in time",
    outcome="all guests run on",
)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("blocked", "can't be saved: a device"),
        ("fails", "no space on fake device"),
        ("fat", "its memory is in it"),
        ("hangs", "no MIGRATION/completed"),
    ],
)
def test_a_guest_that_can_not_be_saved_lets_all_run_on(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    if how == "hangs":
        monkeypatch.setattr(quiesce, "SAVE_S", 0.5)
    host.start("a")
    host.start("b")
    host.misbehave(how)
    with pytest.raises(PkernfsError, match=says):
        run_update(host)
    host.misbehave("")
    all_run_on(host, jumper, "a", "b")


def test_a_dead_socket_stops_the_update_before_anything(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    guest = host.start("b")
    guest.socket.unlink()
    with pytest.raises(PkernfsError, match="guest b: its QEMU can't be talked to"):
        run_update(host)
    assert host.states() == {"a": "running", "b": "unreachable"}
    assert jumper.loaded is None


def test_a_missing_kernel_stops_the_update_before_anything(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    with pytest.raises(PkernfsError, match="nothing to do"):
        run_update(host)
    all_run_on(host, jumper, "a")


@answers(
    phase="load",
    failure="the running kernel refuses to load the next one",
    outcome="refused, all guests run on",
)
def test_a_kernel_that_is_refused_stops_the_update(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(kernel: Kernel, line: str) -> None:
        raise PkernfsError("the running kernel refuses to load it")

    monkeypatch.setattr(kexec, "load", refuse)
    host.start("a")
    with pytest.raises(PkernfsError, match="refuses to load"):
        run_update(host)
    all_run_on(host, jumper, "a")


def test_what_doctor_finds_stops_the_update(host: FakeHost, jumper: FakeKexec) -> None:
    host.put("proc/sys/kernel/kexec_load_disabled", "1")
    with pytest.raises(PkernfsError, match="switched off"):
        run_update(host)


@answers(
    phase="check",
    failure="no room in the store for the states",
    outcome="refused, nothing touched",
)
def test_a_store_without_room_for_the_states_stops_the_update(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    real = os.statvfs(host.places.store)
    full = os.statvfs_result((*tuple(real)[:4], 1, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(PkernfsError, match="state of its guests may take"):
        run_update(host)
    all_run_on(host, jumper, "a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_a_guest_is_paused_lets_it_run_on(
    host: FakeHost, jumper: FakeKexec, number: signal.Signals
) -> None:
    host.start("a")
    host.misbehave("hangs")

    def send() -> None:
        _wait_until_paused(host)
        host.misbehave("")
        os.kill(os.getpid(), signal.SIGTSTP)  # Ctrl-Z must not hold a paused guest
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(PkernfsError, match="interrupted"):
        run_update(host)
    sender.join()
    all_run_on(host, jumper, "a")


def test_two_updates_at_once(host: FakeHost, jumper: FakeKexec) -> None:
    with update_lock(host.places), pytest.raises(PkernfsError, match="another update"):
        run_update(host)


def test_a_dry_run_changes_nothing(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    planned = handover.dry_run(
        host.machine, host.places, handover.Request(append="single", watchdog=0)
    )
    assert planned.kernel_after == "7.3.4"
    marker = f"pkernfs_update={planned.update}"
    assert planned.boot_line == f"quiet memmap=1G$4G pkernfs.region={REGION} {marker} single"
    assert [(guest.name, guest.was_running) for guest in planned.guests] == [("a", True)]
    assert not host.places.updates.exists()
    all_run_on(host, jumper, "a")
