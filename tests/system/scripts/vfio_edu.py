# SPDX-License-Identifier: GPL-2.0-only
"""DMA of QEMU's edu device through VFIO. Runs inside a host; prints one JSON object.

Usage: vfio_edu.py FILE_FOR_THE_MEMORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pkernfs.vfio import edu, uapi
from pkernfs.vfio.bind import bound, find
from pkernfs.vfio.config import PCI_CAP_ID_MSI
from pkernfs.vfio.container import Container
from pkernfs.vfio.device import Device
from pkernfs.vfio.group import Group
from pkernfs.vfio.interrupts import Interrupts
from pkernfs.vfio.memory import Memory
from pkernfs.vfio.region import Registers

IOVA = 0x20_0000
SIZE = 2 << 20
PATTERN = bytes(range(256)) * 4


def copy_through(device: edu.Edu, memory: Memory) -> bool:
    """Bytes go from memory into the device and back to another place."""
    memory.view[:1024] = PATTERN
    memory.view[SIZE - 1024 :] = bytes(1024)
    device.from_ram(IOVA, 1024)
    device.to_ram(IOVA + SIZE - 1024, 1024)
    return bytes(memory.view[SIZE - 1024 :]) == PATTERN


def dma_interrupt(device: edu.Edu, interrupts: Interrupts) -> dict[str, int]:
    """A DMA that raises an interrupt at its end."""
    device.start_to_ram(IOVA, 64, interrupt=True)
    fired = interrupts.wait(10)
    return {"fired": fired, "causes": device.acknowledge(), "then": interrupts.wait(0.3)}


def refused_write(device: edu.Edu, memory: Memory) -> bool:
    """A DMA to an IOVA that is not mapped any more changes nothing."""
    memory.view[:64] = b"\xa5" * 64
    device.to_ram(IOVA, 64)
    return bytes(memory.view[:64]) == b"\xa5" * 64


def use(device: Device, bar: Registers, memory: Memory, container: Container) -> dict[str, object]:
    """Everything that is tried, by name."""
    config = device.config
    config.enable()
    chip = edu.Edu(bar)
    result: dict[str, object] = {
        "ids": [config.vendor, config.device],
        "msi": config.capability(PCI_CAP_ID_MSI) is not None,
        "resettable": device.info().resettable,
        "alive": chip.alive(),
        "factorial": chip.factorial(12),
        "config_by_pread": device.region(0).read32(edu.ID),
        "copied": copy_through(chip, memory),
    }
    for name, index in (
        ("intx", uapi.VFIO_PCI_INTX_IRQ_INDEX),
        ("msi", uapi.VFIO_PCI_MSI_IRQ_INDEX),
    ):
        with device.interrupts(index) as interrupts:
            result[f"{name}_interrupt"] = dma_interrupt(chip, interrupts)
    result["unmapped"] = container.unmap_dma(IOVA, SIZE)
    result["refused"] = refused_write(chip, memory)
    container.map_dma(memory.address, IOVA, SIZE)
    result["copied_again"] = copy_through(chip, memory)
    return result


def main() -> None:
    """Bind, map, use, and give everything back."""
    (bdf,) = find(edu.VENDOR, edu.DEVICE)
    path = Path(sys.argv[1])
    with (
        bound(bdf),
        Memory.create_file(path, SIZE) as memory,
        Container() as container,
        Group.of(bdf) as group,
    ):
        group.join(container)
        info = container.info()
        with (
            container.map(memory, IOVA),
            group.open_device(bdf) as device,
            device.map_bar(0) as bar,
        ):
            result = use(device, bar, memory, container)
        result["iova_usable"] = any(item.holds(IOVA, SIZE) for item in info.ranges)
        result["unmap_all"] = container.supports(uapi.VFIO_UNMAP_ALL)
    print(json.dumps(result))


main()
