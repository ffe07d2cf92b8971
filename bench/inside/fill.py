# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host: fill a guest's memory with data, and tell whether it is still there.

``fill.py write PATH START END`` and ``fill.py digest PATH START END``, in MiB. No page of
it is like another, and none is zero. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

_MIB = 1 << 20
_PAGE = 4096


def write(path: Path, start: int, end: int) -> None:
    """Write pages of random bytes, each with its number in front."""
    noise = bytearray(os.urandom(_MIB))
    with path.open("r+b", buffering=0) as file:
        for mib in range(start, end):
            for page in range(0, _MIB, _PAGE):
                noise[page : page + 8] = (mib * _MIB + page + 1).to_bytes(8, "little")
            file.seek(mib * _MIB)
            file.write(noise)


def digest(path: Path, start: int, end: int) -> str:
    """Digest of 128 pages, evenly spread."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for number in range(128):
            file.seek((start * _MIB + (end - start) * _MIB * number // 128) & -_PAGE)
            total.update(file.read(_PAGE))
    return total.hexdigest()


if __name__ == "__main__":
    verb, name, first, last = sys.argv[1:5]
    if verb == "write":
        write(Path(name), int(first), int(last))
    print(digest(Path(name), int(first), int(last)))
