# SPDX-License-Identifier: GPL-2.0-only
"""docs/blackout.md, from what :mod:`bench.ratios` measured: no figure in it is typed by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAD = """# How long guests stand still

Written by `python -m bench.ratios --docs`; the figures come from its last run. Each update is
compared with a **bare kexec** of the same kernel with the same initrd and the same boot line, from
the old kernel's last word to the new kernel's first user program, in the same virtual host: the
shortest of all that were made in between. Figures are medians of all rounds, with the lowest and
the highest in brackets. Everything runs in software emulation: the seconds say nothing about
hardware, the ratios say how much pkernfs adds. **By processor** is the ratio of the times that the
emulated processor itself has run; by the clock, what else the machine did meanwhile is in it.

Some kexecs take several times as long as the others until the new kernel's first line.
Most samples of the program counter were in the unpacking of the next kernel then. It is unpacked to
a random place; where programs ran from that memory, the emulator has translated code there, and
overwriting that is taken for what is slow. After twelve guests, bare kexecs met it as well. So the
ratio is split by what it is made of: **the kernel**, which has this in it, and **the rest**, which
is what pkernfs adds.
"""

_WHERE = """
The parts are: `pause` and `save`, stopping the processors and writing the devices' state;
`hand over`, until the old kernel's last word; `kernel`, until the first user program, like the bare
kexec; `init`, what the host's first programs do before `pkernfs resume` (drivers, disks, store);
`interpreter`, until the first line of `pkernfs resume` runs; `start`, until QEMU begins to load;
`load state`. With several guests, a part reaches from the first guest's begin to the last one's
end, so parts overlap.

The host has one processor, and so all of this comes one after the other: modules are loaded
(`init`), an interpreter starts, and each guest's QEMU is linked, builds its machine and loads,
which takes the same work for each (`start`). Twelve guests start twelve QEMUs on it.

What is done outside of it: the next kernel is loaded and unwritten data goes to disk before the
first guest is paused, and how each guest is started again, down to every word that its QEMU is
told, is written into the store then. `pkernfs resume` starts the QEMUs before it imports the rest
of itself; the timeline, the saved states, the check of the store and the report come when all
guests run.
"""


#: By number of guests: what the last one's blackout may be, in bare kexecs.
_TARGETS = {1: 1.3, 12: 2.0}


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _source(result: Mapping[str, Any]) -> str:
    versions = result["versions"]
    qemu = versions["host's QEMU"]
    load = max(result["load_average"], default=0.0)
    return (
        f"`{result['command']}`, {versions['date']}: Linux {versions['kernel']} on both sides, "
        f"{qemu}, {result['cpus']} virtual processors, emulated by "
        f"{versions['emulator']} on a machine of {versions['machine']}, load average up to {load}."
    )


def _cases(result: Mapping[str, Any], key: str) -> list[tuple[int, list[Mapping[str, Any]]]]:
    """The rounds of each case: of each number of guests, or of each size."""
    cases: dict[int, list[Mapping[str, Any]]] = {}
    for row in result["ratios"]:
        cases.setdefault(row[key], []).append(row)
    return sorted(cases.items())


def _median(rows: Sequence[Mapping[str, Any]], name: str, unit: str = "") -> str:
    values = [float(row[name]) for row in rows]
    middle = f"{statistics.median(values):.2f}{unit}"
    if max(values) == min(values):
        return middle
    return f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    names = ["pause", "save", "hand over", "init", "interpreter", "start", "load state"]
    table = []
    for guests, rows in _cases(result, "guests"):
        found = [[row["outside_kernel"].get(name, 0.0) for row in rows] for name in names]
        table.append([str(guests), *(_seconds(statistics.median(values)) for values in found)])
    yield from _table(["guests", *names], table)


def _guests(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Guests\n"
    yield _source(result) + "\n"
    columns = {
        "bare kexec": ("floor_s", " s"),
        "kernel's part": ("kernel_s", " s"),
        "first guest": ("shortest_s", " s"),
        "last guest": ("longest_s", " s"),
        "ratio, last": ("ratio", ""),
        "by processor: first": ("first_ratio_run", ""),
        "last": ("ratio_run", ""),
        "of which the kernel": ("kernel_ratio_run", ""),
        "the rest": ("rest_ratio_run", ""),
    }
    table = [
        [str(guests), *(_median(rows, *column) for column in columns.values())]
        for guests, rows in _cases(result, "guests")
    ]
    yield from _table(["guests", *columns], table)
    yield "\nTargets: 1.3 for one guest, 2 for the last of twelve.\n"
    for guests, rows in _cases(result, "guests"):
        ratio = statistics.median(row["ratio_run"] for row in rows)
        target = _TARGETS.get(guests)
        if target is not None:
            word = "met" if ratio <= target else "NOT met"
            yield f"- {guests} guest(s): {ratio:.2f}, {word}"
    yield "\nWhere the rest goes:\n"
    yield from _parts(result)
    yield _WHERE


def _size(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Size of a guest\n"
    yield _source(result) + "\n"
    yield (
        "The memory is a file of holes: the store hands a block out when the guest touches it. "
        "`pkernfs vm start` allocates all of it, and zeroes it, long before any update.\n"
    )
    columns = {
        "bare kexec": ("floor_s", " s"),
        "blackout": ("longest_s", " s"),
        "ratio": ("ratio", ""),
        "by processor": ("ratio_run", ""),
    }
    cases = _cases(result, "ram_bytes")
    table = [
        [f"{size >> 20} MiB", *(_median(rows, *column) for column in columns.values())]
        for size, rows in cases
    ]
    yield from _table(["memory", *columns], table)
    small, large = (statistics.median(row["ratio_run"] for row in rows) for _, rows in cases)
    word = "met" if abs(large / small - 1) <= 0.1 else "NOT met"
    yield (
        f"\nThe large guest's ratio by processor to the small one's, medians: {large / small:.3f}. "
        f"Target, within 10 %: {word}."
    )


def page(home: Path) -> str:
    """The page.

    :param home: directory with the results, those parts that there are.
    """
    text = [_HEAD]
    for part, write_part in (("guests", _guests), ("size", _size)):
        file = home / f"ratios-{part}.json"
        if file.exists():
            text += write_part(json.loads(file.read_text()))
    return "\n".join(text).rstrip() + "\n"


def write(home: Path, target: Path) -> None:
    """Write the page."""
    target.write_text(page(home))
