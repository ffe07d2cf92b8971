# SPDX-License-Identifier: GPL-2.0-only
"""What ``pkernfs resume`` tells the watchdog, in a file that ends with the kernel.

Apart from the watchdog, because resume imports it and guests wait for that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pkernfs.vmm.config import Places

_NAME = "resumed"


@dataclass(frozen=True)
class Reported:
    """The result of a resume.

    :ivar guests: how many guests it was to bring back.
    :ivar running: how many of them it did.
    """

    guests: int
    running: int


def write(places: Places, reported: Reported) -> None:
    """Say that resume has come to its end."""
    temporary = places.run / f".{_NAME}.tmp"
    temporary.write_text(json.dumps([reported.guests, reported.running]), encoding="ascii")
    temporary.rename(places.run / _NAME)


def read(places: Places) -> Reported | None:
    """The result of the last resume in this kernel; None while there is none."""
    try:
        guests, running = json.loads((places.run / _NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return Reported(int(guests), int(running))
