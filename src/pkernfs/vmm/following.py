# SPDX-License-Identifier: GPL-2.0-only
"""A command line that follows the disks: with the images that the running QEMU has by now.

Only where that is simple: a ``-drive`` that says a file and nothing about what the file is based
on. An overlay names its base by itself. Whether the outcome is right is not for this module to
say: it is rehearsed like any other command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pkernfs.errors import PkernfsError
from pkernfs.vmm.command import check_arguments
from pkernfs.vmm.differences import path_of, same_images
from pkernfs.vmm.living import Disk
from pkernfs.vmm.options import Option, Properties, parse

#: What may stand in such a -drive.
_SIMPLE = frozenset(
    {
        *("file", "format", "if", "id", "media", "index", "bus", "unit", "cache", "aio", "serial"),
        *("discard", "detect-zeroes", "werror", "rerror", "read-only", "readonly", "file.locking"),
    }
)


def followed(
    arguments: Sequence[str],
    running: Mapping[str, Disk],
    written: Mapping[str, Disk],
    directory: str,
) -> tuple[str, ...] | None:
    """Write a command line for the disks as they are.

    :param arguments: the guest's.
    :param running: the disks of its running QEMU.
    :param written: those that the arguments give.
    :param directory: where relative paths begin.
    :returns: None: nothing to follow, or not by this.
    """
    options = parse(arguments)
    changed = False
    for name, disk in running.items():
        before = written.get(name)
        if before is None or same_images(disk.images, before.images, directory):
            continue
        index = _drive(options, name, before)
        new = _having(options[index], disk) if index is not None else None
        if index is None or new is None:
            return None
        options[index] = new
        changed = True
    return tuple(word for option in options for word in option.words()) if changed else None


def _drive(options: Sequence[Option], name: str, before: Disk) -> int | None:
    """Which option makes a disk: by its id, or by its file if that is there once."""
    drives = [(at, it.properties()) for at, it in enumerate(options) if it.name == "drive"]
    found = [at for at, it in drives if it.text("id") == name]
    if not found and before.images:
        file = path_of(before.images[0].file)
        found = [at for at, it in drives if not it.text("id") and it.text("file") == file]
    return found[0] if len(found) == 1 else None


def _having(option: Option, disk: Disk) -> Option | None:
    """The option with what is in the disk now; None: not by this, or not in the next kernel."""
    old = option.properties()
    if old.items.keys() - _SIMPLE:
        return None
    if not disk.images:
        return option.having(Properties(old.without("file", "format").items))
    top = disk.images[0]
    file = path_of(top.file)
    if file.startswith("json:"):
        return None
    items = {"file": file, **old.without("file").items, "format": top.driver}
    new = option.having(Properties(items))
    try:
        check_arguments(new.words())
    except PkernfsError:
        return None
    return new
