# SPDX-License-Identifier: GPL-2.0-only
"""An update and its way back, with a fake QEMU and a fake jump."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec
from pkernfs.host.bootline import BootLine
from pkernfs.host.kernels import Kernel
from pkernfs.host.ranges import Range
from pkernfs.update import early, handover, journal, plan, quiesce, report, timeline
from pkernfs.update import resume as resuming
from pkernfs.update.lock import update_lock
from pkernfs.vmm import guests, launch, process
from pkernfs.vmm.config import Guest, Places
from tests.answers import answers
from tests.unit.vmm.fakes import RAM, REGION, FakeHost

JUMPED = 77


class FakeKexec:
    """What was loaded, the same for all processes, and what jumping does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump: Callable[[], None] = self._refuse
        self.jumped_to: str | None = None

    @property
    def loaded(self) -> str | None:
        return self._file.read_text() if self._file.exists() else None

    def load(self, kernel: Kernel, line: str) -> None:
        self._file.write_text(line)

    def unload(self) -> None:
        self._file.unlink(missing_ok=True)

    def _refuse(self) -> None:
        raise PkernfsError("the running kernel refuses to start the loaded one: fake")


@pytest.fixture
def jumper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKexec:
    fake = FakeKexec(tmp_path / "loaded")
    monkeypatch.setattr(kexec, "load", fake.load)
    monkeypatch.setattr(kexec, "unload", fake.unload)
    monkeypatch.setattr(kexec, "jump", lambda: fake.jump())
    monkeypatch.setattr(os, "sync", lambda: None)
    # This process is older than the update.
    monkeypatch.setattr(resuming, "_since_start_of_process", lambda: 0)
    return fake


def _update(host: FakeHost, append: str = "") -> None:
    handover.update(host.machine, host.places, handover.Request(append=append), lambda _: None)


def all_run_on(host: FakeHost, jumper: FakeKexec, *names: str) -> None:
    """Nothing is left of an update that was given up."""
    assert host.states() == dict.fromkeys(names, "running")
    assert jumper.loaded is None
    for name in names:
        guest = Guest(name, host.places)
        assert not guest.state.exists()
        assert guest.saved() is None
        _as_before(guest)
        assert guest.ram.stat().st_size == RAM


def qmp(guest: Guest, command: str) -> Any:
    from pkernfs.vmm.monitor import monitor

    async def send() -> Any:
        async with monitor(guest, 5) as session:
            return await session.execute(command)

    return asyncio.run(send())


def _as_before(guest: Guest) -> None:
    """An ordinary migration of the guest would take its memory along."""
    settings = qmp(guest, "query-migrate-parameters")
    assert (settings["mode"], settings["x-ignore-shared"]) == ("normal", False)


def guard_of(host: FakeHost) -> int:
    """Process id of the guard of the update that goes on."""
    lines = journal.path_of(host.places).read_text().splitlines()
    return int(dict(json.loads(line) for line in lines)["guard"])


def kexec_to(host: FakeHost, jumper: FakeKexec, **request: Any) -> None:
    """Update in a process of its own, whose jump ends it and every QEMU.

    :param request: fields of the request.
    """
    child = os.fork()
    if child == 0:

        def jump() -> NoReturn:
            # The guard first: it must not see the end of the update.
            guard = guard_of(host)
            os.kill(guard, signal.SIGKILL)
            os.waitpid(guard, 0)
            host.kill_all()
            os._exit(JUMPED)

        jumper.jump = jump
        try:
            wanted = handover.Request(**request)
            handover.update(host.machine, host.places, wanted, lambda _: None)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == JUMPED
    line = plan.read(host.places, plan.last_update(host.places, host.machine) or "").boot_line
    journal.remove(host.places)  # /run ends with the kernel
    host.boot("7.3.4", "boot-two", line)


def test_guests_of_every_store_go_through_an_update(host: FakeHost, jumper: FakeKexec) -> None:
    second = host.add_region("node1", Range(8 << 30, 1 << 30))
    assert Places.on(host.machine, host.places.store).stores == host.places.stores
    host.start("a")
    guests.start(host.places, "b", RAM, [], machine=host.machine, store=second)
    assert (second / "vms/b/ram").stat().st_size == RAM
    kexec_to(host, jumper)
    assert (second / "vms/b/saved.json").exists()
    line = plan.read(host.places, host.machine.update_marker or "").boot_line
    assert BootLine.parse(line).regions() == host.machine.regions()
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [resuming.Resumed("a"), resuming.Resumed("b")]
    assert host.states() == {"a": "running", "b": "running"}
    assert not (second / "vms/b/state").exists()
    guests.stop(host.places, "b", force=True, delete=True)
    assert list((second / "vms").iterdir()) == []


def test_guests_go_through_an_update(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    assert host.states() == {"a": "saved", "b": "saved"}
    assert resuming.resume(host.machine, host.places).guests == [
        resuming.Resumed("a"),
        resuming.Resumed("b"),
    ]
    assert host.states() == {"a": "running", "b": "running"}
    assert not Guest("a", host.places).state.exists()
    _as_before(Guest("a", host.places))
    update = host.machine.update_marker
    assert update is not None
    value = report.build(host.places, update)
    assert value["schema"] == "pkernfs-report/1"
    assert value["outcome"] == "completed"
    assert value["host"] == {
        "kernel_before": "6.12.1",
        "kernel_after": "7.3.4",
        "boot_id_before": "boot-one",
        "boot_id_after": "boot-two",
    }
    assert [(vm["name"], vm["survived"], vm["ram_bytes"]) for vm in value["vms"]] == [
        ("a", True, RAM),
        ("b", True, RAM),
    ]
    assert all(0 < vm["blackout_s"] < 60 for vm in value["vms"])
    names = [phase["name"] for phase in value["phases"]]
    assert names == [
        "check", "load", "pause", "save", "hand over", "kernel",
        "interpreter", "mount", "verify", "start", "load state", "run",
    ]  # fmt: skip
    assert all(phase["start_s"] <= phase["end_s"] for phase in value["phases"])
    assert "7.3.4" in report.render(value)
    assert (plan.directory(host.places, update) / "report.json").exists()


@answers(
    phase="resume",
    failure="the store is damaged after the update",
    outcome="the guests run; said in report and exit status",
)
def test_a_damaged_store_is_told_after_the_guests_run(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")
    kexec_to(host, jumper)

    def check() -> str:
        assert host.states() == {"a": "running"}
        return "pkernfs: damaged: block 7 is used twice"

    monkeypatch.setattr(resuming, "check_store", check)
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [resuming.Resumed("a")]
    assert not outcome.good
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["store"] == outcome.store
    assert outcome.store in report.render(value)


def test_a_paused_guest_stays_paused(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    qmp(guest, "stop")
    assert host.states() == {"a": "paused"}
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "paused"}
    (vm,) = report.build(host.places, host.machine.update_marker or "")["vms"]
    assert (vm["survived"], vm["blackout_s"]) == (True, None)


def test_a_jump_that_fails_lets_all_run_on(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    host.start("b")
    with pytest.raises(PkernfsError, match="refuses to start"):
        _update(host)
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
        _update(host)
    host.misbehave("")
    all_run_on(host, jumper, "a", "b")


def test_a_dead_socket_stops_the_update_before_anything(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    guest = host.start("b")
    guest.socket.unlink()
    with pytest.raises(PkernfsError, match="guest b: its QEMU can't be talked to"):
        _update(host)
    assert host.states() == {"a": "running", "b": "unreachable"}
    assert jumper.loaded is None


def test_a_missing_kernel_stops_the_update_before_anything(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    with pytest.raises(PkernfsError, match="no other kernel"):
        _update(host)
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
        _update(host)
    all_run_on(host, jumper, "a")


def test_what_doctor_finds_stops_the_update(host: FakeHost, jumper: FakeKexec) -> None:
    host.put("proc/sys/kernel/kexec_load_disabled", "1")
    with pytest.raises(PkernfsError, match="switched off"):
        _update(host)


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
        _update(host)
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
        _update(host)
    sender.join()
    all_run_on(host, jumper, "a")


def test_two_updates_at_once(host: FakeHost, jumper: FakeKexec) -> None:
    with update_lock(host.places), pytest.raises(PkernfsError, match="another update"):
        _update(host)


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


def test_a_state_that_does_not_load_keeps_its_files_and_can_be_tried_again(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    bad = Guest("a", host.places)
    content = bad.state.read_text()
    bad.state.write_text("y" * len(content))
    (failed, fine) = resuming.resume(host.machine, host.places).guests
    assert "fake state does not fit" in failed.error
    assert fine == resuming.Resumed("b")
    assert host.states() == {"a": "saved", "b": "running"}
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "partial"
    assert [vm["survived"] for vm in value["vms"]] == [False, True]
    bad.state.write_text(content)
    assert resuming.resume(host.machine, host.places).guests == [resuming.Resumed("a")]
    assert host.states() == {"a": "running", "b": "running"}
    assert report.build(host.places, host.machine.update_marker or "")["outcome"] == "completed"


@answers(
    phase="resume",
    failure="a guest's file is missing or has another size",
    outcome="set aside with its files, the others run",
)
@pytest.mark.parametrize("file", ["ram", "state", "config.json", "saved.json"])
def test_a_damaged_file_sets_only_its_guest_aside(
    host: FakeHost, jumper: FakeKexec, file: str
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    path = Guest("a", host.places).directory / file
    path.write_bytes(path.read_bytes()[:-7])
    results = resuming.resume(host.machine, host.places).guests
    assert [(result.name, bool(result.error)) for result in results] == [("a", True), ("b", False)]
    assert process.running(Guest("b", host.places)) is not None
    assert process.running(Guest("a", host.places)) is None
    assert path.exists()


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


def _begin(host: FakeHost) -> early.Early | None:
    line = host.root / "proc/cmdline"
    return early.begin(str(host.places.store), str(host.places.run), str(line))


def test_guests_are_started_before_the_rest_of_the_program(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    paused = host.start("b")
    qmp(paused, "stop")
    kexec_to(host, jumper)
    begun = _begin(host)
    assert begun is not None
    assert [it.launch.name for it in begun.launcher.attempts if it.done] == ["a", "b"]
    # A state that is older than the guest's memory can't be taken for a saved one.
    assert Guest("a", host.places).saved() is None
    outcome = resuming.resume(host.machine, host.places, early=begun)
    assert outcome.guests == [resuming.Resumed("a"), resuming.Resumed("b")]
    assert host.states() == {"a": "running", "b": "paused"}
    assert not Guest("a", host.places).state.exists()
    _as_before(Guest("a", host.places))
    value = report.build(host.places, host.machine.update_marker or "")
    assert value["outcome"] == "completed"
    assert [vm["blackout_s"] is not None for vm in value["vms"]] == [True, False]
    names = {phase["name"] for phase in value["phases"]}
    assert names >= {"kernel", "interpreter", "verify", "start", "load state", "run"}


def _marks(host: FakeHost, event: str, subject: str) -> dict[str, int]:
    """When each guest had a mark, as numbers of lines in the timeline."""
    update = plan.last_update(host.places, host.machine) or ""
    records = timeline.load(plan.directory(host.places, update) / "timeline.jsonl")
    return {
        record.guest: number
        for number, record in enumerate(records)
        if (record.event, record.subject) == (event, subject) and record.guest is not None
    }


@pytest.mark.parametrize("order", [(), ("low",)])
def test_a_higher_priority_is_paused_later_and_runs_earlier(
    host: FakeHost, jumper: FakeKexec, order: tuple[str, ...]
) -> None:
    for name in ("high", "low", "mid"):
        host.start(name)
    guests.set_priority(host.places, "mid", 5)
    guests.set_priority(host.places, "high", 7)
    wanted = [*order, *(name for name in ("high", "mid", "low") if name not in order)]
    with pytest.raises(PkernfsError, match="refuses to start"):
        request = handover.Request(order=order)
        handover.update(host.machine, host.places, request, lambda _: None)
    begun, saved = _marks(host, "begin", "pause"), _marks(host, "end", "save")
    for first, last in itertools.pairwise(reversed(wanted)):
        assert saved[first] < begun[last]
    update = plan.last_update(host.places, host.machine) or ""
    listed = (plan.directory(host.places, update) / early.LAUNCH_FILE).read_text()
    assert [it.name for it in launch.parse(listed)] == wanted


def test_a_priority_outlives_a_stop(host: FakeHost) -> None:
    guest = host.start("a")
    guests.set_priority(host.places, "a", -3)
    guests.stop(host.places, "a", force=True, delete=False)
    guests.start(host.places, "a", None, [], machine=host.machine)
    assert guest.config().priority == -3


def test_an_order_with_a_guest_that_does_not_run_is_refused(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    with pytest.raises(PkernfsError, match="no guest b runs"):
        handover.dry_run(host.machine, host.places, handover.Request(order=("a", "b")))
    all_run_on(host, jumper, "a")


@answers(
    phase="resume",
    failure="a guest's QEMU does not start",
    outcome="set aside with its files, the others run; resume tries again",
)
@pytest.mark.parametrize("how", ["refuses", "dies"])
def test_what_can_not_be_started_early_is_told_and_can_be_tried_again(
    host: FakeHost, jumper: FakeKexec, how: str
) -> None:
    guest = host.start("a")
    kexec_to(host, jumper)
    host.misbehave(how)
    (failed,) = resuming.resume(host.machine, host.places, early=_begin(host)).guests
    assert ("fake state does not fit" if how == "refuses" else "not a valid device") in failed.error
    assert process.running(guest) is None
    assert host.states() == {"a": "saved"}
    host.misbehave("")
    assert resuming.resume(host.machine, host.places).good
    assert host.states() == {"a": "running"}


@pytest.mark.parametrize("file", ["ram", "state", "saved.json"])
def test_nothing_is_started_early_from_files_that_are_not_as_they_were(
    host: FakeHost, jumper: FakeKexec, file: str
) -> None:
    host.start("a")
    host.start("b")
    kexec_to(host, jumper)
    path = Guest("a", host.places).directory / file
    path.write_bytes(path.read_bytes()[:-7])
    begun = _begin(host)
    assert begun is not None
    assert [it.launch.name for it in begun.launcher.attempts] == ["b"]
    results = resuming.resume(host.machine, host.places, early=begun).guests
    assert [(result.name, bool(result.error)) for result in results] == [("a", True), ("b", False)]


@answers(
    phase="resume",
    failure="a guest's QEMU hangs at its start",
    outcome="the others run long before it is given up; resume tries again",
)
def test_a_guest_that_does_not_start_holds_nobody_back(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slot, and the first guest never greets: the second runs long before that is given up."""
    host.start("a", "-mute-when-incoming")
    host.start("b")
    kexec_to(host, jumper)
    monkeypatch.setattr(launch, "SLOT_S", 2.0)
    monkeypatch.setattr(launch, "START_S", 6.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    begun = _begin(host)
    assert begun is not None
    assert [(it.launch.name, it.over) for it in begun.launcher.attempts] == [
        ("a", False),
        ("b", True),
    ]
    bad, good = resuming.resume(host.machine, host.places, early=begun).guests
    assert "did not start within 6 s" in bad.error
    assert not good.error
    assert host.states() == {"a": "saved", "b": "running"}


def test_a_second_resume_keeps_off(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    kexec_to(host, jumper)
    with update_lock(host.places):
        assert _begin(host) is None


def test_nothing_is_started_early_without_an_update(host: FakeHost) -> None:
    assert _begin(host) is None


def test_starting_early_imports_next_to_nothing() -> None:
    """Each of these costs paused guests more than starting QEMU does."""
    import subprocess
    import sys

    code = (
        f"import sys; sys.path.insert(0, {str(Path(early.__file__).parents[2])!r});"
        "import pkernfs.cli, pkernfs.update.early;"
        "slow = {'re', 'json', 'typing', 'pathlib', 'contextlib', 'collections', 'enum',"
        " 'dataclasses', 'subprocess', 'socket', 'ctypes'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_resume_without_anything_to_do(host: FakeHost) -> None:
    assert resuming.resume(host.machine, host.places).guests == []


def test_old_updates_are_forgotten(host: FakeHost, jumper: FakeKexec) -> None:
    for _ in range(7):
        with pytest.raises(PkernfsError):
            _update(host)
    assert len([path for path in host.places.updates.iterdir() if path.is_dir()]) == 5


def test_resume_imports_nothing_slow_before_qemu_starts() -> None:
    """typing to start QEMU: neither the QMP client nor asyncio nor rich may be loaded."""
    import subprocess
    import sys

    code = (
        "import sys, pkernfs.cli, pkernfs.cli.resume;"
        "slow = {'asyncio', 'qemu.qmp', 'rich', 'typer', 'dissect', 'hashlib'};"
        "print(*sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
