# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory itself: populate, first touch, and what the kernel needs beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench import spans
from bench.peers import fsdax, pkernfs
from bench.results import Values
from bench.stage import HOME, Stage
from pkernfs.lab.memory import GIB, MIB

#: Words of the boot line that the kinds below need.
WORDS = ("hugepagesz=1G", "hugepages=1", "hugepagesz=2M", "hugepages=0")
SIZE = GIB


@dataclass(frozen=True)
class Kind:
    """A kind of memory for a guest.

    :ivar setup: shell line ahead of it.
    :ivar path: the file.
    :ivar align: alignment of the mapping, bytes.
    :ivar shift: how far it is off it.
    :ivar cleanup: shell line behind it.
    """

    name: str
    path: str
    setup: str
    cleanup: str
    align: int = GIB
    shift: int = 0


def _mounted(kind: str, options: str, before: str = "", after: str = "") -> tuple[str, str]:
    place = "/run/bench-mem"
    setup = f"{before}mkdir -p {place} && mount -t {kind} -o {options} bench {place}"
    return setup, f"rm -f {place}/ram; umount {place}{after}"


def _pool(size: int) -> str:
    return f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/nr_hugepages"


_RAM = "/run/bench-mem/ram"
_HVO = "sysctl -qw vm.hugetlb_optimize_vmemmap=1"


def _optimized(name: str) -> tuple[str, str]:
    """hugetlbfs whose pages give most of their struct pages back when the pool is filled.

    That is off unless asked for (Documentation/mm/vmemmap_dedup.rst). The pool stays: a GiB
    in one piece is not to be had again once other memory was taken from it.
    """
    size, pages = (GIB, 1) if name == "1 GiB" else (2 * MIB, 512)
    pool = _pool(size)
    before = f"{_HVO} && echo {pages} >{pool} && test $(cat {pool}) = {pages} && "
    return _mounted("hugetlbfs", f"pagesize={size >> 20}M", before)


KINDS = (
    Kind("pkernfs, 1 GiB", f"{pkernfs.STORE}/ram", pkernfs.MOUNT, f"rm {pkernfs.STORE}/ram"),
    Kind(
        "pkernfs, 2 MiB",
        f"{pkernfs.STORE}/ram",
        pkernfs.MOUNT,
        f"rm {pkernfs.STORE}/ram",
        shift=2 * MIB,
    ),
    Kind("hugetlbfs, 1 GiB", _RAM, *_mounted("hugetlbfs", "pagesize=1G")),
    Kind(
        "hugetlbfs, 2 MiB",
        _RAM,
        *_mounted(
            "hugetlbfs",
            "pagesize=2M",
            f"echo 512 >{_pool(2 * MIB)} && ",
            f"; echo 0 >{_pool(2 * MIB)}",
        ),
    ),
    Kind("fsdax", f"{fsdax.MOUNT}/ram", fsdax.READY, f"rm {fsdax.MOUNT}/ram"),
    Kind("tmpfs, huge=always", _RAM, *_mounted("tmpfs", "size=2G,huge=always")),
    Kind("tmpfs", _RAM, *_mounted("tmpfs", "size=2G")),
)

#: In a host of their own: what they do to the struct pages stays.
OPTIMIZED = tuple(
    Kind(f"hugetlbfs, {name}, HVO", _RAM, *_optimized(name)) for name in ("1 GiB", "2 MiB")
)


def _counters(stage: Stage) -> dict[str, int]:
    printed = stage.host.run(["python3", "-S", f"{HOME}/counters.py"]).check().stdout
    found: dict[str, int] = json.loads(printed)
    return found


def memory(stage: Stage, kind: Kind) -> Values:
    """Allocate a GiB, map it, touch each page of it; and what the kernel keeps beside it.

    ``faults``, and in bytes for a GiB, by the kernel's own counters: ``tables`` (page tables
    of one mapping), ``struct_pages`` (for memory of the page allocator its share of them all
    but for those that a pool has given back, for memory that brings its own what came with
    it), ``slab`` (what else the file takes).
    """
    start = _counters(stage)
    # Later on what comes and goes is counted elsewhere than what was there at boot.
    stage.known.setdefault("share", start["struct_pages_boot"] / start["present"])
    stage.sh(kind.name, kind.setup)
    try:
        ready = _counters(stage)
        words = (kind.path, str(SIZE), str(kind.align), str(kind.shift))
        values, printed = spans.script(stage, kind.name, "populate.py", *words)
        slab = max(0, _counters(stage)["slab"] - ready["slab"])
        values |= {"slab": float(slab), **json.loads(printed)}
    finally:
        stage.host.sh(kind.cleanup)
    return {**values, "struct_pages": _struct_pages(stage, kind, start, ready)}


def _struct_pages(stage: Stage, kind: Kind, start: dict[str, int], ready: dict[str, int]) -> float:
    """Bytes of struct pages for a GiB of this kind.

    :param start: the counters ahead of its setup.
    :param ready: behind it.
    """
    if kind.name.startswith("pkernfs"):
        stage.host.sh(f"umount {pkernfs.STORE}; rmmod pkernfs; modprobe pkernfs").check()
        return _come_with(stage, f"mount -t pkernfs none {pkernfs.STORE}")
    if kind.name == "fsdax":
        stage.host.sh(f"umount {fsdax.MOUNT}; modprobe -r nd_pmem").check()
        return _come_with(stage, f"{fsdax.LOAD}; {fsdax.MOUNT_COMMAND}") * GIB / stage.room.pmem
    # A pool that stays gives them back once.
    back = stage.known.setdefault(f"pool of {kind.name}", _added(start, ready))
    return stage.known["share"] * GIB + back


def _come_with(stage: Stage, line: str) -> float:
    """Bytes of struct pages that a mount brings."""
    before = _counters(stage)
    stage.host.sh(line).check()
    return _added(before, _counters(stage))


def _added(before: dict[str, int], after: dict[str, int]) -> float:
    """Bytes of struct pages that came, or went when less than 0."""
    names = ("struct_pages_boot", "struct_pages_later")
    return float(sum(after[name] - before[name] for name in names))
