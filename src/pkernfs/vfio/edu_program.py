# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's edu device in and out of use, for the hand-over. Runs inside a host; prints JSON lines.

python3 -m pkernfs.vfio.edu_program start FILE BDF...    map the file for each, use it, and stay
python3 -m pkernfs.vfio.edu_program poke FILE BDF [all]  a DMA with no driver; "all": its bus
                                                         master is switched on before that
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pkernfs.vfio import edu
from pkernfs.vfio.bind import bind
from pkernfs.vfio.config import PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY
from pkernfs.vfio.container import Container
from pkernfs.vfio.group import Group
from pkernfs.vfio.memory import Memory

#: Where the devices see the file, and how large it is made.
IOVA: Final = 0x4000_0000
SIZE: Final = 64 << 20
PATTERN: Final = b"\x5a" * 64
_EMPTY: Final = b"\xee" * 64
_BAR_SIZE: Final = 1 << 20


def say(step: str, **values: object) -> None:
    """A line for the lab."""
    print(json.dumps({"step": step, **values}), flush=True)


class SysfsBar:
    """BAR 0 of a device that no driver has open, as pkernfs.vfio.edu wants it."""

    def __init__(self, bdf: str) -> None:
        with Path("/sys/bus/pci/devices", bdf, "resource0").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BAR_SIZE)

    def read32(self, offset: int) -> int:
        """A register."""
        (value,) = struct.unpack_from("<I", self._map, offset)
        return int(value)

    def write32(self, offset: int, value: int) -> None:
        """Write a register."""
        struct.pack_into("<I", self._map, offset, value)


def lands(chip: edu.Edu, memory: Memory, offset: int) -> bool:
    """Whether a DMA of the device's buffer reaches memory at ``offset``."""
    memory.view[offset : offset + 64] = _EMPTY
    chip.to_ram(IOVA + offset, 64)
    return bytes(memory.view[offset : offset + 64]) == PATTERN


def start(file: Path, names: Sequence[str]) -> None:
    """Open the devices, each in a container of its own, and let them do DMA once."""
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(Memory.create_file(file, SIZE))
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


def poke(file: Path, bdf: str, switch_on: bool) -> None:
    """A DMA with no driver."""
    config = Path("/sys/bus/pci/devices", bdf, "config")
    with config.open("r+b") as space:
        space.seek(PCI_COMMAND)
        (command,) = struct.unpack("<H", space.read(2))
        if switch_on:
            space.seek(PCI_COMMAND)
            space.write(struct.pack("<H", command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER))
    with Memory.of_file(file) as memory:
        landed = lands(edu.Edu(SysfsBar(bdf)), memory, 0x8000)
    say("poked", bdf=bdf, master=bool(command & PCI_COMMAND_MASTER), landed=landed)


def main(words: Sequence[str]) -> None:
    """Do as the words say."""
    verb, file, bdf, *rest = words
    if verb == "start":
        start(Path(file), [bdf, *rest])
    else:
        poke(Path(file), bdf, "all" in rest)


if __name__ == "__main__":
    main(sys.argv[1:])
