# SPDX-License-Identifier: GPL-2.0-only
"""Every operation of the filesystem, with each of its allocations failing in turn.

python3 -m system.fault_scripts.store [NAME...]: the last line of output is JSON, an outcome or
error by operation.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict

from ..fs_scripts.common import equal, run
from . import content, mounting, names
from .base import DROP, OPERATIONS, Operation, new_store

#: Their operations.
MODULES = (content, mounting, names)


def _one(name: str, function: Operation) -> dict[str, object]:
    start = time.monotonic()
    try:
        value: dict[str, object] = asdict(function())
        done = run("pkernfs", "check", ok=False)
        equal(done.returncode, 0, f"pkernfs check: {done.stdout}{done.stderr}")
    except Exception:
        value = {"failed": traceback.format_exc(limit=-4)}
        new_store()
    print(f"{name}: {value} {time.monotonic() - start:.1f} s", flush=True)
    return value


def main() -> None:
    """All of them on a small store, which ``pkernfs check`` looks through after each."""
    # No line in the kernel log each time.
    DROP.write_text("4")
    new_store()
    wanted = sys.argv[1:] or list(OPERATIONS)
    print(json.dumps({name: _one(name, OPERATIONS[name]) for name in wanted}))


if __name__ == "__main__":
    main()
