# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host: marks in the kernel log, which the lab times with its own clocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def span(name: str) -> Iterator[None]:
    """The begin and the end of the block are seen by the lab."""
    kmsg = Path("/dev/kmsg")
    kmsg.write_text(f"<6>bench: begin {name}\n")
    yield
    kmsg.write_text(f"<6>bench: end {name}\n")
