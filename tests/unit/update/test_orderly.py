# SPDX-License-Identifier: GPL-2.0-only
"""What happens to guests when the host goes down by systemctl kexec."""

from __future__ import annotations

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec, systemd
from pkernfs.host.kernels import Kernel
from pkernfs.update import orderly
from pkernfs.update.handover import Request
from pkernfs.update.plan import last_update
from pkernfs.vmm.config import all_guests
from tests.unit.vmm.fakes import FakeHost


class Left(Exception):
    """Stands in for the end of this process."""


class Systemd:
    """What systemd would do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> None:
        self.called_off = ""
        self.loaded: list[str] = []
        self.kexec = True
        self.saved: dict[str, str] = {}
        monkeypatch.setattr(systemd, "has_units", lambda _: True)
        monkeypatch.setattr(systemd, "is_active", lambda _: True)
        monkeypatch.setattr(systemd, "going_down_by_kexec", lambda: self.kexec)
        monkeypatch.setattr(systemd, "call_shutdown_off", self._call_off)
        monkeypatch.setattr(kexec, "load", self._load)
        monkeypatch.setattr(kexec, "unload", lambda: None)
        monkeypatch.setattr(orderly, "_end", self._exit)
        self._host = host

    def _call_off(self, reason: str) -> None:
        self.called_off = reason

    def _load(self, kernel: Kernel, boot_line: str) -> None:
        self.loaded.append(f"{kernel.release} {boot_line}")
        self._host.put("sys/kernel/kexec_loaded", "1\n")

    def _exit(self) -> None:
        self.saved = {
            guest.name: "saved" if guest.saved() else "not saved"
            for guest in all_guests(self._host.places)
        }
        raise Left


@pytest.fixture
def shutdown(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    return Systemd(monkeypatch, host)


def _go_down(host: FakeHost) -> None:
    orderly.going_down(host.machine, host.places, lambda _: None)


def test_guests_are_saved_by_a_kexec_that_was_prepared(host: FakeHost, shutdown: Systemd) -> None:
    guest = host.start("web")
    plan = orderly.load_only(host.machine, host.places, Request(append="quiet"))
    assert plan.kernel_after == "7.3.4"
    assert host.states() == {"web": "running"}
    with pytest.raises(Left):
        _go_down(host)
    assert shutdown.saved == {"web": "saved"}
    assert len(shutdown.loaded) == 2
    release, line = shutdown.loaded[1].split(" ", 1)
    assert release == "7.3.4"
    assert f"pkernfs_update={last_update(host.places, host.machine)}" in line
    assert line.endswith(" quiet")
    # Only because this process did not end there, the guest was let go again.
    assert guest.saved() is None


def test_another_kernel_calls_the_shutdown_off(host: FakeHost, shutdown: Systemd) -> None:
    host.start("web")
    host.put("sys/kernel/kexec_loaded", "1\n")
    with pytest.raises(PkernfsError, match="was not loaded by pkernfs") as error:
        _go_down(host)
    assert "--load-only" in error.value.hint
    assert "guests run on" in shutdown.called_off
    assert host.states() == {"web": "running"}


def test_a_guest_that_can_not_be_saved_calls_the_shutdown_off(
    host: FakeHost, shutdown: Systemd
) -> None:
    host.start("web")
    orderly.load_only(host.machine, host.places, Request())
    host.misbehave("blocked")
    with pytest.raises(PkernfsError, match="can't be saved"):
        _go_down(host)
    assert "can't be saved" in shutdown.called_off
    assert host.states() == {"web": "running"}


@pytest.mark.parametrize("kexec_comes", [True, False])
def test_nothing_is_done_for_a_reboot_or_without_guests(
    host: FakeHost, shutdown: Systemd, kexec_comes: bool
) -> None:
    shutdown.kexec = kexec_comes
    if not kexec_comes:
        host.start("web")
    _go_down(host)
    assert shutdown.called_off == ""


def test_load_only_wants_somebody_who_saves_the_guests(
    host: FakeHost, shutdown: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("web")
    monkeypatch.setattr(systemd, "is_active", lambda _: False)
    with pytest.raises(PkernfsError, match="is not up"):
        orderly.load_only(host.machine, host.places, Request())
    monkeypatch.setattr(systemd, "has_units", lambda _: False)
    with pytest.raises(PkernfsError, match="nothing here would save"):
        orderly.load_only(host.machine, host.places, Request())
    assert shutdown.loaded == []
