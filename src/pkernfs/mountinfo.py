# SPDX-License-Identifier: GPL-2.0-only
"""What is mounted where: ``/proc/self/mountinfo``, as proc_pid_mountinfo(5) describes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: The type of a store (kernel/fs/super.c).
FSTYPE = "pkernfs"

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """A mounted filesystem.

    :ivar number: its device number, like "8:1".
    :ivar point: where it is mounted.
    :ivar fstype: its type.
    :ivar source: what it was mounted from; for a store its region (kernel/fs/super.c).
    :ivar options: of the filesystem, not those of this mount of it.
    """

    number: str
    point: Path
    fstype: str
    source: str
    options: tuple[str, ...] = ()


def parse(text: str) -> list[Mounted]:
    """Read a mountinfo, in the order in which things were mounted."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(rest) < 2:
            continue
        options = tuple(map(_plain, rest[2].split(","))) if len(rest) > 2 else ()
        point, source = Path(_plain(fields[4])), _plain(rest[1])
        found.append(Mounted(fields[2], point, _plain(rest[0]), source, options))
    return found


def own() -> list[Mounted]:
    """What this process sees mounted."""
    return parse(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
