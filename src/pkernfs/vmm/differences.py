# SPDX-License-Identifier: GPL-2.0-only
"""What a guest's successor would lack, or have otherwise than the QEMU that runs.

Both were asked the same (:mod:`pkernfs.vmm.living`). Each difference is told with what to do
about it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.vmm.living import Block, Contents, Device, Disk, Image, identity


@dataclass(frozen=True)
class Difference:
    """Something that the successor would have otherwise, and what to do about it."""

    text: str
    hint: str


def replaced(
    files: Sequence[str], open_now: set[tuple[str, int, int]], directory: str
) -> list[Difference]:
    """Image files that QEMU has open and that are not what lies at their path any more.

    :param files: their paths.
    :param open_now: see :func:`pkernfs.vmm.living.opened`.
    :param directory: where relative paths begin.
    """
    found = []
    for file in files:
        path = Path(directory, path_of(file))
        try:
            same = identity(path.stat()) in open_now
        except OSError:  # the rehearsal says what is wrong with it
            continue
        if not same:
            found.append(
                Difference(
                    f"{path} is not the file any more that the running QEMU has open",
                    "put back the file that the guest uses, or shut the guest down",
                )
            )
    return found


def differences(running: Contents, next_one: Contents, directory: str = "/") -> list[Difference]:
    """What a successor would have otherwise than the QEMU that runs.

    :param directory: where relative paths begin.
    """
    plugged = [
        *_device_differences(running.devices, next_one.devices),
        *_names("object", running.objects, next_one.objects),
        *_counts(running, next_one),
    ]
    return [
        *_versions(running, next_one),
        *_disks(running, next_one, directory),
        *_jobs(running),
        *_processors(running, next_one),
        *plugged,
        *_sizes(running.blocks, next_one.blocks),
        # What was plugged has memory of its own: said once is enough.
        *(_blocks(running.blocks, next_one.blocks) if not plugged else ()),
    ]


_UNPLUG = "unplug it for the update, or start the guest anew with it on the command line"
_RESTART = "shut the guest down and start it with what it is to have"


def _versions(running: Contents, next_one: Contents) -> Iterator[Difference]:
    if next_one.version < running.version:
        old, new = (".".join(map(str, it.version)) for it in (running, next_one))
        yield Difference(
            f"the running QEMU is version {old}, the program is {new} by now, which is older",
            "install the version that runs, or a newer one",
        )


def _disks(running: Contents, next_one: Contents, directory: str) -> Iterator[Difference]:
    for name, disk in running.disks.items():
        other = next_one.disks.get(name)
        if other is None:
            has = f" with {chain(disk.images)}" if disk.images else ""
            yield Difference(
                f"disk {name}: the running QEMU has it{has}, its command line does not", _UNPLUG
            )
        else:
            yield from _disk(name, disk, other, directory)
    for name in next_one.disks.keys() - running.disks.keys():
        yield Difference(
            f"disk {name}: its command line has it, the running QEMU does not", _UNPLUG
        )


def _disk(name: str, disk: Disk, other: Disk, directory: str) -> Iterator[Difference]:
    if not same_images(disk.images, other.images, directory):
        has, names = chain(disk.images), chain(other.images)
        yield Difference(
            f"disk {name}: the running QEMU has {has}, its command line names {names}",
            _medium_hint(disk, other),
        )
    elif disk.read_only != other.read_only:
        how = {True: "read-only", False: "writable"}
        yield Difference(
            f"disk {name}: the running QEMU has it {how[disk.read_only]}, "
            f"its command line makes it {how[other.read_only]}",
            _RESTART,
        )
    for limit, value in disk.limits.items():
        if limit in other.limits and other.limits[limit] != value:
            yield Difference(
                f"disk {name}: {limit} is {value} now, {other.limits[limit]} by its command line",
                f"set {limit} back for the update, and again after it",
            )


def _medium_hint(disk: Disk, other: Disk) -> str:
    if not disk.images or not other.images:
        return "insert or eject the medium, as the command line says"
    if other.images[0] in disk.images:
        return (
            f"merge the snapshot back into {path_of(other.images[0].file)} (block-commit), or shut "
            "the guest down and start it on the image that it has now"
        )
    return "shut the guest down and start it on the image that it has now"


def same_images(ours: Sequence[Image], theirs: Sequence[Image], directory: str) -> bool:
    """Are two chains the same, whatever way leads to their files?

    :param directory: where relative paths begin.
    """

    def real(images: Sequence[Image]) -> list[tuple[str, str]]:
        return [
            (image.driver, os.path.realpath(Path(directory, path_of(image.file))))
            for image in images
        ]

    return ours == theirs or (real(ours) == real(theirs))


def chain(images: Sequence[Image]) -> str:
    """Images for a human to read, the uppermost first."""
    if not images:
        return "no medium"
    first = path_of(images[0].file)
    return first + "".join(f" on {path_of(image.file)}" for image in images[1:])


#: Options that do not change what is in a file.
_PLAIN = frozenset({"driver", "file", "filename", "locking", "aio"})


def path_of(file: str) -> str:
    """The path in what QEMU calls an image: that, or all options as JSON.

    JSON stays as it is if it says more than a path.
    """
    if not file.startswith("json:"):
        return file
    try:
        options = json.loads(file.removeprefix("json:"))
        while not options.keys() - _PLAIN:
            if "filename" in options:
                return str(options["filename"])
            options = options["file"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return file


def _jobs(running: Contents) -> Iterator[Difference]:
    for kind, name in running.jobs:
        yield Difference(
            f"job {name} ({kind}) is under way on a disk, and ends with this QEMU",
            "wait until it is done, or cancel it (block-job-cancel)",
        )


def _device_differences(
    running: Sequence[Device], next_one: Sequence[Device]
) -> Iterator[Difference]:
    ours, theirs = Counter(running), Counter(next_one)
    more, missing = list((ours - theirs).elements()), list((theirs - ours).elements())
    for device in more:
        twin = next((it for it in missing if _is_twin(device, it)), None)
        if twin is None:
            yield Difference(
                f"{device}: the running QEMU has it, its command line does not", _UNPLUG
            )
            continue
        missing.remove(twin)
        for (name, value), (_, other) in zip(device.properties, twin.properties, strict=False):
            if value != other:
                yield Difference(
                    f"{device}: {name} is {value} now, {other} by its command line", _UNPLUG
                )
    for device in missing:
        yield Difference(f"{device}: its command line has it, the running QEMU does not", _RESTART)


def _is_twin(one: Device, other: Device) -> bool:
    names = [[name for name, _ in device.properties] for device in (one, other)]
    return (one.name, one.kind) == (other.name, other.kind) and names[0] == names[1]


def _names(
    what: str, running: Mapping[str, str], next_one: Mapping[str, str]
) -> Iterator[Difference]:
    ours, theirs = ({name: _plain(kind) for name, kind in it.items()} for it in (running, next_one))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) == theirs.get(name):
            continue
        has, lacks = ("the running QEMU", "its command line")
        if name not in ours:
            has, lacks = lacks, has
        kind = ours.get(name) or theirs[name]
        yield Difference(f"{what} {name} ({kind}): {has} has it, {lacks} does not", _UNPLUG)


def _plain(kind: str) -> str:
    """The type of an object; of memory it does not count what it is made of."""
    return "memory" if kind.startswith("memory-backend-") else kind


def _processors(running: Contents, next_one: Contents) -> Iterator[Difference]:
    ours, theirs = running.processor.features, next_one.processor.features
    other = [name for name, has in sorted(theirs.items()) if has != ours.get(name, False)]
    if other:
        yield Difference(f"processor: {', '.join(other)} would be otherwise", _RESTART)


def _counts(running: Contents, next_one: Contents) -> Iterator[Difference]:
    if running.cpus != next_one.cpus:
        yield Difference(
            f"the running QEMU has {running.cpus} processors, its command line {next_one.cpus}",
            "unplug or plug processors, as the command line says",
        )
    for name in sorted(running.memory.keys() | next_one.memory.keys()):
        ours, theirs = running.memory.get(name, 0), next_one.memory.get(name, 0)
        if ours != theirs:
            yield Difference(
                f"memory {name}: {ours >> 20} MiB in the running QEMU, "
                f"{theirs >> 20} MiB by its command line",
                _UNPLUG,
            )


_FILES = "put back the file that the guest was started with (firmware, option ROM)"


def _sizes(running: Mapping[str, Block], next_one: Mapping[str, Block]) -> Iterator[Difference]:
    """Memory that can't be loaded: a block must have its size, but those that may grow."""
    for name in sorted(running.keys() & next_one.keys()):
        block, other = running[name], next_one[name]
        grows = other.used != other.total or block.used != block.total
        if block.used != other.used and not (grows and block.used <= other.total):
            yield Difference(
                f"memory block {name}: {block.used >> 10} KiB in the running QEMU, "
                f"{other.used >> 10} KiB with the files of today",
                _FILES,
            )


def _blocks(running: Mapping[str, Block], next_one: Mapping[str, Block]) -> Iterator[Difference]:
    for name in sorted(running.keys() - next_one.keys()):
        yield Difference(f"memory block {name}: its command line does not make it", _FILES)
    for name in sorted(next_one.keys() - running.keys()):
        yield Difference(f"memory block {name}: the running QEMU does not have it", _FILES)
