# SPDX-License-Identifier: GPL-2.0-only
"""What a peer is: a way to replace a host's kernel under a guest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from bench.stage import HOME, GuestSize, Plan, Stage, leave, qemu, tick_image
from pkernfs.errors import PkernfsError
from pkernfs.lab.machine import poll

QMP = "/run/bench.qmp"
STATE = f"{HOME}/state"
#: A guest's memory stays where it is, the rest of its state goes to a file: the best that
#: stock QEMU has (docs/devel/migration/CPR.rst).
KEEP = ("x-ignore-shared",)
CPR: dict[str, object] = {"mode": "cpr-reboot"}
KEEP_OPTIONS = "-global migration.x-ignore-shared=on -global migration.mode=cpr-reboot"


class Peer(ABC):
    """One of the ways that are compared. One guest at a time."""

    name: ClassVar[str]
    #: What it is, for the page.
    about: ClassVar[str]

    def prepare(self, stage: Stage) -> None:
        """What a host needs once per boot."""
        tick_image(stage)

    @abstractmethod
    def memory(self, size: GuestSize) -> str:
        """The file in the host that is the guest's memory; "" for none."""

    @abstractmethod
    def start(self, stage: Stage, size: GuestSize) -> None:
        """Start the counting guest.

        :raises PkernfsError: it can't be started.
        """

    @abstractmethod
    def update(self, stage: Stage, size: GuestSize) -> None:
        """Replace the host's kernel; the guest runs, or will in a moment, when this returns.

        :raises PkernfsError: it failed.
        """

    @abstractmethod
    def end(self, stage: Stage) -> None:
        """Remove the guest and all that it took."""


class QemuPeer(Peer):
    """A peer that starts QEMU itself and saves the guest by QMP."""

    capabilities: ClassVar[tuple[str, ...]] = KEEP
    parameters: ClassVar[dict[str, object]] = CPR
    options: ClassVar[str] = KEEP_OPTIONS

    def make_memory(self, stage: Stage, size: GuestSize) -> None:
        """Make the file of the guest's memory, if QEMU is not to do that."""

    def restore(self, size: GuestSize) -> str:
        """Shell lines for the next kernel, ahead of QEMU's start."""
        return ""

    def qemu(self, size: GuestSize, incoming: str = "") -> str:
        """The line that starts QEMU."""
        options = self.options if incoming else ""
        return qemu(self.memory(size), size.ram, incoming, options=options)

    def umounts(self) -> tuple[str, ...]:
        """File systems to be unmounted before the jump."""
        return ()

    def start(self, stage: Stage, size: GuestSize) -> None:
        self.make_memory(stage, size)
        stage.sh(self.name, self.qemu(size))

    def update(self, stage: Stage, size: GuestSize) -> None:
        incoming = self.qemu(size, f"file:{STATE}")
        stage.write_early(self.name, f"{self.restore(size)}\n{incoming}")
        stage.host.sh(f"rm -f {STATE}; touch {STATE}; sync -f {STATE}").check()
        parameters: dict[str, object] = {"max-bandwidth": 1 << 40, **self.parameters}
        plan = Plan(QMP, f"file:{STATE}", self.capabilities, parameters, (STATE,), self.umounts())
        leave(stage, self.name, plan)

    def end(self, stage: Stage) -> None:
        stage.clear_early()
        stage.host.sh("pkill -9 qemu-system || :")

        def gone() -> bool:
            return stage.host.sh("pgrep qemu-system").status != 0

        poll(gone, 60, "QEMU ends")
        stage.host.sh(f"rm -f {STATE} {QMP}")


def check_running(stage: Stage) -> None:
    """Make sure that QEMU is there.

    :raises PkernfsError: it is not; what it said is in the error.
    """
    if stage.host.sh("pgrep qemu-system").status != 0:
        said = stage.host.sh("cat /run/bench.log").stdout.strip()
        raise PkernfsError(f"QEMU has ended: {said[-500:]}")
