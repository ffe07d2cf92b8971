# SPDX-License-Identifier: GPL-2.0-only
"""Is a store what format.h promises?"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, replace

from pkernfs.store import layout
from pkernfs.store.chain import read_chain
from pkernfs.store.findings import Code, Finding, Report, Severity, Verdict
from pkernfs.store.image import Image, consistent
from pkernfs.store.inode import Inode, Quarantined, SlotReader
from pkernfs.store.place import place
from pkernfs.store.super import SuperBlock, read_super
from pkernfs.store.tree import Tree, select_live

_NOT_A_STORE = {Code.NOT_A_STORE, Code.VERSION_UNKNOWN, Code.FEATURE_UNKNOWN}


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    :ivar findings: damage and leftovers; empty for a store in perfect order.
    :ivar tree: everything that could be read, None without a usable super block.
    """

    findings: tuple[Finding, ...]
    tree: Tree | None

    @property
    def verdict(self) -> Verdict:
        """Clean, damaged or not a store. What a crash left over is not damage."""
        if any(finding.code in _NOT_A_STORE for finding in self.findings):
            return Verdict.NOT_A_STORE
        if any(finding.severity is not Severity.NOTE for finding in self.findings):
            return Verdict.DAMAGED
        return Verdict.CLEAN

    @property
    def mountable(self) -> bool:
        """Whether the module would mount it, without what is damaged."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def check(image: Image) -> CheckResult:
    """Check a store. Content never makes it raise.

    :raises PkernfsError: the store of a loaded module can't be read, or keeps changing.
    """
    return consistent(image, lambda: _check(image))


def _check(image: Image) -> CheckResult:
    report = Report()
    store = read_super(image, report)
    if store is None:
        return CheckResult(tuple(report.findings), None)
    tree = _read_tree(image, store, report)
    findings = (
        finding if finding.ino is None else replace(finding, path=tree.path(finding.ino))
        for finding in report.findings
    )
    return CheckResult(tuple(findings), tree)


def _read_tree(image: Image, store: SuperBlock, report: Report) -> Tree:
    blocks = min(store.blocks, image.size // layout.BLOCK_SIZE)
    chain = read_chain(image, store, blocks, report) if blocks else []
    uuid_crc = zlib.crc32(store.uuid.bytes)
    reader = SlotReader(image, store, frozenset(chain), report, uuid_crc)
    found = [
        inode
        for block in chain
        for index in image.used_slots(block)
        if not layout.is_fixed_slot(number := layout.slot_of(block, index))
        and (inode := reader.read(number)) is not None
    ]
    twins = _check_seqs(found, report)
    live, leftovers = select_live(inode for inode in found if inode.slot not in twins)
    damaged = _check_content(live, reader, report)
    damaged |= _check_owners(chain, live, damaged, report)
    live = {ino: inode for ino, inode in live.items() if ino not in damaged}
    if layout.ROOT_INO in live:
        live = place(live, report)
    else:
        report.add(Code.ROOT, "there is no root directory", ino=layout.ROOT_INO)
    for leftover in leftovers:
        inode = leftover.inode
        report.add(Code.LEFTOVER, f"left by a crash: {leftover.reason}", slot=inode.slot)
    left_out = [_left_out(inode) for inode in (*twins.values(), *damaged.values())]
    quarantined = (*reader.quarantined, *left_out)
    return Tree(store, tuple(chain), live, leftovers, quarantined, damaged)


def _left_out(inode: Inode) -> Quarantined:
    return Quarantined(inode.slot, inode.ino, inode.name, believed=True)


def _check_seqs(found: list[Inode], report: Report) -> dict[int, Inode]:
    """The inodes, by slot, whose sequence number another one has: which is right is not known."""
    count = Counter(inode.seq for inode in found)
    twins = {inode.slot: inode for inode in found if count[inode.seq] > 1}
    for inode in twins.values():
        text = f"another slot has its sequence number {inode.seq}"
        report.add(Code.SEQ_TWICE, text, slot=inode.slot, ino=inode.ino)
    return twins


def _check_content(live: dict[int, Inode], reader: SlotReader, report: Report) -> dict[int, Inode]:
    """The inodes that are damaged for themselves."""
    damaged = {ino: inode for ino, inode in live.items() if inode.slot in reader.faults}
    for inode in damaged.values():
        report.findings += reader.faults[inode.slot].findings
    return damaged


def _check_owners(
    chain: list[int], live: dict[int, Inode], damaged: dict[int, Inode], report: Report
) -> dict[int, Inode]:
    """The good inodes that share a block with another, or with metadata."""
    good = [inode for ino, inode in live.items() if ino not in damaged]
    shared: dict[int, Inode] = {}
    used: list[tuple[int, int, Inode | None]] = [(block, block + 1, None) for block in chain]
    used += [
        (extent.block, extent.block + extent.count, inode)
        for inode in good
        for extent in inode.extents
    ]
    used.sort(key=lambda item: item[:2])
    end, owner = 0, None
    for first, behind, user in used:
        if first < end:
            both = [inode for inode in (user, owner) if inode is not None]
            _report_overlap(first, min(end, behind), both, report)
            shared |= {inode.ino: inode for inode in both}
        if behind > end:
            end, owner = behind, user
    return shared


def _report_overlap(first: int, end: int, users: list[Inode], report: Report) -> None:
    blocks = f"block {first}" if end <= first + 1 else f"blocks {first}..{end - 1}"
    # Metadata blocks are different ones, so at least one user is a file.
    other = f"inode {users[1].ino}" if len(users) > 1 else "metadata"
    text = f"{blocks} belong to {other} too"
    report.add(Code.EXTENT_OVERLAP, text, slot=users[0].slot, ino=users[0].ino)
