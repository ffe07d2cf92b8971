# SPDX-License-Identifier: GPL-2.0-only
"""The best that a stock kernel has today: ext4 with -o dax on a range made pmem."""

from __future__ import annotations

from bench.peers.base import QemuPeer
from bench.stage import GuestSize, Stage

MOUNT = "/mnt/dax"
LOAD = "modprobe -a nd_e820 nd_pmem; until [ -b /dev/pmem0 ]; do sleep 0.02; done"
FORMAT = "mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512 /dev/pmem0"
MOUNT_COMMAND = f"mkdir -p {MOUNT}; mount -t ext4 -o dax /dev/pmem0 {MOUNT}"
#: A new filesystem, unless there is one.
READY = f"mountpoint -q {MOUNT} || {{ {LOAD}; {FORMAT}; {MOUNT_COMMAND}; }}"


class Fsdax(QemuPeer):
    """``memmap=nn!ss``, ext4 ``-o dax``, QEMU ``cpr-reboot`` with ``x-ignore-shared``."""

    name = "fsdax"
    about = (
        "a range of the same kind made pmem by `memmap=nn!ss`, ext4 `-o dax`; QEMU's "
        "`cpr-reboot` with `x-ignore-shared`, memory `share=on`, unmounted, kexec, mounted again"
    )

    def prepare(self, stage: Stage) -> None:
        super().prepare(stage)
        if stage.once("fsdax"):
            stage.sh(self.name, f"{LOAD}; {FORMAT}", timeout=300)
        # Each kernel of the host has to do this, whoever replaced it.
        stage.host.sh(f"mountpoint -q {MOUNT} || {{ {LOAD}; {MOUNT_COMMAND}; }}").check()

    def memory(self, size: GuestSize) -> str:
        return f"{MOUNT}/ram"

    def make_memory(self, stage: Stage, size: GuestSize) -> None:
        stage.sh(self.name, f"fallocate -l {size.ram} {self.memory(size)}")

    def restore(self, size: GuestSize) -> str:
        return f"{LOAD}\n{MOUNT_COMMAND}"

    def umounts(self) -> tuple[str, ...]:
        return (MOUNT,)

    def end(self, stage: Stage) -> None:
        super().end(stage)
        stage.host.sh(f"rm -f {MOUNT}/ram")
