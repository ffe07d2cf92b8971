# SPDX-License-Identifier: GPL-2.0-only
"""What a check can say about a store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple


class Verdict(IntEnum):
    """What a store is after all; the value is the exit status of ``pkernfs check``."""

    CLEAN = 0
    DAMAGED = 1
    NOT_A_STORE = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class Severity(StrEnum):
    """How bad a finding is."""

    #: The module refuses to mount the store.
    ERROR = "error"
    #: The module leaves it out, touches nothing that may belong to it, and mounts the rest.
    DAMAGE = "damage"
    #: Damage that nothing is lost by: repaired at mount, or moved to another place.
    WARNING = "warning"
    #: No damage: what a crash left over, cleared at the next mount.
    NOTE = "note"


class _Kind(NamedTuple):
    label: str
    severity: Severity


def _error(label: str) -> _Kind:
    return _Kind(label, Severity.ERROR)


def _damage(label: str) -> _Kind:
    return _Kind(label, Severity.DAMAGE)


def _warning(label: str) -> _Kind:
    return _Kind(label, Severity.WARNING)


class Code(Enum):
    """Stable names of the findings. docs/format.md has the list with explanations."""

    NOT_A_STORE = _error("not-a-store")
    VERSION_UNKNOWN = _error("version-unknown")
    FEATURE_UNKNOWN = _error("feature-unknown")
    SUPER_DAMAGED = _error("super-damaged")
    SUPER_COPY = _warning("super-copy")
    SUPER_DIFFER = _error("super-differ")
    SUPER_FIELD = _error("super-field")
    BASE_MISMATCH = _error("base-mismatch")
    SIZE_MISMATCH = _error("size-mismatch")
    HEADER = _error("header")
    CHAIN_NEXT = _error("chain-next")
    CHAIN_RANGE = _error("chain-range")
    CHAIN_CYCLE = _error("chain-cycle")
    SLOT_CHECKSUM = _damage("slot-checksum")
    SLOT_NUMBER = _damage("slot-number")
    SLOT_COMMIT = _damage("slot-commit")
    SEQ_TWICE = _damage("seq-twice")
    INODE_NUMBER = _damage("inode-number")
    INODE_REPLACES = _damage("inode-replaces")
    INODE_RESERVED = _damage("inode-reserved")
    INODE_MODE = _damage("inode-mode")
    INODE_NAME = _damage("inode-name")
    INODE_SIZE = _damage("inode-size")
    INODE_COUNTS = _damage("inode-counts")
    INODE_PAYLOAD = _damage("inode-payload")
    SYMLINK_TARGET = _damage("symlink-target")
    PAGE_SLOT = _damage("page-slot")
    PAGE_CHECKSUM = _damage("page-checksum")
    PAGE_FIELD = _damage("page-field")
    EXTENT_EMPTY = _damage("extent-empty")
    EXTENT_ORDER = _damage("extent-order")
    EXTENT_RANGE = _damage("extent-range")
    EXTENT_OVERLAP = _damage("extent-overlap")
    ROOT = _error("root")
    PARENT_MISSING = _warning("parent-missing")
    PARENT_KIND = _warning("parent-kind")
    PARENT_CYCLE = _warning("parent-cycle")
    NAME_TWICE = _warning("name-twice")
    LEFTOVER = _Kind("leftover", Severity.NOTE)

    def __str__(self) -> str:
        return str(self.value.label)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    :ivar code: stable name.
    :ivar text: one line, without the place.
    :ivar slot: number of the slot of 4 KiB that it is about.
    :ivar ino: number of the inode that it is about.
    :ivar path: path of that inode, if it has one.
    """

    code: Code
    text: str
    slot: int | None = None
    ino: int | None = None
    path: str | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is; follows from the code."""
        severity: Severity = self.code.value.severity
        return severity

    def __str__(self) -> str:
        place = [f"slot {self.slot}"] if self.slot is not None else []
        if self.path is not None:
            place.append(self.path)
        elif self.ino is not None:
            place.append(f"inode {self.ino}")
        parts = [str(self.severity), str(self.code), ", ".join(place), self.text]
        return ": ".join(part for part in parts if part)


class Report:
    """Collects findings while a store is read."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(
        self, code: Code, text: str, *, slot: int | None = None, ino: int | None = None
    ) -> None:
        """Take down a finding; its path is added when the tree is known."""
        self.findings.append(Finding(code, text, slot, ino))
