# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host: files. Standard library only.

``files.py many DIRECTORY COUNT`` makes so many small files, 1000 to a directory.
``files.py metadata DIRECTORY COUNT`` times creating, truncating and unlinking.
``files.py sequential PATH MIB`` times writing and reading a file, 1 MiB at a time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from marks import span  # type: ignore[import-not-found]

_MIB = 1 << 20


def many(top: Path, count: int) -> None:
    """Make files of a few bytes each, all with a block of their own."""
    for number in range(count):
        folder = top / f"d{number // 1000}"
        if number % 1000 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o600))


def metadata(top: Path, count: int) -> None:
    """Create, truncate and unlink files."""
    top.mkdir()
    names = [str(top / f"f{number}") for number in range(count)]
    with span("create"):
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with span("truncate"):
        for name in names:
            os.truncate(name, 4096)
    with span("unlink"):
        for name in names:
            os.unlink(name)  # noqa: PTH108
    top.rmdir()


def sequential(path: Path, mib: int) -> None:
    """Write and read; the data is made before."""
    data = os.urandom(_MIB)
    buffer = bytearray(_MIB)
    with path.open("w+b", buffering=0) as file:
        with span("write"):
            for _ in range(mib):
                file.write(data)
        file.seek(0)
        with span("read"):
            for _ in range(mib):
                file.readinto(buffer)
    if buffer != data:
        raise SystemExit(f"{path} does not hold what was written")
    path.unlink()


if __name__ == "__main__":
    {"many": many, "metadata": metadata, "sequential": sequential}[sys.argv[1]](
        Path(sys.argv[2]), int(sys.argv[3])
    )
