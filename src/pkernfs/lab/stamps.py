# SPDX-License-Identifier: GPL-2.0-only
"""How fast a virtual host's time stamp counter is: told to its kernel, which measures it badly.

The emulator hands this machine's counter through. A kernel compares it with an emulated timer as
it boots; on a busy machine two of some thirty hosts took it for a fourth and for a 27th of what
it is. Time ran away from them, and every limit was over too soon.
"""

from __future__ import annotations

import functools
import time

from pkernfs.host import clock

_SPAN_S = 0.3
_TRIES = 20


@functools.cache
def words() -> tuple[str, ...]:
    """For a host's boot line; none where this machine has no such counter."""
    first = _sharp()
    time.sleep(_SPAN_S)
    scale = clock.calibrate([first, _sharp()])
    if scale.name != "tsc":
        return ()
    return (f"tsc_early_khz={round(scale.hertz / 1000)}",)


def _sharp() -> clock.Reading:
    """The one of several readings in which the least time went by."""

    def timed() -> tuple[int, clock.Reading]:
        reading = clock.read()
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - reading.raw_ns, reading

    return min((timed() for _ in range(_TRIES)), key=lambda pair: pair[0])[1]
