# SPDX-License-Identifier: GPL-2.0-only
"""The files behind a virtual host: where its RAM lies, its scratch disk, its logs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from pkernfs.lab.paths import build_root

_PREFIX = "pkernfs-lab-"
#: How many hosts' logs are kept.
_LOGS = 40


def new_home(size: int) -> Path:
    """A directory for a host's files, in memory if there is room.

    :param size: bytes that the host's RAM may take.
    """
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_place(size)))


def _place(size: int) -> Path:
    shm = Path("/dev/shm")
    if shm.is_dir():
        _remove_stale(shm)
        state = os.statvfs(shm)
        if state.f_bavail * state.f_frsize > size:
            return shm
    return build_root()


def _remove_stale(place: Path) -> None:
    """Remove the files of labs that were killed."""
    for path in place.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)


def make_scratch(path: Path, size: int) -> None:
    """An empty disk that lives as long as the host, kernels come and go.

    :param size: bytes; sparse.
    """
    with path.open("wb") as file:
        file.truncate(size)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", str(path)]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(command, check=True, env=environment, capture_output=True)


def new_logs() -> Path:
    """A directory for a host's logs; ``build/lab/last`` names the newest."""
    home = build_root() / "lab"
    home.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    logs = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=home))
    there = sorted(path for path in home.iterdir() if path.is_dir() and not path.is_symlink())
    for old in there[:-_LOGS]:
        shutil.rmtree(old, ignore_errors=True)
    fresh = home / f".last-{os.getpid()}"
    fresh.symlink_to(logs.name)
    fresh.rename(home / "last")
    return logs
