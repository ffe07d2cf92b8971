# SPDX-License-Identifier: GPL-2.0-only
"""Changes a directory as hard as it can, for ever, and acknowledges what is done.

Runs inside a host that is going to panic. Two kinds of workers:

- a writer keeps one file ``current``: each new version is written beside it and renamed
  over it, and only then acknowledged, by one line on the acknowledgement path. A version
  is its number as text, repeated up to a size that depends on the number.
- a churner creates, links, reserves, resizes, renames and removes everything else.

Usage: hammer.py DIRECTORY ACKNOWLEDGEMENTS WRITERS CHURNERS
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

MIB = 1 << 20


def version(number: int) -> bytes:
    """The whole content of version ``number`` of a writer's file."""
    unit = f"{number:015}\n".encode()
    return unit * (1 + number * 7919 % (3 * MIB) // len(unit))


def write_for_ever(place: Path, name: str, acknowledgements: int) -> None:
    """Replace ``current`` by higher and higher versions."""
    place.mkdir()
    number = 0
    while True:
        number += 1
        fresh = place / "fresh"
        fresh.write_bytes(version(number))
        fresh.rename(place / "current")
        os.write(acknowledgements, f"{name} {number}\n".encode())


def churn_for_ever(place: Path, seed: int) -> None:
    """Do every kind of change, in no order."""
    rng = random.Random(seed)
    place.mkdir()

    def path() -> Path:
        return place / f"n{rng.randrange(12)}"

    def write() -> None:
        with path().open("ab") as file:
            file.write(bytes([seed]) * rng.randrange(1, 3 * MIB))

    def cut() -> None:
        os.truncate(path(), rng.randrange(9 * MIB))

    def reserve() -> None:
        with path().open("ab") as file:
            os.posix_fallocate(file.fileno(), rng.randrange(5 * MIB), rng.randrange(1, 9 * MIB))

    changes = (
        write,
        cut,
        reserve,
        lambda: path().rename(path()),
        lambda: path().unlink(),
        lambda: path().mkdir(),
        lambda: path().rmdir(),
        lambda: path().symlink_to("nowhere" * rng.randrange(1, 90)),
    )
    while True:
        try:
            rng.choice(changes)()
        except OSError:
            continue  # there already, not there, of another kind: all of it will happen


def main() -> None:
    """Start the workers; never come back."""
    top, writers, churners = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    top.mkdir()
    acknowledgements = os.open(sys.argv[2], os.O_WRONLY | os.O_NOCTTY)
    for index in range(writers + churners):
        if os.fork() == 0:
            if index < writers:
                write_for_ever(top / f"writer{index}", f"writer{index}", acknowledgements)
            else:
                churn_for_ever(top / f"churner{index}", index)


if __name__ == "__main__":
    main()
