# SPDX-License-Identifier: GPL-2.0-only
"""What a hand-over costs: copy, compare and validate the tables of a large guest.

``python bench/dma_tables.py [TIB]`` builds the tables of a guest of so many TiB
(default 1) with 2 MiB leaves and times the very code that runs in the kernel. The copy
is part of a guest's blackout; the other two run while devices work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PKERNFS_DMA_SANITIZE"] = ""  # as in the kernel: no sanitizers

from tests.unit.dma.harness import ENTRIES, LARGE, PAGE, Tables, compare, copy, validate

TIB = 1 << 40
LEAF = 2 << 20


def guest(tebibytes: int) -> Tables:
    """Tables that map ``tebibytes`` TiB from IOVA 0 on with 2 MiB leaves."""
    tops = -(-tebibytes * TIB // (512 << 30))
    middles = tebibytes * TIB // (1 << 30)
    tables = Tables(4, 1 + tops + middles)
    tables.take_root()
    for top in range(tops):
        tables.memory[tables.entry(tables.root, top)] = tables.new_page() | 3
    for middle in range(middles):
        table = tables.new_page()
        parent = tables.root + (1 + middle // ENTRIES) * PAGE
        tables.memory[tables.entry(parent, middle % ENTRIES)] = table | 3
        first = tables.entry(table, 0)
        start = middle << 30
        tables.memory[first : first + ENTRIES] = [
            start + i * LEAF | LARGE | 3 for i in range(ENTRIES)
        ]
    return tables


def best_ms(action: Callable[[], object], rounds: int = 5) -> float:
    """The quickest of ``rounds`` runs, in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


def main() -> None:
    """Print one line per operation."""
    tebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    tables = guest(tebibytes)
    pages = int(tables.arena.used)
    other = copy(tables, pages).tables
    empty = best_ms(lambda: Tables(4, pages))
    print(f"guest of {tebibytes} TiB, 2 MiB leaves: {pages} table pages, {pages * 4} KiB")
    print(f"copy      {best_ms(lambda: copy(tables, pages)) - empty:8.2f} ms")
    print(f"compare   {best_ms(lambda: compare(tables, other)):8.2f} ms")
    print(f"validate  {best_ms(lambda: validate(tables, (0, 1 << 52), pages)):8.2f} ms")


if __name__ == "__main__":
    main()
