# SPDX-License-Identifier: GPL-2.0-only
"""What doctor asks of an update, and updates that go on in spite of a finding."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host.doctor import Finding, Status, default_kernel
from pkernfs.update import checked, doctor, handover, journal
from pkernfs.update import resume as resuming
from pkernfs.update.journal import Journal
from pkernfs.update.lock import update_lock
from pkernfs.update.waiting import Resumed
from pkernfs.vmm import protocol
from pkernfs.vmm.config import Guest
from pkernfs.vmm.monitor import Monitor, monitor
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on, jumper, kexec_to, qmp
from tests.unit.update.processes import die, in_child, killed
from tests.unit.vmm.fakes import FakeHost, host

__all__ = ["host", "jumper"]


def _examine(host: FakeHost) -> list[Finding]:
    return doctor.examine(host.machine, host.places, default_kernel(host.machine))


def _named(host: FakeHost, id: str) -> list[Finding]:
    return [finding for finding in _examine(host) if finding.id == id]


def _blockers(host: FakeHost) -> list[str]:
    return [finding.id for finding in _examine(host) if finding.status is Status.BLOCKER]


def test_a_host_with_guests_that_can_be_saved_has_no_blocker(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    host.start("b")
    found = _examine(host)
    assert [f.id for f in found if f.status is Status.BLOCKER] == []
    texts = [finding.text for finding in found if finding.topic == "guest"]
    assert [text.split(",")[0] for text in texts] == ["a can be saved", "b can be saved"]
    assert all(finding.id for finding in found)
    # Nothing was changed.
    all_run_on(host, jumper, "a", "b")


def test_each_guest_is_asked(host: FakeHost) -> None:
    host.start("a")
    host.misbehave("blocked")
    (found,) = _named(host, "guest.a")
    assert (found.status, found.overridable) == (Status.BLOCKER, False)
    assert "can't be saved: a device" in found.text

    assert found.hint.startswith("pkernfs update --dry-run")


def test_what_forbids_a_migration_of_a_guest_with_devices_is_a_note(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not forbid an update, and QEMU says it of each of them."""
    host.start("a")
    host.misbehave("blocked")
    monkeypatch.setattr(Monitor, "passes_devices", True)
    (found,) = _named(host, "guest.a")
    assert (found.status, "a device" in found.text) == (Status.NOTE, True)
    assert found.hint.startswith("pkernfs update --dry-run")


@answers(
    phase="check",
    failure="doctor is killed while it asks the guests",
    outcome="nothing was set on them, so an ordinary migration takes their memory along",
)
def test_a_killed_doctor_leaves_nothing_on_a_guest(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("a")

    async def deadly(_: Monitor) -> bool:
        die()
        return True

    monkeypatch.setattr(Monitor, "is_running", deadly)
    killed(in_child(lambda: _examine(host)))
    all_run_on(host, jumper, "a")


@answers(
    phase="check",
    failure="something that was killed has left an update's settings on a guest",
    outcome="doctor has a note; --dry-run takes them back",
)
def test_settings_that_were_left_are_a_note(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")

    async def prepare() -> None:
        async with monitor(guest) as session:
            for command, arguments in protocol.settings(update=True):
                await session.execute(command, arguments)

    asyncio.run(prepare())
    (found,) = _named(host, "settings.a")
    assert (found.status, "--dry-run" in found.hint) == (Status.NOTE, True)
    assert "x-ignore-shared and mode cpr-reboot" in found.text
    assert _blockers(host) == []
    assert qmp(guest, "query-migrate-parameters")["mode"] == "cpr-reboot"  # it only looks
    handover.dry_run(host.machine, host.places, handover.Request())
    assert not _named(host, "settings.a")
    all_run_on(host, jumper, "a")


def test_doctor_keeps_nobody_from_anything(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start("a")
    held = []

    async def look(_: Monitor) -> bool:
        with update_lock(host.places):
            held.append(True)
        return True

    monkeypatch.setattr(Monitor, "is_running", look)
    assert _blockers(host) == []
    assert held == [True]


def test_a_guest_that_does_not_answer_blocks(host: FakeHost) -> None:
    host.start("a").socket.unlink()
    assert _blockers(host) == ["guest.a"]


def test_a_paused_guest_is_a_note(host: FakeHost) -> None:
    qmp(host.start("a"), "stop")
    (found,) = _named(host, "guest.a")
    assert (found.status, "is paused" in found.text) == (Status.NOTE, True)


def test_no_room_for_the_states_blocks(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start("a")
    real = os.statvfs(host.places.store)
    full = os.statvfs_result((*tuple(real)[:4], 1, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert _blockers(host) == ["space"]


@answers(
    phase="check",
    failure="an earlier update was killed and is not undone",
    outcome="refused, --recover is named",
)
def test_what_a_killed_update_left_blocks(host: FakeHost) -> None:
    written = Journal(host.places)
    written.note(journal.GUEST, "a")
    written.note(journal.FREEZE, "/srv")
    written.note(journal.LOAD)
    written.close(undone=False)
    (found,) = _named(host, "leftovers")
    assert found.status is Status.BLOCKER
    assert "guests a; frozen: /srv; a kernel is loaded" in found.text
    assert found.hint == "pkernfs update --recover"


def test_a_guest_that_waits_to_be_resumed_is_a_note(host: FakeHost, jumper: FakeKexec) -> None:
    host.start("a")
    kexec_to(host, jumper)
    (found,) = _named(host, "guest.a")
    assert (found.status, found.hint) == (Status.NOTE, "pkernfs resume")


def test_another_update_is_named(host: FakeHost) -> None:
    host.start("a")
    with update_lock(host.places):
        (found,) = _named(host, "update.running")
        Journal(host.places).note(journal.GUEST, "a")
        # Its steps are no leftovers, and its guests are not asked.
        assert _blockers(host) == ["update.running"]
        assert not _named(host, "guest.a")
    assert f"another update is going on: process {os.getpid()}" in found.text


def test_no_kernel_to_go_back_to_is_a_note(host: FakeHost) -> None:
    (host.root / "boot/vmlinuz-6.12.1").unlink()
    (found,) = _named(host, "watchdog.none")
    assert found.status is Status.NOTE


def _update(host: FakeHost, *override: str) -> None:
    request = handover.Request(override=frozenset(override))
    handover.update(host.machine, host.places, request, lambda _: None)


@answers(
    phase="check",
    failure="the store is damaged",
    outcome="refused, unless --override store.damaged",
)
def test_a_damaged_store_stops_the_update_unless_overridden(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "check_store", lambda: "pkernfs: damaged: block 7 is used twice")
    host.start("a")
    with pytest.raises(PkernfsError, match="block 7 is used twice") as caught:
        _update(host)
    assert "pkernfs update --override store.damaged" in caught.value.hint
    with pytest.raises(PkernfsError, match="refuses to start"):  # the jump, so it went on
        _update(host, "store.damaged")
    all_run_on(host, jumper, "a")


@answers(
    phase="check",
    failure="several of doctor's findings block",
    outcome="refused until each of them is overridden by its id",
)
def test_one_override_is_for_one_finding(
    host: FakeHost, jumper: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "check_store", lambda: "damaged")
    (host.root / "lib/modules/7.3.4/updates/dkms/pkernfs.ko").unlink()
    with pytest.raises(PkernfsError, match=r"not installed for the next kernel.*and 1 more"):
        _update(host)
    with pytest.raises(PkernfsError, match="not installed for the next kernel"):
        _update(host, "store.damaged")
    with pytest.raises(PkernfsError, match="refuses to start"):
        _update(host, "store.damaged", "module.next-missing")


@answers(
    phase="check",
    failure="a finding with which no update can work",
    outcome="refused, also with --override",
)
def test_what_can_not_work_can_not_be_overridden(host: FakeHost, jumper: FakeKexec) -> None:
    host.put("proc/sys/kernel/kexec_load_disabled", "1")
    with pytest.raises(UsageError, match=r"kexec\.disabled can't be overridden"):
        _update(host, "kexec.disabled")


def test_an_override_of_nothing_is_refused(host: FakeHost, jumper: FakeKexec) -> None:
    with pytest.raises(UsageError, match="doctor finds no such blocker"):
        _update(host, "kexec.disbaled")


# Bad input: nothing is lost by a file that can't be read.


_BROKEN = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b'{"schema": "pkernfs-vm/2"}',
    b'{"schema": "pkernfs-vm/1"}',
    b'{"schema": "pkernfs-vm/1", "name": "a", "ram_bytes": "much", "qemu": 5, "qemu_version": "",'
    b' "machine": "", "arguments": 7, "directory": ""}',
]


@answers(
    phase="input",
    failure="config.json of a running guest is half-written",
    outcome="update refused; listed as broken; all run on",
)
@pytest.mark.parametrize("content", _BROKEN)
def test_a_running_guest_whose_file_is_broken_stops_the_update(
    host: FakeHost, jumper: FakeKexec, content: bytes
) -> None:
    """The next kernel could not start it again. Nothing happens to it, nor to the other."""
    host.start("a")
    guest = host.start("b")
    whole = guest.config_file.read_bytes()
    guest.config_file.write_bytes(content)
    assert _blockers(host) == ["guest.b"]
    with pytest.raises(PkernfsError, match=r"b/config\.json"):
        _update(host)
    assert host.states()["a"] == "running"
    assert host.states()["b"] == "broken"
    guest.config_file.write_bytes(whole)
    all_run_on(host, jumper, "a", "b")


@answers(
    phase="input",
    failure="config.json of a guest that is off is half-written",
    outcome="listed as broken; all others are updated; vm stop --force --delete removes it",
)
@pytest.mark.parametrize("content", _BROKEN)
def test_a_guest_that_is_off_and_broken_is_in_nobodys_way(
    host: FakeHost, jumper: FakeKexec, content: bytes
) -> None:
    from pkernfs.vmm import guests

    host.start("a")
    broken = Guest("b", host.places)
    broken.directory.mkdir()
    broken.config_file.write_bytes(content)
    (found,) = _named(host, "guest.b")
    assert found.status is Status.NOTE
    assert host.states() == {"a": "running", "b": "broken"}
    kexec_to(host, jumper)
    assert resuming.resume(host.machine, host.places).good
    # It can be given up like any other.
    guests.stop(host.places, "b", force=True, delete=True)
    assert host.states() == {"a": "running"}


@answers(
    phase="input",
    failure="the records of the update are broken",
    outcome="all guests come back; there is no report",
)
@pytest.mark.parametrize("name", ["plan.json", "timeline.jsonl", "launch"])
def test_broken_records_of_an_update_keep_no_guest_from_coming_back(
    host: FakeHost, jumper: FakeKexec, name: str
) -> None:
    host.start("a")
    kexec_to(host, jumper)
    path = next(host.places.updates.glob(f"*/{name}"))
    path.write_bytes(b"\xff{")
    outcome = resuming.resume(host.machine, host.places)
    assert outcome.guests == [Resumed("a")]
    assert host.states() == {"a": "running"}


@answers(
    phase="input",
    failure="the name of the last update is broken",
    outcome="it counts as none",
)
@pytest.mark.parametrize("content", ["", "../../etc", "nonsense\n", "\0"])
def test_a_broken_name_of_the_last_update_is_no_update(
    host: FakeHost, jumper: FakeKexec, content: str
) -> None:
    host.start("a")
    host.places.updates.mkdir()
    (host.places.updates / "last").write_text(content)
    assert resuming.resume(host.machine, host.places).good
    all_run_on(host, jumper, "a")


@answers(
    phase="input",
    failure="another program answers at a guest's socket",
    outcome="refused, nothing touched; names the guest",
)
def test_a_socket_of_somebody_else_is_said(host: FakeHost, jumper: FakeKexec) -> None:
    """It is there, and what answers is no QEMU."""
    guest = host.start("a")
    kept = guest.socket.rename(guest.socket.with_suffix(".kept"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest.socket))
        with pytest.raises(PkernfsError, match="guest a: its QEMU can't be talked to"):
            _update(host)
    guest.socket.unlink()
    kept.rename(guest.socket)
    all_run_on(host, jumper, "a")


@answers(
    phase="input",
    failure="a guest's memory file has another size",
    outcome="refused, nothing touched",
)
def test_a_memory_file_that_shrank_stops_the_update(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    with guest.ram.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(PkernfsError, match="has 4096 bytes"):
        _update(host)
    assert host.states() == {"a": "running"}


@answers(
    phase="input",
    failure="a guest's command line, taken by an earlier version, has something that ends with "
    "the kernel: a file in /tmp, virtiofsd, a software TPM",
    outcome="refused, nothing touched",
)
def test_what_ends_with_the_kernel_stops_the_update(host: FakeHost, jumper: FakeKexec) -> None:
    guest = host.start("a")
    config = guest.config()
    arguments = (*config.arguments, "-drive", "file=/tmp/a.img,if=virtio")
    guest.write_config(dataclasses.replace(config, arguments=arguments))
    (finding,) = _named(host, "guest.a")
    assert (finding.status, "put it onto a disk" in finding.hint) == (Status.BLOCKER, True)
    with pytest.raises(PkernfsError, match="guest a could not be started again: -drive"):
        _update(host)
    assert host.states() == {"a": "running"}


def test_findings_as_json(host: FakeHost) -> None:
    values = [dataclasses.asdict(f) | {"status": f.status.value} for f in _examine(host)]
    fields = {"id", "topic", "status", "text", "hint", "overridable"}
    assert all(set(value) == fields for value in json.loads(json.dumps(values)))
