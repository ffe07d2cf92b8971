# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of systemd, by a systemctl that writes down what it is called with."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import systemd
from pkernfs.host.machine import Machine


class FakeSystemctl:
    """A systemctl in the path, and a tree in which systemd runs and the units are there."""

    def __init__(self, home: Path) -> None:
        self._calls = home / "calls"
        self.answer = home / "answer"
        self.status = home / "status"
        self.status.write_text("0")
        self.answer.write_text("")
        program = home / "bin" / "systemctl"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\necho "$@" >>{self._calls}\ncat {self.answer}\nexit $(cat {self.status})\n'
        )
        program.chmod(0o755)
        self.root = home / "root"
        (self.root / "run/systemd/system").mkdir(parents=True)
        units = self.root / "usr/local/lib/systemd/system"
        units.mkdir(parents=True)
        (units / "pkernfs-vm@.service").touch()

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemctl:
    fake = FakeSystemctl(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return fake


def test_guests_enter_their_units(systemctl: FakeSystemctl) -> None:
    systemd.enter_units(["web", "db-1"], Machine(systemctl.root))
    assert systemctl.calls == ["start --no-block pkernfs-vm@web.service pkernfs-vm@db-1.service"]
    systemctl.status.write_text("1")
    with pytest.raises(PkernfsError, match="does not take the guests over"):
        systemd.enter_units(["web"], Machine(systemctl.root))


def test_without_systemd_or_units_nothing_is_asked(
    systemctl: FakeSystemctl, tmp_path: Path
) -> None:
    systemd.enter_units(["web"], Machine(tmp_path / "elsewhere"))
    systemd.enter_units([], Machine(systemctl.root))
    (systemctl.root / "usr/local/lib/systemd/system/pkernfs-vm@.service").unlink()
    systemd.enter_units(["web"], Machine(systemctl.root))
    assert systemctl.calls == []


@pytest.mark.parametrize(
    ("jobs", "answer"),
    [
        ("12 kexec.target start waiting\n13 ssh.service stop running\n", True),
        ("12 reboot.target start waiting\n", False),
        ("12 kexec.target stop waiting\n", False),
        ("No jobs running.\n", False),
    ],
)
def test_a_kexec_on_its_way_is_seen(systemctl: FakeSystemctl, jobs: str, answer: bool) -> None:
    systemctl.answer.write_text(jobs)
    assert systemd.going_down_by_kexec() is answer


def test_a_unit_of_systemd_can_be_told_its_main_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        systemd.now_main(42)
        assert listener.recv(100) == b"MAINPID=42\nREADY=1\n"
