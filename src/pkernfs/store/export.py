# SPDX-License-Identifier: GPL-2.0-only
"""A store as values for JSON. Field names are stable; new ones may be added.

Names are text; bytes that are not UTF-8 stand as lone surrogates (os.fsdecode), so
that no two names look the same.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pkernfs.store.check import CheckResult
from pkernfs.store.findings import Finding
from pkernfs.store.inode import Extent, Inode
from pkernfs.store.layout import BLOCK_SHIFT
from pkernfs.store.super import SuperBlock
from pkernfs.store.tree import Tree


def finding_value(finding: Finding) -> dict[str, Any]:
    """One line of a check."""
    return {
        "code": str(finding.code),
        "severity": str(finding.severity),
        "slot": finding.slot,
        "inode": finding.ino,
        "path": finding.path,
        "text": finding.text,
    }


def super_value(store: SuperBlock) -> dict[str, Any]:
    """The super block."""
    return asdict(store) | {"uuid": str(store.uuid)}


def extent_value(store: SuperBlock, extent: Extent) -> dict[str, int]:
    """One extent, with addresses: offset and size in bytes, physical address."""
    return {
        "offset": extent.file_block << BLOCK_SHIFT,
        "address": store.base + (extent.block << BLOCK_SHIFT),
        "size": extent.count << BLOCK_SHIFT,
    }


def inode_value(tree: Tree, inode: Inode) -> dict[str, Any]:
    """One inode; ``path`` is null if none leads to it."""
    names = tree.names(inode.ino)
    return {
        "path": None if names is None else "/" + "/".join(map(os.fsdecode, names)),
        "kind": None if inode.kind is None else str(inode.kind),
        "ino": inode.ino,
        "parent": inode.parent,
        "slot": inode.slot,
        "seq": inode.seq,
        "replaces": inode.replaces,
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "atime_ns": inode.atime_ns,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
        "btime_ns": inode.btime_ns,
        "target": os.fsdecode(inode.target) if inode.target else None,
        "extent_pages": list(inode.pages),
        "extents": [extent_value(tree.store, extent) for extent in inode.extents],
    }


def check_value(result: CheckResult) -> dict[str, Any]:
    """The outcome of a check."""
    usage = result.tree.usage() if result.tree else None
    return {
        "verdict": str(result.verdict),
        "mountable": result.mountable,
        "findings": [finding_value(finding) for finding in result.findings],
        "usage": asdict(usage) | {"free_blocks": usage.free_blocks} if usage else None,
    }


def dump_value(result: CheckResult) -> dict[str, Any]:
    """Everything that is known of a store."""
    value: dict[str, Any] = {"schema": "pkernfs-dump/1", "check": check_value(result)}
    if tree := result.tree:
        value |= {
            "super": super_value(tree.store),
            "metadata_blocks": list(tree.metadata_blocks),
            "inodes": [inode_value(tree, tree.inodes[ino]) for ino in sorted(tree.inodes)],
            "quarantined": [
                asdict(slot) | {"name": os.fsdecode(slot.name)} for slot in tree.quarantined
            ],
            "leftovers": [
                {"slot": left.inode.slot, "inode": left.inode.ino, "reason": left.reason}
                for left in tree.leftovers
            ],
        }
    return value
