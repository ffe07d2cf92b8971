# SPDX-License-Identifier: GPL-2.0-only
"""Is a store what format.h promises?"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from pkernfs.store import layout
from pkernfs.store.chain import read_chain
from pkernfs.store.findings import Code, Finding, Report, Severity, Verdict
from pkernfs.store.image import Image, consistent
from pkernfs.store.inode import Inode, SlotReader
from pkernfs.store.super import SuperBlock, read_super
from pkernfs.store.tree import Tree, check_tree, select_live

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
        """Whether the module would mount it: nothing worse than one damaged super copy."""
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
    live, leftovers = select_live(found, report)
    tree = Tree(store, tuple(chain), live, leftovers)
    for inode in live.values():
        if inode.slot in reader.faults:
            report.findings += reader.faults[inode.slot].findings
    check_tree(tree, report)
    _check_blocks(tree, report)
    _check_pages(live, report)
    for leftover in leftovers:
        inode = leftover.inode
        report.add(Code.LEFTOVER, f"left by a crash: {leftover.reason}", slot=inode.slot)
    return tree


def _check_blocks(tree: Tree, report: Report) -> None:
    """No block may have two owners."""
    used: list[tuple[int, int, Inode | None]] = [
        (block, block + 1, None) for block in tree.metadata_blocks
    ]
    for inode in tree.inodes.values():
        for extent in inode.extents:
            if extent.count:
                used.append((extent.block, extent.block + extent.count, inode))
    used.sort(key=lambda item: item[:2])
    end, owner = 0, None
    for first, behind, user in used:
        if first < end:
            both = [inode for inode in (user, owner) if inode is not None]
            _report_overlap(first, min(end, behind), both, report)
        if behind > end:
            end, owner = behind, user


def _report_overlap(first: int, end: int, users: list[Inode], report: Report) -> None:
    blocks = f"block {first}" if end <= first + 1 else f"blocks {first}..{end - 1}"
    # Metadata blocks are different ones, so at least one user is a file.
    other = f"inode {users[1].ino}" if len(users) > 1 else "metadata"
    text = f"{blocks} belong to {other} too"
    report.add(Code.EXTENT_OVERLAP, text, slot=users[0].slot, ino=users[0].ino)


def _check_pages(live: dict[int, Inode], report: Report) -> None:
    """No extent page may be named twice."""
    owners: dict[int, Inode] = {}
    for inode in live.values():
        for slot in inode.pages:
            if slot in owners:
                text = f"extent page {slot} is named by inode {owners[slot].ino} too"
                report.add(Code.PAGE_SLOT, text, slot=inode.slot, ino=inode.ino)
            owners.setdefault(slot, inode)
