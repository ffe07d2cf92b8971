# SPDX-License-Identifier: GPL-2.0-only
"""Numbered Ethernet frames: what the lab sends and the driver finds in memory.

A frame says its number, when it was sent and its checksum, and its length and filler follow
from its number, so any lost, doubled, torn or misplaced byte shows.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

#: "Local experimental" EtherType (IEEE 802, section 9.2.3): no stack of a host reacts to it.
ETHERTYPE: Final = 0x88B5
#: Longest frame that :func:`build` makes, bytes; with 4 of check sequence it fits in 256.
LONGEST: Final = 191
_SHORTEST: Final = 64
_ETHERNET: Final = struct.Struct(">6s6sH")
_BODY: Final = struct.Struct("<4sIQQII")  # magic, run, sequence, sent, length, checksum
_MAGIC: Final = b"PKFR"
_HEAD: Final = _ETHERNET.size + _BODY.size


@dataclass(frozen=True)
class NumberedFrame:
    """What a frame says of itself.

    :ivar run: which sender's run it belongs to.
    :ivar sequence: its number, from 0.
    :ivar sent_ns: sender's monotonic clock, nanoseconds.
    :ivar intact: checksum, length and filler are right.
    """

    run: int
    sequence: int
    sent_ns: int
    intact: bool


def frame_length(sequence: int) -> int:
    """Bytes of frame ``sequence``: every length from 64 to 191 comes in turn."""
    return _SHORTEST + sequence % (LONGEST - _SHORTEST + 1)


def build(destination: bytes, source: bytes, run: int, sequence: int, sent_ns: int) -> bytes:
    """A frame, without check sequence.

    :param destination: address, 6 bytes.
    :param source: address, 6 bytes.
    """
    length = frame_length(sequence)
    ethernet = _ETHERNET.pack(destination, source, ETHERTYPE)
    filler = _filler(sequence, length - _HEAD)
    bare = ethernet + _BODY.pack(_MAGIC, run, sequence, sent_ns, length, 0)
    check = zlib.crc32(filler, zlib.crc32(bare))
    return ethernet + _BODY.pack(_MAGIC, run, sequence, sent_ns, length, check) + filler


def parse(data: bytes) -> NumberedFrame | None:
    """Read a frame; None for one that is none of ours. Bytes after its end are ignored."""
    if len(data) < _HEAD or int.from_bytes(data[12:14], "big") != ETHERTYPE:
        return None
    magic, run, sequence, sent_ns, _, _ = _BODY.unpack_from(data, _ETHERNET.size)
    if magic != _MAGIC:
        return None
    whole = build(data[:6], data[6:12], run, sequence, sent_ns)
    return NumberedFrame(run, sequence, sent_ns, data[: len(whole)] == whole)


def _filler(sequence: int, size: int) -> bytes:
    pattern = (sequence * 0x9E3779B97F4A7C15 & (1 << 64) - 1).to_bytes(8, "little")
    return (pattern * (size // 8 + 1))[:size]
