# SPDX-License-Identifier: GPL-2.0-only
"""The mounted filesystems that hold data, and which of them rests on which other.

A filesystem on a loop device lies in a file of another filesystem: to be frozen it writes
into that one, which must not be frozen yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.host.machine import Machine
from pkernfs.mountinfo import Mounted

# Nothing of them is left when the kernel ends, and the store takes care of itself.
_IN_MEMORY = frozenset(
    (
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "pkernfs",
        "proc",
        "pstore",
        "ramfs",
        "resctrl",
        "rootfs",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tmpfs",
        "tracefs",
    )
)


@dataclass(frozen=True)
class Mount:
    """A writable filesystem.

    :ivar point: a place where it is mounted, and not hidden by another mount.
    :ivar number: its device number, like "8:1"; "0:N" if it has no device of its own.
    :ivar devices: numbers of the block devices that it lies on; empty: none that is known.
    :ivar upper: where an overlay has its files.
    """

    point: Path
    number: str
    devices: tuple[str, ...] = ()
    upper: Path | None = None

    @property
    def on_disk(self) -> bool:
        """Does it lie on a block device? Only then can it be frozen."""
        return bool(self.devices)


def _visible(lines: Sequence[Mounted]) -> Iterator[Mounted]:
    """Without mounts that a later one, at their place or above it, hides."""
    for index, line in enumerate(lines):
        later = {other.point for other in lines[index + 1 :]}
        if not later.intersection((line.point, *line.point.parents)):
            yield line


def _number_of(machine: Machine, device: str) -> str:
    """Number of a block device by its path; empty when there is none."""
    path = machine.root / device.lstrip("/")
    number = machine.read(f"sys/class/block/{path.resolve().name}/dev")
    if number:
        return number
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if status.st_rdev else ""


def _all_of_btrfs(machine: Machine, number: str) -> set[str]:
    """All devices of the btrfs that has this one."""
    for devices in (machine.root / "sys/fs/btrfs").glob("*/devices"):
        found = {machine.read(f"{path}/dev") or "" for path in devices.iterdir()}
        if number in found:
            return found - {""}
    return set()


def _devices_of(machine: Machine, line: Mounted) -> tuple[str, ...]:
    if not line.number.startswith("0:"):
        found = {line.number}
    else:
        # btrfs and bcachefs: each of the devices, or one of them, is named as the source.
        names = [name for name in line.source.split(":") if name.startswith("/dev/")]
        found = {_number_of(machine, name) or name for name in names}
    if line.fstype == "btrfs":
        for number in tuple(found):
            found |= _all_of_btrfs(machine, number)
    for option in line.options:  # a log or journal elsewhere: logdev=, rtdev=, journal_path=
        value = option.partition("=")[2]
        if found and value.startswith("/dev/"):
            found.add(_number_of(machine, value))
    return tuple(sorted(found - {""}))


def _upper_of(line: Mounted) -> Path | None:
    for option in line.options:
        name, _, value = option.partition("=")
        if line.fstype == "overlay" and name == "upperdir":
            return Path(value)
    return None


def writable(machine: Machine) -> list[Mount]:
    """Every filesystem that may hold data which is not on its disk or server yet, once."""
    found: dict[str, Mount] = {}
    for line in _visible(machine.mounted()):
        if "ro" in line.options or line.fstype in _IN_MEMORY or line.number in found:
            continue
        devices = _devices_of(machine, line)
        found[line.number] = Mount(line.point, line.number, devices, _upper_of(line))
    return list(found.values())


def _parts(machine: Machine, number: str) -> tuple[set[str], set[Path]]:
    """All devices that a block device is made of, itself too, and the files of loop devices."""
    numbers: set[str] = set()
    files: set[Path] = set()
    waiting = [number]
    while waiting:
        number = waiting.pop()
        if not number or number in numbers:
            continue
        numbers.add(number)
        device = machine.root / "sys/dev/block" / number
        if (device / "partition").exists():
            waiting.append(machine.read(str(device.resolve().parent / "dev")) or "")
        slaves = device / "slaves"
        if slaves.is_dir():
            waiting += [machine.read(str(slave / "dev")) or "" for slave in slaves.iterdir()]
        backing = machine.read(str(device / "loop/backing_file"))
        if backing:
            files.add(Path(backing.removesuffix(" (deleted)")))
    return numbers, files


def under(machine: Machine, point: Path) -> set[str]:
    """Numbers of all block devices that the filesystem mounted at ``point`` lies on."""
    found: set[str] = set()
    for line in _visible(machine.mounted()):
        if line.point == point:
            for number in _devices_of(machine, line):
                found |= _parts(machine, number)[0]
    return found


def _holder(mounts: Sequence[Mount], points: Sequence[Mounted], path: Path) -> set[str]:
    """Number of the filesystem that a file lies on, by its path: to ask the disk may hang."""
    above = [line for line in points if line.point == path or line.point in path.parents]
    known = {mount.number for mount in mounts}
    if not above:
        return set()
    return {max(above, key=lambda line: len(line.point.parts)).number} & known


def _below(machine: Machine, mounts: Sequence[Mount]) -> dict[str, set[str]]:
    """For each filesystem those that it rests on directly."""
    points = list(_visible(machine.mounted()))
    parts = {
        mount.number: [_parts(machine, number) for number in mount.devices] for mount in mounts
    }
    below: dict[str, set[str]] = {}
    for mount in mounts:
        rests = set(_holder(mounts, points, mount.upper)) if mount.upper else set()
        for numbers, files in parts[mount.number]:
            for path in files:
                rests |= _holder(mounts, points, path)
            lower = numbers - set(mount.devices)
            rests |= {other.number for other in mounts if lower.intersection(other.devices)}
        below[mount.number] = rests - {mount.number}
    return below


def _reach(below: dict[str, set[str]], start: str) -> set[str]:
    """Everything that a filesystem rests on, directly or not."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for number in below[waiting.pop()] - found:
            found.add(number)
            waiting.append(number)
    return found


def in_layers(machine: Machine) -> list[list[Mount]]:
    """Writable filesystems in groups: none rests on one of its own or an earlier group.

    What a network filesystem or one in a user's process rests on, nobody can tell: perhaps
    on any filesystem here, but for those that rest on it.
    """
    mounts = writable(machine)
    below = _below(machine, mounts)
    reach = {mount.number: _reach(below, mount.number) for mount in mounts}
    disks = {mount.number for mount in mounts if mount.on_disk}
    for mount in mounts:
        if not mount.on_disk and mount.upper is None:
            below[mount.number] |= {one for one in disks if mount.number not in reach[one]}
    left = {mount.number: mount for mount in mounts}
    layers = []
    while left:
        resting = set().union(*(below[number] for number in left))
        # In a circle, which must not be, all of it is tried at once.
        free = [number for number in left if number not in resting] or list(left)
        layers.append([left.pop(number) for number in free])
    return layers
