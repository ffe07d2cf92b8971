# SPDX-License-Identifier: GPL-2.0-only
"""A fingerprint of what a guest is made of while it stands still: is it the same after a reset?

kexec leaves the store alone. A reset does not promise that: firmware clears memory, tests it,
keeps its own tables there. So before a guest is continued in a kernel that its update did not
start, its files are compared with what they were when it was saved.

Paused guests wait for it, so of the memory a small piece of each of :data:`SAMPLES` equal parts
is read, unless all of it is asked for. Whatever is overwritten in one piece of two parts is found
for certain; less than that by chance. It is no protection against somebody who wants to deceive.
"""

from __future__ import annotations

import os
import zlib

# Not hashlib: that loads OpenSSL, and paused guests may wait for it.
from _blake2 import blake2b
from collections.abc import Iterator
from pathlib import Path

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.vmm.config import Guest, GuestConfig

#: How much of a guest's memory is looked at.
SAMPLED = "sampled"
WHOLE = "whole"
NONE = "none"
KINDS = (SAMPLED, WHOLE, NONE)

#: Parts of the memory, of each of which a piece is read.
SAMPLES = 1024

#: Bytes. Reading and hashing it costs about as much as the call that reads it.
_PIECE = 512
_CHUNK = 1 << 20
#: Memory that a passed-through device writes into all the time, also while no kernel runs.
_STATE_ONLY = "state"


def check_kind(kind: str) -> str:
    """Return ``kind`` if it is one.

    :raises UsageError: it is none.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no fingerprint {kind!r}", f"one of {', '.join(KINDS)}")
    return kind


def take(guest: Guest, config: GuestConfig, kind: str, seed: str) -> str:
    """Take the fingerprint of a guest that stands still and is saved.

    :param kind: one of :data:`KINDS`.
    :param seed: decides which pieces are read.
    :returns: text for :func:`differs`; empty when none is asked for.
    :raises OSError: a file can't be read.
    """
    if kind == NONE:
        return ""
    if config.devices:
        kind = _STATE_ONLY
    return f"{kind}:{_digest(guest, config, kind, seed)}"


def differs(guest: Guest, config: GuestConfig, taken: str, seed: str) -> bool:
    """Is a guest not what it was when its fingerprint was taken?

    :param taken: what :func:`take` returned.
    :raises PkernfsError: a file can't be read.
    """
    kind, _, digest = taken.partition(":")
    if not digest:
        return False
    try:
        return _digest(guest, config, kind, seed) != digest
    except OSError as error:
        raise PkernfsError(f"guest {guest.name}: {error.filename}: {error.strerror}") from error


def _digest(guest: Guest, config: GuestConfig, kind: str, seed: str) -> str:
    digest = blake2b(digest_size=16)
    for path in (guest.state, guest.cpr_file, guest.cpr_memory):
        if path.exists():
            _add(digest, path, _all(path.stat().st_size))
    if kind == SAMPLED:
        _add(digest, guest.ram, _sample(config.ram_bytes, seed))
    elif kind == WHOLE:
        _add(digest, guest.ram, _all(config.ram_bytes))
    return digest.hexdigest()


def _add(digest: blake2b, path: Path, pieces: Iterator[tuple[int, int]]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, size in pieces:
            digest.update(os.pread(fd, size, offset))
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def _all(size: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size, _CHUNK):
        yield offset, min(_CHUNK, size - offset)


def _sample(size: int, seed: str) -> Iterator[tuple[int, int]]:
    """A piece of each part, anywhere in it; all pieces where there are no more than parts."""
    pieces = size // _PIECE
    parts = min(SAMPLES, pieces)
    state = zlib.crc32(seed.encode())
    for part in range(parts):
        first, end = part * pieces // parts, (part + 1) * pieces // parts
        # Knuth's linear congruential generator: here to stay the same for ever, which Python's
        # random does not promise.
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield (first + (state >> 33) % (end - first)) * _PIECE, _PIECE
