# SPDX-License-Identifier: GPL-2.0-only
"""NUMA nodes of this machine: their processors, and all memory that is theirs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Range

_NODES = "sys/devices/system/node"
_BLOCKS = "sys/devices/system/memory"
_SRAT = "sys/firmware/acpi/tables/SRAT"
_EVERYTHING = Range(0, 1 << 64)


@dataclass(frozen=True)
class Node:
    """A NUMA node.

    :ivar memory: addresses that are the node's, whether or not the kernel uses them.
    """

    number: int
    memory: tuple[Range, ...]

    def contains(self, span: Range) -> bool:
        """Does all of a range belong to the node?"""
        return any(memory.contains(span) for memory in self.memory)


def parse_list(text: str) -> list[int]:
    """Read numbers as sysfs lists them: ``0-3,8``."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first:
            found.extend(range(int(first), int(last if dash else first) + 1))
    return found


def online(machine: Machine) -> list[int]:
    """Numbers of the nodes that the kernel knows; node 0 alone on a kernel without NUMA."""
    return parse_list(machine.read(f"{_NODES}/online") or "0")


def cpus(machine: Machine, node: int) -> list[int]:
    """Processors of a node that are online; none when there is no such node."""
    return parse_list(machine.read(f"{_NODES}/node{node}/cpulist") or "")


@contextlib.contextmanager
def running_on(processors: list[int]) -> Iterator[None]:
    """Have this thread, and what it starts, run on these processors within the block.

    It is a wish: with no processors, or none that this thread may use, nothing changes.
    """
    before = os.sched_getaffinity(0)
    usable = before & set(processors)
    if usable:
        os.sched_setaffinity(0, usable)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def nodes(machine: Machine) -> tuple[Node, ...]:
    """Every node of this machine, by number.

    What the kernel itself shows of a node's memory lacks what the boot line reserves, and a
    node without processors all of whose memory is reserved is not shown at all. So the
    firmware's table is read, and checked against the kernel's view.

    :raises PkernfsError: the firmware's table can't be read, or the kernel sees it differently.
    """
    one = online(machine) == [0]
    table = _table(machine)
    if table is None and not one:
        raise PkernfsError("the firmware's table of NUMA nodes can't be read", "run it as root")
    if table is None or "off" in machine.boot_line.values("numa"):
        return (Node(0, (_EVERYTHING,)),)
    from pkernfs.host.srat import memory_of_nodes

    found = tuple(
        Node(number, tuple(memory)) for number, memory in sorted(memory_of_nodes(table).items())
    )
    try:
        _check(machine, found)
    except PkernfsError:
        if one:  # the kernel did not believe the table, and has a single node
            return (Node(0, (_EVERYTHING,)),)
        raise
    return found


def _table(machine: Machine) -> bytes | None:
    try:
        return (machine.root / _SRAT).read_bytes()
    except OSError:
        return None


def _check(machine: Machine, found: tuple[Node, ...]) -> None:
    """The kernel has the memory that it uses on the same nodes."""
    unit = int(machine.read(f"{_BLOCKS}/block_size_bytes") or "0", 16)
    if not unit:
        return
    for node in online(machine):
        memory = next((known.memory for known in found if known.number == node), ())
        for path in sorted((machine.root / _NODES / f"node{node}").glob("memory[0-9]*")):
            block = Range(int(re.sub(r"\D", "", path.name)) * unit, unit)
            if not any(block.overlaps(span) for span in memory):
                raise PkernfsError(
                    f"the kernel has {block} on node {node}, the firmware's SRAT does not",
                    "without numa= on the boot line both agree",
                )
