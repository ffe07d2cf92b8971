# SPDX-License-Identifier: GPL-2.0-only
"""Writes initrds: the "newc" archive of Documentation/driver-api/early-userspace/buffer-format.rst.

Reproducible (no times, all owned by root) and uncompressed: the memory is there, and
unpacking under emulation costs seconds of a guest's blackout.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Entry:
    """A file, directory or symbolic link of an archive.

    :ivar name: path in the archive, without a leading slash.
    :ivar mode: type and permissions.
    :ivar data: content; for a symbolic link its target.
    """

    name: str
    mode: int
    data: bytes = b""


def text(name: str, content: str | bytes, *, executable: bool = False) -> Entry:
    """A file made up here."""
    data = content.encode() if isinstance(content, str) else content
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def copy(source: Path, name: str) -> Entry:
    """A copy of a file; a symbolic link is followed."""
    return Entry(name, stat.S_IFREG | (source.stat().st_mode & 0o777), source.read_bytes())


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of these entries; directories that they lie in are added.

    Of two entries with one name the first one counts.
    """
    chosen: dict[str, Entry] = {}
    for entry in entries:
        for parent in reversed(PurePosixPath(entry.name).parents):
            if str(parent) != ".":
                chosen.setdefault(str(parent), Entry(str(parent), stat.S_IFDIR | 0o755))
        chosen.setdefault(entry.name, entry)
    parts = [_record(number, entry) for number, entry in enumerate(chosen.values(), start=1)]
    parts.append(_record(0, Entry("TRAILER!!!", 0)))
    return b"".join(parts)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = [number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
