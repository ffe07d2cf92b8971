# SPDX-License-Identifier: GPL-2.0-only
"""Give up what is damaged in a store, so that the rest can be used without limits."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.store.check import CheckResult, check
from pkernfs.store.image import Image, cannot_map, mapped_length
from pkernfs.store.inode import Quarantined
from pkernfs.store.layout import SLOT_SIZE, WORD


@contextmanager
def open_writable(path: Path, offset: int = 0, size: int | None = None) -> Iterator[mmap.mmap]:
    """Map a file, or a part of it, for reading and writing.

    :param path: an image, or /dev/mem.
    :param offset: byte at which the range begins, a multiple of the page size.
    :param size: bytes; None: up to the end of the file.
    :raises PkernfsError: the file can't be opened, or ends before the range does.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            length = mapped_length(path, os.fstat(file.fileno()).st_size, offset, size)
            if not length:
                raise PkernfsError(f"{path} is empty")
            mapping = mmap.mmap(file.fileno(), length, offset=offset)
    except OSError as error:
        raise cannot_map(path, error) from error
    with mapping:
        yield mapping
        if path.is_file():
            mapping.flush()


def give_up(
    buffer: mmap.mmap, *, base: int | None = None, exact: bool = True
) -> tuple[CheckResult, tuple[Quarantined, ...]]:
    """Clear the commit word of every slot in quarantine; nothing else is written.

    Each is one store of 8 bytes: what is interrupted is done in part, and can be done again.

    :param buffer: the range, not mounted.
    :param base: physical address of the range, None if it isn't known.
    :param exact: the buffer is the whole range, see :class:`~pkernfs.store.image.Image`.
    :returns: what a check finds afterwards, and what was given up.
    :raises PkernfsError: the store could not be mounted even without what is damaged.
    """
    image = Image(buffer, base=base, exact=exact)
    try:
        before = check(image)
        if before.tree is None or not before.mountable:
            raise PkernfsError(
                "more is damaged than single files, nothing was changed",
                "'pkernfs check' says what; save what is left before the range is used again",
            )
        with memoryview(buffer) as view, view.cast("Q") as words:
            for slot in before.tree.quarantined:
                words[slot.slot * SLOT_SIZE // WORD.size] = 0
        return check(image), before.tree.quarantined
    finally:
        image.close()
