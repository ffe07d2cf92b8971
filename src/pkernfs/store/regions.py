# SPDX-License-Identifier: GPL-2.0-only
"""The regions that the loaded module holds, and where they are mounted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.mountinfo import FSTYPE, Mounted
from pkernfs.store.image import REGIONS, Image, RegionImage


@dataclass(frozen=True)
class Mount:
    """A mounted store.

    :ivar point: where it is mounted.
    :ivar region: its name in sysfs.
    """

    point: Path
    region: str


def region_names(directory: Path = REGIONS) -> list[str]:
    """Names of the regions of this host, none without the module."""
    try:
        return sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    except OSError:
        return []


def only_region(directory: Path = REGIONS) -> str:
    """The region of a host that has one.

    :raises PkernfsError: it has none, or several.
    """
    names = region_names(directory)
    if not names:
        raise PkernfsError(
            "this host has no region", "load the module pkernfs, or name an image file"
        )
    if len(names) > 1:
        raise PkernfsError(f"this host has {len(names)} regions", f"name one: {', '.join(names)}")
    return names[0]


@contextmanager
def open_region(name: str, directory: Path = REGIONS) -> Iterator[Image]:
    """The metadata of a region for reading, mounted or not.

    :raises PkernfsError: there is no such region, or it can't be read.
    """
    if name not in region_names(directory):
        raise PkernfsError(f"this host has no region {name!r}")
    with closing(RegionImage(directory / name)) as image:
        yield image


def mounts(mounted: Iterable[Mounted]) -> list[Mount]:
    """Where stores are mounted."""
    return [Mount(each.point, each.source) for each in mounted if each.fstype == FSTYPE]


def mount_of(path: Path, mounted: Iterable[Mounted]) -> Mount | None:
    """The mounted store that a path lies in, if it lies in one.

    :param path: is not followed beyond the mount point.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - symlinks in the store stay
    inside = [mount for mount in mounts(mounted) if absolute.is_relative_to(mount.point)]
    return max(inside, key=lambda mount: len(mount.point.parts), default=None)
