# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host: the kernel's counters of memory, as JSON, bytes. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path

_PAGE = 4096


def main() -> None:
    """Struct pages made at boot and later, ``present`` (what the page allocator has), others."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    info = {name.rstrip(":"): int(value) << 10 for name, value, *_ in lines}
    vmstat = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    boot, later = (int(vmstat[f"nr_memmap_{name}pages"]) for name in ("boot_", ""))
    zones = Path("/proc/zoneinfo").read_text().split()
    present = sum(int(zones[i + 1]) for i, word in enumerate(zones) if word == "present")
    print(
        json.dumps(
            {
                "struct_pages_boot": boot * _PAGE,
                "struct_pages_later": later * _PAGE,
                "present": present * _PAGE,
                "slab": info["Slab"],
                "free": info["MemFree"],
                "tables": info["PageTables"],
            }
        )
    )


if __name__ == "__main__":
    main()
