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
the old kernel's last word to the new kernel's first user program: the mean of the one right before
and the one right after it, in the same virtual host. Everything runs in software emulation, beside
other work: the seconds say nothing about hardware, the ratios say how much pkernfs adds. **By
processor** is the ratio of the times that the emulated processor itself has run; by the clock, what
else the machine did meanwhile is in it, and differs from one kexec to the next.
"""

_WHERE = """
The parts are: `pause` and `save`, stopping the processors and writing the devices' state;
`hand over`, until the old kernel's last word; `kernel`, until the first user program, like the bare
kexec; `init`, what the host's first programs do before `pkernfs resume` (drivers, disks, store);
`interpreter`, until the first line of `pkernfs resume` runs; `start`, until QEMU begins to load;
`load state`. With several guests, a part reaches from the first guest's begin to the last one's
end, so parts overlap.

What is done outside of it: the next kernel is loaded and unwritten data goes to disk before the
first guest is paused, and how each guest is started again, down to every word that its QEMU is
told, is written into the store then. `pkernfs resume` starts the QEMUs before it imports the rest
of itself; the timeline, the saved states, the check of the store and the report come when all
guests run.
"""


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


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    names = ["pause", "save", "hand over", "init", "interpreter", "start", "load state"]
    rows = [
        [str(row["guests"]), *(_seconds(row["outside_kernel"].get(name, 0.0)) for name in names)]
        for row in result["ratios"]
    ]
    yield from _table(["guests", *names], rows)


def _guests(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Guests\n"
    yield _source(result) + "\n"
    rows = [
        [
            str(row["guests"]),
            _seconds(row["floor_s"]),
            _seconds(row["shortest_s"]),
            _seconds(row["longest_s"]),
            f"{row['first_ratio']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['first_ratio_run']:.2f}",
            f"**{row['ratio_run']:.2f}**",
        ]
        for row in result["ratios"]
    ]
    head = ["guests", "bare kexec", "first guest", "last guest", "ratio, first", "ratio, last"]
    head += ["by processor: first", "last"]
    yield from _table(head, rows)
    yield "\nTargets: 1.3 for one guest, 2 for the last of twelve. Where the rest goes:\n"
    yield from _parts(result)
    yield _WHERE


def _size(result: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Size of a guest\n"
    yield _source(result) + "\n"
    yield (
        "The memory is a file of holes: the store hands a block out when the guest touches it. "
        "`pkernfs vm start` allocates all of it, and zeroes it, long before any update.\n"
    )
    rows = [
        [
            f"{row['ram_bytes'] >> 20} MiB",
            _seconds(row["floor_s"]),
            _seconds(row["longest_s"]),
            f"{row['ratio']:.2f}",
            f"{row['ratio_run']:.2f}",
        ]
        for row in result["ratios"]
    ]
    yield from _table(["memory", "bare kexec", "blackout", "ratio", "by processor"], rows)
    by_size: dict[int, list[float]] = {}
    for row in result["ratios"]:
        by_size.setdefault(row["ram_bytes"], []).append(row["ratio_run"])
    small, large = (statistics.median(by_size[size]) for size in sorted(by_size))
    yield (
        f"\nThe large guest's ratio by processor to the small one's, medians: {large / small:.3f}. "
        "Target: within 10 %."
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
