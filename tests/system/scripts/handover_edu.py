# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's edu device through a hand-over. Runs inside a host; prints JSON lines.

handover_edu.py start BDF...     map the file for each, use it, and stay
handover_edu.py poke BDF [all]   a DMA with no driver; "all": its bus master is switched on first
handover_edu.py adopt BDF [wrong] [explicit]
                                 take the device over step by step, a DMA after each of them
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.devices import Control
from pkernfs.vfio import edu
from pkernfs.vfio.bind import bind, load_vfio
from pkernfs.vfio.container import Container
from pkernfs.vfio.group import Group
from pkernfs.vfio.memory import Memory

RAM = Path("/mnt/pkernfs/ram")
IOVA = 0x4000_0000
MIB = 1 << 20
SIZE = 64 * MIB
PATTERN, EMPTY = b"\x5a" * 64, b"\xee" * 64
COMMAND, MEMORY, MASTER = 4, 2, 4


def say(step: str, **values: object) -> None:
    """A line for the test."""
    print(json.dumps({"step": step, **values}), flush=True)


class SysfsBar:
    """BAR 0 of a device that no driver has open, as pkernfs.vfio.edu wants it."""

    def __init__(self, bdf: str) -> None:
        with Path("/sys/bus/pci/devices", bdf, "resource0").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), MIB)

    def read32(self, offset: int) -> int:
        """A register."""
        (value,) = struct.unpack_from("<I", self._map, offset)
        return int(value)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        struct.pack_into("<I", self._map, offset, value)


def lands(chip: edu.Edu, memory: Memory, offset: int) -> bool:
    """Whether a DMA of the device's buffer reaches memory at ``offset``."""
    memory.view[offset : offset + 64] = EMPTY
    chip.to_ram(IOVA + offset, 64)
    return bytes(memory.view[offset : offset + 64]) == PATTERN


def start(names: list[str]) -> None:
    """Open the devices, each in a container of its own, and let them do DMA once."""
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(Memory.create_file(RAM, SIZE))
        memory.view[:64] = PATTERN
        for index, bdf in enumerate(names, 1):
            bind(bdf)
            container = stack.enter_context(Container())
            group = stack.enter_context(Group.of(bdf))
            group.join(container)
            stack.enter_context(container.map(memory, IOVA))
            device = stack.enter_context(group.open_device(bdf))
            device.config.enable()
            chip = edu.Edu(stack.enter_context(device.map_bar(0)))
            chip.from_ram(IOVA, 64)
            say("used", bdf=bdf, landed=lands(chip, memory, index * 4096))
        say("ready")
        time.sleep(1e6)


def poke(bdf: str, switch_on: bool) -> None:
    """A DMA with no driver."""
    config = Path("/sys/bus/pci/devices", bdf, "config")
    with config.open("r+b") as file:
        file.seek(COMMAND)
        (command,) = struct.unpack("<H", file.read(2))
        if switch_on:
            file.seek(COMMAND)
            file.write(struct.pack("<H", command | MEMORY | MASTER))
    with Memory.of_file(RAM) as memory:
        landed = lands(edu.Edu(SysfsBar(bdf)), memory, 0x8000)
    say("poked", bdf=bdf, master=bool(command & MASTER), landed=landed)


@dataclass
class Takeover:
    """The steps of taking a device over."""

    bdf: str
    memory: Memory
    chip: edu.Edu
    control: Control = field(default_factory=Control)
    _count: int = 0

    def after(self, step: str) -> None:
        """Say whether DMA still lands after a step, and what the module says."""
        self._count += 1
        landed = lands(self.chip, self.memory, 0x10000 + self._count * 4096)
        (device,) = (d for d in self.control.devices() if d.bdf == self.bdf)
        say(step, landed=landed, state=device.state, switch_us=device.switch_us)

    def refused(self, step: str) -> None:
        """Ask for the switch, and say why it was refused."""
        try:
            self.control.adopt(self.bdf)
            reason = ""
        except PkernfsError as error:
            reason = error.what
        say(f"adopt: {step}", refused=reason)
        self.after(step)

    def with_map(self, container: Container, step: str, do: Callable[[], None]) -> None:
        """Try to switch with wrong mappings, and take them away again."""
        do()
        self.refused(step)
        container.unmap_dma(IOVA, SIZE)

    def wrong(self, container: Container) -> None:
        """Mappings that are not those of before."""
        base = self.memory.address
        self.with_map(
            container, "shifted", lambda: container.map_dma(base + 2 * MIB, IOVA, SIZE - 2 * MIB)
        )
        self.with_map(
            container, "read only", lambda: container.map_dma(base, IOVA, SIZE, write=False)
        )
        self.with_map(container, "half", lambda: container.map_dma(base, IOVA, SIZE // 2))


def adopt(bdf: str, modes: list[str]) -> None:
    """Take the device over."""
    load_vfio()
    with Memory.of_file(RAM) as memory, Container() as container:
        takeover = Takeover(bdf, memory, edu.Edu(SysfsBar(bdf)))
        takeover.after("no driver")
        bind(bdf)
        takeover.after("bound")
        takeover.refused("not taken")
        with Group.of(bdf) as group:
            group.join(container)
            takeover.after("joined")
            takeover.refused("nothing mapped")
            if "wrong" in modes:
                takeover.wrong(container)
            with container.map(memory, IOVA):
                takeover.after("mapped")
                if "explicit" in modes:
                    takeover.refused("explicit")
                with group.open_device(bdf) as device:
                    # The kernel takes the mapping of sysfs away when VFIO claims the BAR.
                    takeover.chip = edu.Edu(device.region(0))
                    takeover.after("opened")
                    container.unmap_dma(IOVA, SIZE)
                    takeover.after("unmapped")
                    container.map_dma(memory.address, IOVA, SIZE)
                    takeover.after("mapped again")


def main() -> None:
    """Do as the words say."""
    verb, bdf, *rest = sys.argv[1:]
    if verb == "start":
        start([bdf, *rest])
    elif verb == "poke":
        poke(bdf, "all" in rest)
    else:
        adopt(bdf, rest)


main()
