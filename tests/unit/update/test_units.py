# SPDX-License-Identifier: GPL-2.0-only
"""Whether anything would run resume in the next kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, Status
from pkernfs.update import handover, units
from tests.answers import answers
from tests.unit.update.fakes import FakeKexec, all_run_on
from tests.unit.vmm.fakes import FakeHost

_UNITS = Path(__file__).resolve().parents[3] / "packaging/systemd"
_HOME = "usr/local/lib/systemd/system"


def _one(host: FakeHost) -> Finding:
    (found,) = units.examine(host.machine)
    return found


def _blocks(host: FakeHost, id: str) -> Finding:
    found = _one(host)
    assert (found.id, found.status, found.overridable) == (id, Status.BLOCKER, True)
    return found


@pytest.fixture
def booted(host: FakeHost) -> FakeHost:
    """The host by systemd, with everything in place."""
    (host.root / "etc/rc.local").unlink()
    (host.root / "run/systemd/system").mkdir(parents=True)
    for file in _UNITS.iterdir():
        host.put(f"{_HOME}/{file.name}", file.read_text())
    host.put("etc/systemd/system/multi-user.target.wants/pkernfs.target", "")
    host.put("usr/bin/pkernfs", "").chmod(0o755)
    return host


def test_units_that_are_enabled_and_find_their_program(booted: FakeHost) -> None:
    assert _one(booted).status is Status.OK


def test_units_wanted_by_the_boot_line(booted: FakeHost) -> None:
    """What systemd-debug-generator(8) makes of systemd.wants=, in the next kernel again."""
    (booted.root / "etc/systemd/system/multi-user.target.wants/pkernfs.target").unlink()
    _blocks(booted, "units.disabled")
    booted.put("run/systemd/generator.early/default.target.wants/pkernfs.target", "")
    assert _one(booted).status is Status.OK


def test_a_masked_unit_is_never_started(booted: FakeHost) -> None:
    (booted.root / "etc/systemd/system/pkernfs-resume.service").symlink_to("/dev/null")
    assert "unmask pkernfs-resume.service" in _blocks(booted, "units.masked").hint


def test_a_unit_that_is_not_there(booted: FakeHost) -> None:
    (booted.root / _HOME / "pkernfs-resume.service").unlink()
    _blocks(booted, "units.missing")


def test_a_program_that_systemd_does_not_find(booted: FakeHost) -> None:
    program = booted.root / "usr/bin/pkernfs"
    program.chmod(0o644)
    _blocks(booted, "units.program")
    program.unlink()
    assert "runs pkernfs, which" in _blocks(booted, "units.program").text
    # By a path of its own, as an administrator writes it.
    booted.put("opt/venv/bin/pkernfs", "").chmod(0o755)
    booted.put(
        "etc/systemd/system/pkernfs-resume.service.d/path.conf",
        "[Service]\nExecStart=\nExecStart=-/opt/venv/bin/pkernfs resume\n",
    )
    assert _one(booted).status is Status.OK
    (booted.root / "opt/venv/bin/pkernfs").unlink()
    assert "/opt/venv/bin/pkernfs" in _blocks(booted, "units.program").text


@answers(
    phase="check",
    failure="nothing would run pkernfs resume in the next kernel: no unit, none enabled, "
    "its program not found, no init script",
    outcome="refused, unless --override units.disabled (or what doctor calls it)",
)
def test_a_host_whose_guests_nobody_would_resume_is_not_updated(
    host: FakeHost, jumper: FakeKexec
) -> None:
    host.start("a")
    (host.root / "etc/rc.local").write_text("#!/bin/sh\n# pkernfs resume\n")
    _blocks(host, "units.no-systemd")
    with pytest.raises(PkernfsError, match="nobody brings the guests back") as caught:
        handover.update(host.machine, host.places, handover.Request(), lambda _: None)
    assert "--override units.no-systemd" in caught.value.hint
    all_run_on(host, jumper, "a")
    (host.root / "run/systemd/system").mkdir(parents=True)
    _blocks(host, "units.disabled")
    request = handover.Request(override=frozenset({"units.disabled"}))
    assert handover.dry_run(host.machine, host.places, request).guests


@pytest.mark.parametrize(
    "script", ["etc/inittab", "etc/init.d/pkernfs", "etc/local.d/guests.start", "sbin/my-init"]
)
def test_another_init_may_do_it(host: FakeHost, script: str) -> None:
    (host.root / "etc/rc.local").unlink()
    host.put("proc/1/cmdline", "/bin/sh\0/sbin/my-init\0")
    _blocks(host, "units.no-systemd")
    host.put(script, "x:2:once:/usr/bin/pkernfs resume >/run/resume.log 2>&1\n")
    assert f"/{script} runs pkernfs resume" in _one(host).text
