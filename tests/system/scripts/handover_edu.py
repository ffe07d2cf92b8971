# SPDX-License-Identifier: GPL-2.0-only
"""Takes QEMU's edu device over, a DMA after each step. Runs inside a host; prints JSON lines.

handover_edu.py FILE BDF [wrong] [explicit] [beside=BDF]

beside: a second inherited device, in the same container.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.devices import Control
from pkernfs.vfio import edu
from pkernfs.vfio.bind import bind, load_vfio
from pkernfs.vfio.container import Container
from pkernfs.vfio.edu_program import IOVA, SIZE, SysfsBar, lands, say
from pkernfs.vfio.group import Group
from pkernfs.vfio.memory import Memory

MIB = 1 << 20


@dataclass
class Takeover:
    """The steps of taking a device over."""

    bdf: str
    memory: Memory
    chip: edu.Edu
    control: Control = field(default_factory=Control)
    file_offset: int = 0x10000
    _count: int = 0

    def after(self, step: str) -> None:
        """Say whether DMA still lands after a step, and what the module says."""
        self._count += 1
        landed = lands(self.chip, self.memory, self.file_offset + self._count * 4096)
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
        other = Path("/mnt/pkernfs/other")
        with Memory.create_file(other, SIZE) as memory:
            self.with_map(
                container, "other file", lambda: container.map_dma(memory.address, IOVA, SIZE)
            )
        other.unlink()
        self.with_map(
            container, "shifted", lambda: container.map_dma(base + 2 * MIB, IOVA, SIZE - 2 * MIB)
        )
        self.with_map(
            container, "read only", lambda: container.map_dma(base, IOVA, SIZE, write=False)
        )
        self.with_map(container, "half", lambda: container.map_dma(base, IOVA, SIZE // 2))


@contextlib.contextmanager
def beside(container: Container, memory: Memory, bdf: str) -> Iterator[None]:
    """A second device in a container whose mappings are complete."""
    bind(bdf)
    with Group.of(bdf) as group:
        group.set_container(container)
        second = Takeover(bdf, memory, edu.Edu(SysfsBar(bdf)), file_offset=0x800000)
        second.after("second joined")
        with group.open_device(bdf) as device:
            second.chip = edu.Edu(device.region(0))
            second.after("second opened")
            yield
            second.after("second alone")


def adopt(file: Path, bdf: str, modes: list[str]) -> None:
    """Take the device over."""
    load_vfio()
    with Memory.of_file(file) as memory, Container() as container:
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
                with contextlib.ExitStack() as stack:
                    for word in modes:
                        if word.startswith("beside="):
                            stack.enter_context(
                                beside(container, memory, word.removeprefix("beside="))
                            )
                    device = stack.enter_context(group.open_device(bdf))
                    # The kernel takes the mapping of sysfs away when VFIO claims the BAR.
                    takeover.chip = edu.Edu(device.region(0))
                    takeover.after("opened")
                    container.unmap_dma(IOVA, SIZE)
                    takeover.after("unmapped")
                    container.map_dma(memory.address, IOVA, SIZE)
                    takeover.after("mapped again")


adopt(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
