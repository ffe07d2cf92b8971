# SPDX-License-Identifier: GPL-2.0-only
"""What one does without anything: all of a guest's memory to a file, kexec, and back."""

from __future__ import annotations

from typing import ClassVar

from bench.peers.base import QemuPeer
from bench.stage import GuestSize, Stage


class SaveToFile(QemuPeer):
    """Guest memory on tmpfs, QEMU ``migrate`` to a file on disk."""

    name = "save to file"
    about = (
        "guest memory on tmpfs; QEMU's `migrate` of all of it to a file on disk while the "
        "guest runs, made durable, kexec, loaded from that file"
    )
    capabilities: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[dict[str, object]] = {}
    options: ClassVar[str] = ""

    def memory(self, size: GuestSize) -> str:
        return "/dev/shm/bench-ram"

    def make_memory(self, stage: Stage, size: GuestSize) -> None:
        stage.host.sh("mount -o remount,size=90% /dev/shm").check()

    def restore(self, size: GuestSize) -> str:
        return "mount -o remount,size=90% /dev/shm"

    def end(self, stage: Stage) -> None:
        super().end(stage)
        stage.host.sh("rm -f /dev/shm/bench-ram")
