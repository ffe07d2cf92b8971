# SPDX-License-Identifier: GPL-2.0-only
"""One update at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from pkernfs.errors import PkernfsError
from pkernfs.vmm.config import Places


@contextlib.contextmanager
def update_lock(places: Places, held: int | None = None) -> Iterator[None]:
    """Keep other updates and resumes out of the block; ends with this process at the latest.

    :param held: the lock file's descriptor, if this process has the lock already.
    :raises PkernfsError: another one is going on.
    """
    places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = held if held is not None else os.open(places.run / "update.lock", flags, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PkernfsError("another update or resume is going on", "wait for it") from error
        yield
    finally:
        os.close(fd)
