# SPDX-License-Identifier: GPL-2.0-only
"""How long the lab waits: one factor over all of its time limits, for hosts that are slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_factors = [1.0]


def patient(seconds: float) -> float:
    """A time limit, as long as the slowest host that runs now needs."""
    return seconds * max(_factors)


@contextmanager
def slower(factor: float) -> Iterator[None]:
    """Within the block there is a host that takes ``factor`` times as long as others."""
    _factors.append(factor)
    try:
        yield
    finally:
        _factors.remove(factor)
