# SPDX-License-Identifier: GPL-2.0-only
"""Run checks: ``python3 -m fs_scripts.run [NAME...]``.

The last line of output is JSON: name to error or null.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from . import content, damage, files, mappings, pages, store, stress, tree
from .common import CHECKS, Entry, big_store, place

MODULES = (files, mappings, tree, store, content, damage, pages, stress)


def _run(entry: Entry) -> str | None:
    try:
        if entry.store:
            with place(entry.name) as path:
                entry.run(path)
        else:
            try:
                entry.run(Path("/"))
            finally:
                big_store()
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def main() -> None:
    """Checks that need the mounted store first: the others replace it."""
    wanted = sys.argv[1:] or list(CHECKS)
    results = {}
    for entry in sorted((CHECKS[name] for name in wanted), key=lambda entry: not entry.store):
        start = time.monotonic()
        results[entry.name] = _run(entry)
        state = "ok" if results[entry.name] is None else "FAILED"
        print(f"{entry.name}: {state} {time.monotonic() - start:.1f} s", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
