# SPDX-License-Identifier: GPL-2.0-only
"""Directories named by the digest of what they were built from.

A directory appears under its name only when it is complete, so that an interrupted
build leaves nothing that looks finished; two builders of one name wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pkernfs import mountinfo
from pkernfs.errors import PkernfsError
from pkernfs.lab.paths import cache_root

#: A lab that runs may still take files from an artifact that it asked for this long ago.
_IN_USE_S = 3 * 3600


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A short name for a set of inputs: texts, contents, and files or trees by content.

    :param parts: a Path stands for the content of that file, or of every file below it.
    """
    total = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            total.update(len(chunk).to_bytes(8, "little"))
            total.update(chunk)
    return total.hexdigest()[:16]


def _chunks(part: str | bytes | Path) -> Iterator[bytes]:
    if isinstance(part, str):
        yield part.encode()
    elif isinstance(part, bytes):
        yield part
    elif part.is_dir():
        for path in sorted(part.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(part)).encode()
                yield path.read_bytes()
    else:
        yield part.name.encode()
        yield part.read_bytes()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; whoever comes second waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_tree(path: Path) -> None:
    """Remove a directory that may hold a root file system; absent is fine.

    What a killed mmdebstrap has left mounted in it (proc, sys, dev) is taken off first.

    :raises PkernfsError: something stays mounted: nothing is removed then.
    """
    for point in reversed(_mounted_below(path)):
        subprocess.run(["umount", "--lazy", str(point)], capture_output=True, check=False)
    if left := _mounted_below(path):
        raise PkernfsError(f"{left[0]} is mounted, so {path} stays", f"umount {left[0]}")
    if path.exists():
        shutil.rmtree(path)


def _mounted_below(path: Path) -> list[Path]:
    """Mount points within a directory, in the order in which they were mounted."""
    points = (mounted.point for mounted in mountinfo.own())
    return [point for point in points if point.is_relative_to(path.resolve())]


def artifact(
    kind: str,
    key: str,
    build: Callable[[Path], None],
    *,
    rebuild: bool = False,
    keep: int = 4,
    in_use: float = _IN_USE_S,
) -> Path:
    """The directory ``kind/key`` of the cache, built by ``build`` if it is not there.

    :param build: gets an empty directory to fill; what it raises leaves no artifact.
    :param rebuild: throw away what is there.
    :param keep: how many artifacts of this kind stay, the most recently used ones, and
        whatever was asked for in the last hours.
    :param in_use: what counts as the last hours, seconds.
    """
    home = cache_root() / kind
    target = home / key
    with locked(home / f"{key}.lock"):
        if rebuild:
            remove_tree(target)
        if not target.exists():
            partial = home / f"{key}.partial"
            remove_tree(partial)
            partial.mkdir()
            try:
                build(partial)
            except BaseException:
                remove_tree(partial)
                raise
            partial.rename(target)
        os.utime(target)
    _prune(home, keep, in_use)
    return target


def _prune(home: Path, keep: int, in_use: float) -> None:
    done = [path for path in home.iterdir() if path.is_dir() and path.suffix != ".partial"]
    times = {path: path.stat().st_mtime for path in done}
    for path in sorted(done, key=lambda path: times[path], reverse=True)[keep:]:
        if times[path] > time.time() - in_use:
            continue
        # Renamed first: what is half removed must not look finished.
        doomed = path.rename(path.with_name(f"{path.name}.partial"))
        shutil.rmtree(doomed, ignore_errors=True)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
