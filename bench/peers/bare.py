# SPDX-License-Identifier: GPL-2.0-only
"""The floor: kexec with nothing to keep."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.stage import GuestSize, Plan, Stage, leave


class Bare(Peer):
    """Same kernel, same initrd, no guest."""

    name = "bare kexec"
    about = (
        "the floor: the same kernel and initrd, no guest; from the jump until the kernel "
        "starts its first program"
    )

    def memory(self, size: GuestSize) -> str:
        return ""

    def start(self, stage: Stage, size: GuestSize) -> None:
        """There is nothing to start."""

    def update(self, stage: Stage, size: GuestSize) -> None:
        leave(stage, self.name, Plan())

    def end(self, stage: Stage) -> None:
        """There is nothing to end."""
