# SPDX-License-Identifier: GPL-2.0-only
"""The machine's own watchdog: when it is armed, and that nothing leaves it running."""

from __future__ import annotations

import fcntl
import struct
import subprocess
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import hardware_watchdog
from pkernfs.host.doctor import Status
from pkernfs.host.machine import Machine

_CLASS = "sys/class/watchdog/watchdog0"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine whose watchdog can be armed."""
    files = {
        f"{_CLASS}/identity": "i6300ESB timer",
        f"{_CLASS}/state": "inactive",
        f"{_CLASS}/nowayout": "0",
        f"{_CLASS}/max_timeout": "2046",
        "sys/module/watchdog/parameters/stop_on_reboot": "0",
        "lib/modules/7.3/kernel/i6300esb.ko": "",
        "sys/module/i6300esb/refcnt": "0",
        "dev/watchdog0": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n" if text else "")
    driver = tmp_path / _CLASS / "device/driver"
    driver.mkdir(parents=True)
    (driver / "module").symlink_to(tmp_path / "sys/module/i6300esb")
    return Machine(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timeouts that the driver was told."""
    found: list[int] = []

    def ioctl(_: int, request: int, argument: bytes) -> bytes:
        assert request == 0xC0045706
        found.append(struct.unpack("i", argument)[0])
        return argument

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return found


def test_one_that_can_be_armed(machine: Machine) -> None:
    timer = hardware_watchdog.find(machine, "7.3")
    assert timer == hardware_watchdog.Timer("i6300ESB timer", "i6300esb")
    (finding,) = hardware_watchdog.examine(machine, "7.3")
    assert finding.status is Status.OK


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        (f"{_CLASS}/state", "active", "somebody uses it"),
        (f"{_CLASS}/nowayout", "1", "can't be stopped once it runs"),
        ("sys/module/watchdog/parameters/stop_on_reboot", "-1", "would be stopped at the jump"),
        ("sys/module/watchdog/parameters/stop_on_reboot", None, "would be stopped at the jump"),
        ("lib/modules/7.3/kernel/i6300esb.ko", None, "7.3 has no i6300esb"),
        (f"{_CLASS}/device/driver/module", None, "can't be told which"),
    ],
)
def test_one_that_is_left_alone(machine: Machine, path: str, text: str | None, says: str) -> None:
    if text is None:
        (machine.root / path).unlink()
    else:
        (machine.root / path).write_text(f"{text}\n")
    (finding,) = hardware_watchdog.examine(machine, "7.3")
    assert (finding.status, finding.id) == (Status.NOTE, "watchdog.hardware")
    assert says in finding.text
    assert ("watchdog.stop_on_reboot=0" in finding.hint) == ("at the jump" in says)


def test_a_driver_that_does_not_name_its_device_is_found_by_whom_it_uses(machine: Machine) -> None:
    (machine.root / _CLASS / "device/driver/module").unlink()
    users = machine.root / "sys/module/watchdog/holders"
    (users / "i6300esb").mkdir(parents=True)
    timer = hardware_watchdog.find(machine, "7.3")
    assert timer == hardware_watchdog.Timer("i6300ESB timer", "i6300esb")
    (users / "iTCO_wdt").mkdir()
    (finding,) = hardware_watchdog.examine(machine, "7.3")
    assert "can't be told which" in finding.text


def test_one_in_software_is_none(machine: Machine) -> None:
    (machine.root / _CLASS / "device/driver/module").unlink()
    (machine.root / "sys/module/watchdog/holders/softdog").mkdir(parents=True)
    (finding,) = hardware_watchdog.examine(machine, "7.3")
    assert "ends with it" in finding.text


def test_a_machine_without_one_is_not_talked_about(tmp_path: Path) -> None:
    assert list(hardware_watchdog.examine(Machine(tmp_path), "7.3")) == []


@pytest.mark.parametrize(("seconds", "limit"), [(420.0, 420), (9999.0, 2046)])
def test_it_is_left_running_for_the_jump_and_stopped_without_one(
    machine: Machine, told: list[int], seconds: float, limit: int
) -> None:
    node = machine.root / "dev/watchdog0"
    with (
        pytest.raises(PkernfsError, match="refused"),
        hardware_watchdog.armed(machine, "i6300esb", seconds),
    ):
        assert told == [limit]
        assert node.read_bytes() == b""
        raise PkernfsError("refused")
    assert node.read_bytes() == b"V"


def test_one_that_takes_no_timeout_is_stopped_again(machine: Machine) -> None:
    """A plain file knows no ioctl."""
    with (
        pytest.raises(PkernfsError, match="can't be armed"),
        hardware_watchdog.armed(machine, "i6300esb", 60),
    ):
        pass
    assert (machine.root / "dev/watchdog0").read_bytes() == b"V"


def test_without_one_nothing_is_done(tmp_path: Path) -> None:
    with hardware_watchdog.armed(Machine(tmp_path), "", 60):
        pass


def test_the_next_kernel_loads_its_driver_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = machine.root / "dev/watchdog0"
    node.unlink()

    def load(command: list[str], **_: object) -> None:
        assert command == ["modprobe", "i6300esb"]
        node.touch()

    monkeypatch.setattr(subprocess, "run", load)
    hardware_watchdog.stop(machine, "i6300esb")
    assert node.read_bytes() == b"V"


def test_one_that_can_not_be_stopped_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.root / "dev/watchdog0").unlink()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(hardware_watchdog, "_NODE_S", 0.1)
    (machine.root / "dev").rmdir()
    with pytest.raises(PkernfsError, match="can't be stopped") as caught:
        hardware_watchdog.stop(machine, "i6300esb")
    assert "modprobe i6300esb" in caught.value.hint
