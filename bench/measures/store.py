# SPDX-License-Identifier: GPL-2.0-only
"""Stores: mounting and checking a large one, and what files cost beside tmpfs."""

from __future__ import annotations

from bench import spans
from bench.measures.memory import Kind
from bench.peers import fsdax, pkernfs
from bench.results import Values
from bench.stage import HOME, Stage

WHO = pkernfs.Pkernfs.name
STORE = pkernfs.STORE
_MIB_SEQUENTIAL = 128


def _fill(stage: Stage, count: int) -> None:
    """Have so many files in the store, once per boot: one count for each host."""
    stage.sh(WHO, pkernfs.MOUNT)
    if stage.once("files"):
        command = ["python3", "-S", f"{HOME}/files.py", "many", f"{STORE}/many", str(count)]
        stage.host.run(command, timeout=1200).check()


def mount_and_check(stage: Stage, count: int) -> Values:
    """Mount and check a store with ``count`` files.

    ``metadata``: bytes of the range that neither are free nor hold a file's data.
    """
    _fill(stage, count)
    stage.host.sh(f"umount {STORE}").check()
    values = spans.shell(stage, WHO, "mount", f"mount -t pkernfs none {STORE}")
    values |= spans.shell(stage, WHO, "check", "pkernfs check")
    stat = f"stat -f -c '%b %f %S' {STORE}"
    blocks, free, size = (int(word) for word in stage.host.sh(stat).check().stdout.split())
    return {**values, "metadata": float((blocks - free) * size), "range": float(blocks * size)}


#: Where files live, for the comparison of their operations.
PLACES = (
    Kind("pkernfs", STORE, pkernfs.MOUNT, ""),
    Kind("tmpfs", "/dev/shm", "", ""),
    Kind("fsdax", fsdax.MOUNT, fsdax.READY, ""),
)


def metadata(stage: Stage, place: Kind, count: int) -> Values:
    """Create, truncate and unlink ``count`` files."""
    if place.setup:
        stage.host.sh(place.setup).check()
    words = ("metadata", f"{place.path}/bench-meta", str(count))
    return spans.script(stage, place.name, "files.py", *words)[0]


def sequential(stage: Stage, place: Kind) -> Values:
    """Write and read a file from front to end."""
    if place.setup:
        stage.host.sh(place.setup).check()
    words = ("sequential", f"{place.path}/bench-state", str(_MIB_SEQUENTIAL))
    return spans.script(stage, place.name, "files.py", *words)[0]
