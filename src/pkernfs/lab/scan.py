# SPDX-License-Identifier: GPL-2.0-only
"""What in a kernel log fails a run, and the few lines that look bad and are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Each of these in a kernel log fails the run.
_BAD = (
    r"\bBUG\b",
    r"\bOops\b",
    r"\bWARNING:",
    r"Kernel panic",
    r"general protection fault",
    r"unable to handle",
    r"\bKASAN\b",
    r"\bUBSAN\b",
    r"\bKFENCE\b",
    r"kmemleak",
    r"\bleak(s|ed|ing)?\b",
    r"possible (circular|recursive) locking",
    r"possible irq lock inversion",
    r"inconsistent lock state",
    r"suspicious RCU usage",
    r"trying to register non-static key",
    r"list_(add|del) corruption",
    r"page dumped because",
    r"\bVM_(BUG|WARN)",
    r"INFO: task .* blocked for more than",
    r"soft lockup",
    r"hard LOCKUP",
    r"still has locks held",
    r"Bad page (state|map)",
    r"\bbad p[4gmu]d\b",
    r"Objects remaining",
    r"DMAR: .*fault",
    r"DMAR: DRHD: handling fault",
    r"EXT4-fs error",
    r"segfault at",
    r"lab: initrd:",
)
#: Harmless lines that match one of the above, each with its reason.
_HARMLESS = (
    # A report that a feature is on.
    r"(KASAN|KFENCE|kfence|UBSAN|kmemleak)\b.*(initialized|enabled|disabled)",
    # The mitigation's name.
    r"(Spectre|MDS|RETBleed|SRSO|ITS|TSA|L1TF).*(vulnerable|leak)",
)
_BAD_PATTERN = re.compile("|".join(_BAD))
_HARMLESS_PATTERN = re.compile("|".join(_HARMLESS))


def findings(lines: Iterable[str], allowed: Sequence[str] = ()) -> list[str]:
    """The lines that fail a run.

    :param allowed: regular expressions of lines that this run expects.
    """
    allow = [re.compile(pattern) for pattern in allowed]
    return [
        line
        for line in lines
        if _BAD_PATTERN.search(line)
        and not _HARMLESS_PATTERN.search(line)
        and not any(pattern.search(line) for pattern in allow)
    ]
