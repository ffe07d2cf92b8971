# SPDX-License-Identifier: GPL-2.0-only
"""Which devices can't be preserved: the table in docs/handover.md, of kernel/dma/refusals.h.

python -m tests.refusals --write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "kernel/dma/refusals.h"
DOC = ROOT / "docs/handover.md"
BEGIN = "<!-- refusals: made of kernel/dma/refusals.h by python -m tests.refusals --write -->"
END = "<!-- end of refusals -->"
_ROW = re.compile(r'^DMA_REFUSAL\(\w+,\s*"([^"]*)",\s*"([^"]*)"\)', re.MULTILINE)


def rows() -> list[tuple[str, str]]:
    """What "it" is, and why that is refused or what to do."""
    return _ROW.findall(HEADER.read_text())


def table() -> str:
    """The table as it should be."""
    lines = ["| a device that ... | why, or what to do |", "|---|---|"]
    return "\n".join([*lines, *(f"| {words} | {why} |" for words, why in rows())])


def written() -> str:
    """The document with the table as it should be."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    DOC.write_text(written())
