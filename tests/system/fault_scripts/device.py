# SPDX-License-Identifier: GPL-2.0-only
"""Orders to the device module, with each of their allocations failing in turn.

python3 -m system.fault_scripts.device VERB FILE BDF

before: preserve and arm the device, which is in use through VFIO
after: adopt it, in the next kernel

Prints JSON: outcome by order. An exception says what was not as it should be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pkernfs.host.devices import CONTROL, Control
from pkernfs.vfio import edu
from pkernfs.vfio.bind import bind, load_vfio
from pkernfs.vfio.container import Container
from pkernfs.vfio.edu_program import IOVA, SysfsBar, lands
from pkernfs.vfio.group import Group
from pkernfs.vfio.memory import Memory

from .inject import Outcome, arrange, sweep

_TABLES = Path("/mnt/pkernfs/iommu")


def _order(name: str, value: str) -> None:
    (CONTROL / name).write_text(value)


def _equal(got: object, want: object, what: str) -> None:
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")


def _state(bdf: str) -> str | None:
    return next((d.state for d in Control().devices() if d.bdf == bdf), None)


def _nothing() -> None:
    pass


def before(bdf: str) -> dict[str, Outcome]:
    """Preserve and arm."""

    def released(succeeded: bool) -> None:
        _equal(_state(bdf) is not None, succeeded, "is the device listed")
        if succeeded:
            _order("release", bdf)

    def disarmed(succeeded: bool) -> None:
        _equal((CONTROL / "arm").read_text().strip(), "1" if succeeded else "0", "armed")
        if succeeded:
            _order("arm", "0")
        left = sorted(path.name for path in _TABLES.glob("*"))
        _equal(left, [], "tables left behind")

    def armed(succeeded: bool) -> None:
        _equal((CONTROL / "arm").read_text().strip(), "0", "armed")

    outcomes = {"preserve": sweep(_nothing, lambda: _order("preserve", bdf), released)}
    _order("preserve", bdf)
    outcomes["arm"] = sweep(_nothing, lambda: _order("arm", "1"), disarmed)
    outcomes["disarm"] = sweep(lambda: _order("arm", "1"), lambda: _order("arm", "0"), armed)
    return outcomes


def after(file: Path, bdf: str) -> dict[str, Outcome]:
    """Adopt: until that succeeds, the device is inherited and its DMA lands."""
    load_vfio()
    with Memory.of_file(file) as memory, Container() as container:
        chip = edu.Edu(SysfsBar(bdf))
        bind(bdf)
        with Group.of(bdf) as group:
            group.join(container)
            with container.map(memory, IOVA):
                outcome = _adopt(bdf, chip, memory)
                _equal(lands(chip, memory, 0x20000), True, "DMA lands once adopted")
    return {"adopt": outcome}


def _adopt(bdf: str, chip: edu.Edu, memory: Memory) -> Outcome:
    adopted = False

    def act() -> None:
        if not adopted:
            _order("adopt", bdf)

    def look(succeeded: bool) -> None:
        nonlocal adopted
        adopted = adopted or succeeded
        _equal(_state(bdf), "preserved" if adopted else "inherited", "state")
        _equal(lands(chip, memory, 0x10000), True, "DMA lands")

    return sweep(_nothing, act, look)


def main(words: Sequence[str]) -> None:
    """Do as the words say."""
    verb, file, bdf = words
    arrange("pkernfs", "pkernfs_dma")
    outcomes = before(bdf) if verb == "before" else after(Path(file), bdf)
    print(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
