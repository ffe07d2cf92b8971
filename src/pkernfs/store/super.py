# SPDX-License-Identifier: GPL-2.0-only
"""The super block: two copies, either one is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pkernfs.store import layout
from pkernfs.store.findings import Code, Report
from pkernfs.store.image import Image
from pkernfs.store.remains import remains


@dataclass(frozen=True, slots=True)
class SuperBlock:
    """What a store says about itself.

    :ivar base: physical address of block 0.
    :ivar size: bytes.
    :ivar created_ns: nanoseconds since the epoch.
    :ivar page_blocks: blocks 1..page_blocks hold struct pages, never data.
    :ivar label: name of the region.
    """

    uuid: UUID
    base: int
    size: int
    created_ns: int
    incompat: int
    page_blocks: int
    label: str

    @property
    def blocks(self) -> int:
        """Blocks of the range."""
        return self.size >> layout.BLOCK_SHIFT


def read_super(image: Image, report: Report) -> SuperBlock | None:
    """The super block, or None if the store can't be read; findings say why."""
    copies = [image.slot(slot) for slot in layout.SUPER_SLOTS]
    faults = [_copy_fault(copy) for copy in copies]
    valid = [copy for copy, fault in zip(copies, faults, strict=True) if not fault]
    if not valid:
        _report_none(image, copies, faults, report)
        return None
    for slot, fault in zip(layout.SUPER_SLOTS, faults, strict=True):
        if fault:
            report.add(Code.SUPER_COPY, f"one copy of the super block: {fault}", slot=slot)
    if len(valid) > 1 and valid[0] != valid[1]:
        report.add(Code.SUPER_DIFFER, "the two copies of the super block differ")
        return None
    values = layout.SUPER.unpack(valid[0])
    if not _known(values, report):
        return None
    before = len(report.findings)
    _check_fields(values, report)
    if len(report.findings) > before:
        return None
    result = _super_block(values)
    _check_range(image, result, report)
    return result


def _copy_fault(slot: bytes) -> str:
    """Why a copy can't be used, empty if it can."""
    if len(slot) < layout.SUPER.size:
        return "the image ends before it"
    values = layout.SUPER.unpack(slot)
    if values["magic"] != layout.MAGIC:
        return "no magic number"
    if values["checksum"] != layout.super_checksum(slot):
        return "wrong checksum"
    return ""


def _report_none(image: Image, copies: list[bytes], faults: list[str], report: Report) -> None:
    magic = layout.WORD.pack(layout.MAGIC)
    if not any(copy.startswith(magic) for copy in copies) and not remains(image.slot, image.size):
        blank = all(map(layout.is_zero, copies))
        text = "there is no store here" + (", all zero" if blank else "")
        report.add(Code.NOT_A_STORE, text)
        return
    text = "; ".join(f"copy {name}: {fault}" for name, fault in zip("AB", faults, strict=True))
    report.add(Code.SUPER_DAMAGED, f"both copies of the super block are damaged ({text})")


def _known(values: dict[str, Any], report: Report) -> bool:
    version, unknown = values["version"], values["incompat"] & ~layout.INCOMPAT_KNOWN
    if version != layout.VERSION:
        report.add(
            Code.VERSION_UNKNOWN, f"format version {version}, known here is {layout.VERSION}"
        )
    elif unknown:
        report.add(Code.FEATURE_UNKNOWN, f"uses features not known here: {unknown:#x}")
    return version == layout.VERSION and not unknown


def _check_fields(values: dict[str, Any], report: Report) -> None:
    blocks, rest = divmod(values["size"], layout.BLOCK_SIZE)
    label = values["label"]
    wrong = {
        f"blocks of 2^{values['block_shift']} bytes": values["block_shift"] != layout.BLOCK_SHIFT,
        f"slots of 2^{values['slot_shift']} bytes": values["slot_shift"] != layout.SLOT_SHIFT,
        f"size {values['size']:#x}": rest or not layout.MIN_BLOCKS <= blocks <= layout.MAX_BLOCKS,
        f"base {values['base']:#x}": values["base"] % layout.BLOCK_SIZE
        or values["base"] + values["size"] >= 1 << 64,
        f"{values['page_blocks']} blocks of struct pages": values["page_blocks"] >= blocks,
        "label without an end": not _padded(label),
        "reserved bytes that are not zero": values["reserved0"]
        or not layout.is_zero(values["reserved"]),
    }
    for text, is_wrong in wrong.items():
        if is_wrong:
            report.add(Code.SUPER_FIELD, f"the super block has {text}")


def _padded(label: bytes) -> bool:
    return len(label.rstrip(b"\0")) <= layout.LABEL_MAX and b"\0" not in label.rstrip(b"\0")


def _super_block(values: dict[str, Any]) -> SuperBlock:
    return SuperBlock(
        uuid=UUID(bytes=values["uuid"]),
        base=values["base"],
        size=values["size"],
        created_ns=values["created_ns"],
        incompat=values["incompat"],
        page_blocks=values["page_blocks"],
        label=values["label"].rstrip(b"\0").decode("utf-8", "backslashreplace"),
    )


def _check_range(image: Image, found: SuperBlock, report: Report) -> None:
    if image.base is not None and image.base != found.base:
        report.add(
            Code.BASE_MISMATCH,
            f"made for a range at {found.base:#x}, this one is at {image.base:#x}",
        )
    if image.size < found.size or (image.exact and image.size != found.size):
        report.add(
            Code.SIZE_MISMATCH,
            f"made for a range of {found.size} bytes, this one has {image.size}",
        )
