# SPDX-License-Identifier: GPL-2.0-only
"""What the shell offers for a word: names from the store and the machine.

Only directory listings, no question to any guest: somebody waits at the keyboard. Whatever
goes wrong, nothing is offered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pkernfs.host.machine import DEFAULT_STORE, Machine
from pkernfs.vmm.config import Places, all_guests

_PCI = Path("/sys/bus/pci/devices")


def _places() -> Places:
    return Places.on(Machine(), DEFAULT_STORE)


def guests(incomplete: str) -> Iterator[str]:
    """Names of guests."""
    with contextlib.suppress(OSError):
        names = sorted({guest.name for guest in all_guests(_places())})
        yield from (name for name in names if name.startswith(incomplete))


def updates(incomplete: str) -> Iterator[str]:
    """Ids of updates that the store has records of."""
    with contextlib.suppress(OSError):
        ids = sorted(path.parent.name for path in _places().updates.glob("*/plan.json"))
        yield from (name for name in ids if name.startswith(incomplete))


def pci_devices(incomplete: str) -> Iterator[str]:
    """PCI names of all devices of the machine; the domain 0000 need not be typed."""
    with contextlib.suppress(OSError):
        for path in sorted(_PCI.iterdir()):
            short = path.name.removeprefix("0000:")
            if path.name.startswith(incomplete):
                yield path.name
            elif short.startswith(incomplete):
                yield short


def kernels(incomplete: str) -> Iterator[str]:
    """Kernels under /boot, and any other file as the shell completes it; releases once begun."""
    with contextlib.suppress(OSError):
        names = sorted(str(path) for path in Path("/boot").glob("vmlinuz-*"))
        if incomplete[:1].isdigit():
            names = [Path(name).name.removeprefix("vmlinuz-") for name in names]
        yield from (name for name in names if name.startswith(incomplete))
