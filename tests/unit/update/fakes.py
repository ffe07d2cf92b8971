# SPDX-License-Identifier: GPL-2.0-only
"""A fake jump, and how an update with it goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kexec
from pkernfs.host.kernels import Kernel
from pkernfs.update import handover, journal, plan
from pkernfs.update import resume as resuming
from pkernfs.vmm.config import Guest
from tests.unit.vmm.fakes import RAM, FakeHost

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


def run_update(host: FakeHost, append: str = "") -> None:
    handover.update(host.machine, host.places, handover.Request(append=append), lambda _: None)


def all_run_on(host: FakeHost, jumper: FakeKexec, *names: str) -> None:
    """Nothing is left of an update that was given up."""
    assert host.states() == dict.fromkeys(names, "running")
    assert jumper.loaded is None
    for name in names:
        guest = Guest(name, host.places)
        assert not guest.state.exists()
        assert guest.saved() is None
        as_before(guest)
        assert guest.ram.stat().st_size == RAM


def qmp(guest: Guest, command: str) -> Any:
    from pkernfs.vmm.monitor import monitor

    async def send() -> Any:
        async with monitor(guest, 5) as session:
            return await session.execute(command)

    return asyncio.run(send())


def as_before(guest: Guest) -> None:
    """An ordinary migration of the guest would take its memory along."""
    assert qmp(guest, "query-migrate-parameters")["mode"] == "normal"
    assert "x-ignore-shared" not in capabilities(guest)


def capabilities(guest: Guest) -> set[str]:
    """What is switched on of a guest's ways to migrate."""
    found = qmp(guest, "query-migrate-capabilities")
    return {each["capability"] for each in found if each["state"]}


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
