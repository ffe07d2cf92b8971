# SPDX-License-Identifier: GPL-2.0-only
"""What ``update --dry-run`` and ``device list`` print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.cli import device, update
from pkernfs.errors import PkernfsError
from pkernfs.host import devices
from pkernfs.update import journal
from pkernfs.update.plan import Plan, PlannedGuest
from pkernfs.vmm.config import Places
from tests.unit.vmm.fakes import FakeHost

_DEVICE = (
    "0000:01:00.0 state={0} vendor=8086 device=10d3 held=0 open=1 checked=0 leaves=3"
    ' bytes=67108864 pages=4 dropped=0 adopted={1} switch_ns=171600 adopt_ns=9 reason="{2}"\n'
)


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_update_on_the_newest_kernel_does_nothing(
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry_run: bool,
) -> None:
    host.boot("7.3.4", "x", host.machine.read("proc/cmdline") or "")
    monkeypatch.setattr(update, "Machine", lambda: host.machine)
    monkeypatch.setattr(Places, "on", lambda *_: host.places)
    host.start("a")
    update.update(dry_run=dry_run)
    told = capsys.readouterr().out
    assert "nothing to do: the newest installed kernel 7.3.4 runs already" in told
    assert "pkernfs update --kernel FILE" in told
    update.update(dry_run=dry_run, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    value = json.loads(line)
    assert value["schema"] == ("pkernfs-plan/1" if dry_run else "pkernfs-event/1")
    assert value["subject"] == "nothing to do"
    assert host.states() == {"a": "running"}
    assert not host.places.updates.exists()
    journal.Journal(host.places).note(journal.UPDATE, "u")
    with pytest.raises(PkernfsError, match="is not undone"):
        update.update(dry_run=dry_run)


def test_a_dry_run_says_what_stays_where_it_is(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = (
        PlannedGuest("web", 16 << 30, 8 << 20, True),
        PlannedGuest("idle", 32 << 20, 9 << 20, False),
    )
    plan = Plan("u", "6.12.1", "boot", "7.3.4", "/boot/vmlinuz-7.3.4", None, "quiet", guests)
    update._show(host.machine, plan, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(None, 1) == ["kernel", "6.12.1 -> 7.3.4"]
    (web,) = [line for line in lines if line.startswith("web")]
    assert web.split() == ["web", "16", "GiB", "8", "MiB"]
    (idle,) = [line for line in lines if line.startswith("idle")]
    assert idle.endswith("9 MiB  is paused, and will be")
    assert lines[-1] == "this was a dry run: nothing was changed"


def test_devices_are_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control = devices.Control(tmp_path)
    monkeypatch.setattr(devices, "Control", lambda: control)
    (tmp_path / "devices").write_text("")
    device.list_()
    assert "no device is preserved" in capsys.readouterr().out
    (tmp_path / "devices").write_text(
        _DEVICE.format("preserved", 1, "") + _DEVICE.format("cut-off", 0, "no such memory")
    )
    device.list_()
    head, adopted, cut = capsys.readouterr().out.splitlines()
    assert head.split() == ["device", "model", "state", "mapped", "adopted"]
    assert adopted.endswith("64 MiB  switched in 172 us")
    assert "cut-off" in cut
    assert cut.endswith("no such memory")
