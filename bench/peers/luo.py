# SPDX-License-Identifier: GPL-2.0-only
"""Linux's own way from 6.19 on: memory in a memfd, preserved by the Live Update Orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers import luo_kernel
from bench.peers.bare import Bare
from bench.peers.base import STATE, QemuPeer
from bench.stage import HOME, GuestSize, Stage, tick_image
from pkernfs.lab.image import HostImage
from pkernfs.lab.layer import Stack, stack
from pkernfs.lab.machine import poll

LINK = "/run/bench-ram"
WORDS = ("kho=on", "liveupdate=on")


@dataclass(frozen=True, kw_only=True)
class _OtherKernel(HostImage):
    """The lab's host image with another kernel."""

    other: Path

    def vmlinuz(self, version: str) -> Path:
        return self.other


def luo_stack() -> Stack:
    """Image and layer with the kernel that has LUO; it needs none of the modules.

    :raises PkernfsError: that kernel can't be built.
    """
    usual = stack()
    host, built = usual.host, luo_kernel.kernel()
    return Stack(_OtherKernel(host.root, host.disk, host.kernels, other=built.image), usual.layer)


def upload_kernel(stage: Stage) -> None:
    """Put the kernel where the host can load it from, once."""
    if stage.once("luo kernel"):
        inside = stage.host.upload(luo_kernel.kernel().image, "vmlinuz-luo")
        stage.host.sh(f"cp {inside} {HOME}/vmlinuz-luo").check()
        stage.image = f"{HOME}/vmlinuz-luo"


class BareLuo(Bare):
    """The floor of the kernel that has LUO."""

    name = "bare kexec, LUO's kernel"
    about = "the floor of the small kernel that the peer LUO memfd runs on"

    def prepare(self, stage: Stage) -> None:
        upload_kernel(stage)


class Luo(QemuPeer):
    """Guest memory in a memfd that LUO preserves; the rest as for fsdax."""

    name = "LUO memfd"
    about = (
        "guest memory in a memfd that Linux 7.3's Live Update Orchestrator preserves (before the "
        "guest is stopped) and hands back; Debian's 7.3 has it switched off, so this peer runs "
        "on a small kernel built from Debian's sources, and is compared with that kernel's floor"
    )

    def prepare(self, stage: Stage) -> None:
        tick_image(stage)
        upload_kernel(stage)

    def memory(self, size: GuestSize) -> str:
        return LINK

    def qemu(self, size: GuestSize, incoming: str = "") -> str:
        line = super().qemu(size, incoming).replace(f"mem-path={LINK}", "mem-path=@RAM")
        verb = f"resume {LINK}" if incoming else f"start {size.ram} {LINK}"
        return f"python3 -I -S {HOME}/luo.py {verb} {line}"

    def update(self, stage: Stage, size: GuestSize) -> None:
        stage.sh(self.name, f"kill -USR1 $(cat {LINK}.pid)")

        def preserved() -> bool:
            return stage.host.sh(f"test -e {LINK}.preserved").status == 0

        poll(preserved, 240, "LUO preserves the memory")
        super().update(stage, size)

    def end(self, stage: Stage) -> None:
        stage.host.sh("pkill -9 -f luo.py || :")
        super().end(stage)
        stage.host.sh(f"rm -f {LINK} {LINK}.pid {LINK}.preserved {STATE}")
