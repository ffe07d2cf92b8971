# SPDX-License-Identifier: GPL-2.0-only
"""Blocks that leave a file while a container still has them. Runs inside a host, prints JSON.

Usage: vfio_limbo.py MOUNT_POINT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pkernfs.vfio import edu
from pkernfs.vfio.bind import bound, find
from pkernfs.vfio.container import Container
from pkernfs.vfio.group import Group
from pkernfs.vfio.memory import Memory

IOVA = 0x20_0000
BLOCK = 2 << 20
SIZE = 2 * BLOCK
LIMBO = Path("/sys/fs/pkernfs/pkernfs/limbo")


def limbo() -> int:
    """Blocks that are in no file, and that nobody gets."""
    return int(LIMBO.read_text()) if LIMBO.exists() else -1


def written_by(chip: edu.Edu, path: Path) -> bool:
    """Whether DMA to where the old file was mapped changes a new file, as large as that was."""
    path.write_bytes(b"\xee" * SIZE)
    chip.to_ram(IOVA, 64)
    chip.to_ram(IOVA + BLOCK, 64)
    return path.read_bytes() != b"\xee" * SIZE


def succeeds(*argv: str) -> bool:
    """Whether a program ends well."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def other_process(path: Path) -> int:
    """How many blocks wait after a process without a container had a file mapped."""
    before = limbo()
    path.write_bytes(bytes(SIZE))
    toucher = "import mmap,sys; f=open(sys.argv[1],'r+b'); mmap.mmap(f.fileno(),0)[::4096]"
    subprocess.run([sys.executable, "-c", toucher, str(path)], check=True)
    path.unlink()
    return limbo() - before


@contextmanager
def mapped(path: Path) -> Iterator[tuple[edu.Edu, Memory]]:
    """The device, which reaches a file of this process by a container."""
    (bdf,) = find(edu.VENDOR, edu.DEVICE)
    with bound(bdf), Container() as container, Group.of(bdf) as group:
        group.join(container)
        with group.open_device(bdf) as device, device.map_bar(0) as bar:
            device.config.enable()
            memory = Memory.create_file(path, SIZE)
            container.map_dma(memory.address, IOVA, SIZE)
            yield edu.Edu(bar), memory


def after_reload(path: Path) -> list[object]:
    """Whether VFIO was unloaded, and how many blocks wait when it is used again."""
    unloaded = succeeds("modprobe", "-r", "vfio_pci", "vfio_iommu_type1")
    with mapped(path) as (_, memory):
        memory.view[:64] = b"\x5a" * 64
        os.truncate(path, 0)
        found: list[object] = [unloaded, limbo()]
        memory.close()
    return found


def main(mount: Path) -> None:
    """Everything that is tried, by name."""
    result: dict[str, object] = {}
    room = os.statvfs(mount)
    with mapped(mount / "f") as (chip, memory):
        memory.view[:64] = b"\x5a" * 64
        chip.from_ram(IOVA, 64)
        result["before"] = limbo()
        os.truncate(mount / "f", 0)
        result["truncated"] = limbo()
        result["truncated_written"] = written_by(chip, mount / "g")
        after = os.statvfs(mount)
        result["statvfs"] = [room.f_bavail - after.f_bavail, room.f_bfree - after.f_bfree]
        result["other_process"] = other_process(mount / "h")
        (mount / "g").unlink()
        memory.close()
        # The store is closed and opened again while the container stays.
        result["unloaded"] = succeeds("umount", str(mount)) and succeeds("rmmod", "pkernfs")
        succeeds("modprobe", "pkernfs")
        result["mounted"] = succeeds("mount", "-t", "pkernfs", "none", str(mount))
        result["remounted"] = limbo()
        result["remounted_written"] = written_by(chip, mount / "g")
    result["closed"] = limbo()
    result["after_reload"] = after_reload(mount / "f")
    (mount / "f").unlink()
    (mount / "g").unlink()
    result["room"] = os.statvfs(mount).f_bavail - room.f_bavail
    print(json.dumps(result))


main(Path(sys.argv[1]))
