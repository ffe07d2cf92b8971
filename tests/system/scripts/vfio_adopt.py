# SPDX-License-Identifier: GPL-2.0-only
"""Two drivers after another on one running e1000e. Runs inside a host; prints JSON lines.

The first starts the device and receives for a while, then nothing drives it for as long, then
the second finds rings and log in the files, adopts the device and goes on.

Usage: vfio_adopt.py FILE_FOR_THE_RINGS SECONDS_PER_PART FRAMES_TO_TRANSMIT
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.vfio import e1000e_regs as regs
from pkernfs.vfio import uapi
from pkernfs.vfio.bind import choose_reset
from pkernfs.vfio.device import Device
from pkernfs.vfio.e1000e import E1000e
from pkernfs.vfio.e1000e_ring import Geometry, RingMemory
from pkernfs.vfio.landings import LandingLog
from pkernfs.vfio.memory import Memory
from pkernfs.vfio.receiver import (
    IOVA,
    LOG_SIZE,
    log_path,
    only_device,
    opened,
    receive_until,
    transmit,
)
from pkernfs.vfio.region import Registers

RUN_TRANSMITTED = 77


def say(event: str, **values: object) -> None:
    """A line for the lab, with the time by this host's clock."""
    print(json.dumps({"event": event, "at": time.monotonic(), **values}), flush=True)


def first(registers: Registers, memory: Memory, rings: Path, seconds: float) -> None:
    """Start the device and receive."""
    with Memory.create_file(log_path(rings), LOG_SIZE) as log_memory:
        nic = E1000e.start(registers, RingMemory.format(memory.view, IOVA, Geometry()))
        log = LandingLog.format(log_memory.view, Geometry().receive)
        say("started", mac=nic.mac.hex())
        landed = receive_until(nic, log, time.monotonic() + seconds, [])
        say("left", landed=landed, ring=asdict(nic.ring_state()))


def msi(device: Device, nic: E1000e) -> dict[str, int]:
    """An interrupt for a frame, as MSI."""
    with device.interrupts(uapi.VFIO_PCI_MSI_IRQ_INDEX) as interrupts:
        nic.enable_interrupts()
        fired = interrupts.wait(20)
        nic.disable_interrupts()
        return {"fired": fired, "causes": nic.acknowledge()}


def msix(device: Device, nic: E1000e) -> list[int]:
    """An interrupt for a frame on vector 3 of the device's MSI-X: how often it, and the others."""
    count = device.irq_info(uapi.VFIO_PCI_MSIX_IRQ_INDEX).count
    with device.interrupts(uapi.VFIO_PCI_MSIX_IRQ_INDEX, count) as interrupts:
        nic.enable_msix_receive(3)
        fired = interrupts.wait(20, vector=3)
        nic.disable_interrupts()
        nic.acknowledge()
        others = [interrupts.wait(0, vector) for vector in range(count) if vector != 3]
        return [fired, *others]


def second(device: Device, registers: Registers, rings: Path, seconds: float, frames: int) -> None:
    """Adopt the device from what lies in the files."""
    with Memory.of_file(rings) as memory, Memory.of_file(log_path(rings)) as log_memory:
        nic = E1000e.adopt(registers, RingMemory.read(memory.view))
        log = LandingLog(log_memory.view)
        state = nic.ring_state()
        log.begin(state.waiting, state.head)
        say("adopted", ring=asdict(state))
        landed = receive_until(nic, log, time.monotonic() + seconds, [])
        transmit(nic, frames, RUN_TRANSMITTED)
        say("interrupted", msi=msi(device, nic), msix=msix(device, nic))
        # The lab stops sending now; what is on the way still has to land.
        landed += receive_until(nic, log, time.monotonic() + seconds, [])
        say("end", landed=landed, missed=nic.missed())
        entries = [entry.to_json() for entry in log.entries()]
        say("log", entries=entries)


def reset(device: Device, registers: Registers, memory: Memory) -> None:
    """Reset the device, then try to adopt it."""
    choose_reset(device.bdf, "bus")
    device.reset()
    receiving = bool(registers.read32(regs.RCTL) & regs.RCTL_EN)
    try:
        E1000e.adopt(registers, RingMemory.read(memory.view))
    except PkernfsError as error:
        say("reset", receiving=receiving, adoption=error.what)
    else:
        say("reset", receiving=receiving, adoption="succeeded")


def main() -> None:
    """Both parts, on one open device."""
    rings, seconds, frames = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with (
        Memory.create_file(rings, Geometry().size) as memory,
        opened(only_device(), memory, IOVA) as device,
        device.map_bar(0) as bar,
    ):
        device.config.enable()
        first(bar, memory, rings, seconds)
        time.sleep(seconds)
        second(device, bar, rings, seconds, frames)
        reset(device, bar, memory)


main()
