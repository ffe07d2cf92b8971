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
    #: Damage that the store can be used with.
    WARNING = "warning"
    #: No damage: what a crash left over, cleared at the next mount.
    NOTE = "note"


class _Kind(NamedTuple):
    label: str
    severity: Severity


def _error(label: str) -> _Kind:
    return _Kind(label, Severity.ERROR)


class Code(Enum):
    """Stable names of the findings. docs/format.md has the list with explanations."""

    NOT_A_STORE = _error("not-a-store")
    VERSION_UNKNOWN = _error("version-unknown")
    FEATURE_UNKNOWN = _error("feature-unknown")
    SUPER_DAMAGED = _error("super-damaged")
    SUPER_COPY = _Kind("super-copy", Severity.WARNING)
    SUPER_DIFFER = _error("super-differ")
    SUPER_FIELD = _error("super-field")
    BASE_MISMATCH = _error("base-mismatch")
    SIZE_MISMATCH = _error("size-mismatch")
    HEADER = _error("header")
    CHAIN_NEXT = _error("chain-next")
    CHAIN_RANGE = _error("chain-range")
    CHAIN_CYCLE = _error("chain-cycle")
    SLOT_CHECKSUM = _error("slot-checksum")
    SLOT_NUMBER = _error("slot-number")
    SLOT_COMMIT = _error("slot-commit")
    SEQ_TWICE = _error("seq-twice")
    INODE_NUMBER = _error("inode-number")
    INODE_REPLACES = _error("inode-replaces")
    INODE_RESERVED = _error("inode-reserved")
    INODE_MODE = _error("inode-mode")
    INODE_NAME = _error("inode-name")
    INODE_SIZE = _error("inode-size")
    INODE_COUNTS = _error("inode-counts")
    INODE_PAYLOAD = _error("inode-payload")
    SYMLINK_TARGET = _error("symlink-target")
    PAGE_SLOT = _error("page-slot")
    PAGE_CHECKSUM = _error("page-checksum")
    PAGE_FIELD = _error("page-field")
    EXTENT_EMPTY = _error("extent-empty")
    EXTENT_ORDER = _error("extent-order")
    EXTENT_RANGE = _error("extent-range")
    EXTENT_OVERLAP = _error("extent-overlap")
    ROOT = _error("root")
    PARENT_MISSING = _error("parent-missing")
    PARENT_KIND = _error("parent-kind")
    PARENT_CYCLE = _error("parent-cycle")
    NAME_TWICE = _error("name-twice")
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
