# SPDX-License-Identifier: GPL-2.0-only
"""Starts guests in a lab host the way a user would: with ``pkernfs vm start``."""

from __future__ import annotations

from dataclasses import dataclass

from pkernfs.lab.machine import Machine
from pkernfs.lab.witness import Witness

GUESTS = "/usr/lib/pkernfs-lab/guests"
DISKS = "/mnt/scratch"


@dataclass(frozen=True)
class GuestConfig:
    """A guest of the lab.

    :ivar ram: its memory, as ``--ram`` takes it.
    :ivar port: which of the host's serial ports it talks on: 0 for ttyS1, up to 2.
    :ivar program: what runs in it: "witness", "nic" or "stress".
    :ivar words: more words of its boot line, such as ``share=0.5``.
    :ivar disk_cache: QEMU's cache mode of its disk.
    :ivar extra: more arguments for its QEMU.
    :ivar devices: PCI names of the host's devices that it gets.
    """

    name: str = "witness"
    ram: str = "256M"
    port: int = 0
    program: str = "witness"
    words: str = ""
    disk_cache: str = "writeback"
    extra: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def qemu_arguments(self) -> list[str]:
        """What stands behind ``--``. The EPYC models panic in an emulated host."""
        drive = f"file={DISKS}/{self.name}.img,format=raw,if=virtio,cache={self.disk_cache}"
        return [
            *("-cpu", "qemu64"),
            *("-kernel", f"{GUESTS}/vmlinuz", "-initrd", f"{GUESTS}/{self.program}.initrd"),
            *("-append", f"console=ttyS0 quiet panic=-1 no_timer_check {self.words}".strip()),
            *("-serial", f"/dev/ttyS{self.port + 1}"),
            *("-drive", drive),
            *self.extra,
        ]


def start(host: Machine, config: GuestConfig) -> Witness:
    """Start a guest with a disk of 128 MiB; it is not ready yet when this returns.

    :raises PkernfsError: ``pkernfs vm start`` failed.
    """
    witness = Witness(host.serials[config.port])
    host.sh(f"truncate -s 128M {DISKS}/{config.name}.img").check()
    command = ["pkernfs", "vm", "start", config.name, "--ram", config.ram]
    command += [word for bdf in config.devices for word in ("--device", bdf)]
    host.run([*command, "--", *config.qemu_arguments()], timeout=180).check()
    return witness
