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
def update_lock(places: Places) -> Iterator[None]:
    """Keep other updates and resumes out of the block; ends with this process at the latest.

    :raises PkernfsError: another one is going on.
    """
    places.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(places.run / "update.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PkernfsError("another update or resume is going on", "wait for it") from error
        yield
    finally:
        os.close(fd)
