# SPDX-License-Identifier: GPL-2.0-only
"""Where a store is, as the command line names it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pkernfs import mountinfo
from pkernfs.errors import PkernfsError
from pkernfs.store.image import Image, open_image
from pkernfs.store.regions import mount_of, only_region, open_region, region_names

_DEV_MEM = Path("/dev/mem")


@dataclass(frozen=True)
class Target:
    """A store that can be opened for reading.

    :ivar text: what messages call it.
    :ivar file: the file it lies in, None for a region of the loaded module.
    :ivar region: name of the region, empty for a file.
    :ivar offset: byte of the file at which it begins.
    :ivar size: bytes, None if not given.
    :ivar base: physical address, None if not known.
    :ivar path: within the store, if the target lay in a mounted one.
    """

    text: str
    file: Path | None = None
    region: str = ""
    offset: int = 0
    size: int | None = None
    base: int | None = None
    path: str = ""

    def open(self) -> AbstractContextManager[Image]:
        """The store for reading.

        :raises PkernfsError: it can't be opened.
        """
        if self.file is None:
            return open_region(self.region)
        return open_image(self.file, self.offset, self.size, base=self.base)


def resolve(text: str | None, offset: str | None = None, size: str | None = None) -> Target:
    """What a TARGET on the command line means.

    :param text: an image file, FILE@OFFSET, a region, a path on a mounted store, or
        SIZE!START; None for this host's only region. A region goes before a file of
        the same name (write ./NAME for that).
    :param offset: value of ``--offset``, goes with a file only.
    :param size: value of ``--size``, goes with a file only.
    :raises PkernfsError: there is no such thing, or it can't be meant.
    """
    from pkernfs.host.ranges import parse_size

    target = _resolve(text)
    if offset is None and size is None:
        return target
    if target.file in (None, _DEV_MEM):
        raise PkernfsError("--offset and --size go with an image file", status=2)
    return Target(
        target.text,
        target.file,
        offset=target.offset if offset is None else parse_size(offset),
        size=None if size is None else parse_size(size),
    )


def reserved_range(name: str | None) -> str:
    """The target that ``make`` means: what the boot line keeps free.

    :param name: what was given: a region's name; None for the only one.
    :returns: SIZE!START, or the region's name while the module holds it; another target as
        it was given.
    :raises PkernfsError: no target was given, and the boot line does not name one region.
    """
    from pkernfs.host.machine import MODULE, Machine

    held = region_names()
    if name in held or (name is None and len(held) == 1):
        return name or held[0]
    known = {region.name or MODULE: region for region in Machine().boot_line.regions()}
    if name is None and len(known) == 1:
        return str(next(iter(known.values())))
    if name is None:
        hint = (
            f"name one: {', '.join(known)}" if known else "pkernfs reserve --size SIZE, then reboot"
        )
        raise PkernfsError(f"the boot line names {len(known) or 'no'} regions", hint, status=2)
    return str(known[name]) if name in known else name


def _resolve(text: str | None) -> Target:
    if text is None:
        region = only_region()
        return Target(region, region=region)
    if text in region_names():
        return Target(text, region=text)
    if "!" in text and not Path(text).exists():
        return _range(text)
    mount = mount_of(Path(text), mountinfo.own())
    if mount is not None:
        inside = Path(text).absolute().relative_to(mount.point)
        path = "" if inside == Path() else str(inside)
        return Target(mount.region, region=mount.region, path=path)
    return _file(text)


def _range(text: str) -> Target:
    from pkernfs.host.ranges import Region

    span = Region.parse(text).range
    return Target(text, _DEV_MEM, offset=span.start, size=span.size, base=span.start)


def _file(text: str) -> Target:
    from pkernfs.host.ranges import parse_size

    name, mark, offset = text.rpartition("@")
    if mark and not Path(text).exists() and Path(name).exists():
        return Target(text, Path(name), offset=parse_size(offset))
    return Target(text, Path(text))
