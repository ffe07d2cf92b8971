# SPDX-License-Identifier: GPL-2.0-only
"""One inode slot, and the extent pages that it names."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pkernfs.store import layout
from pkernfs.store.findings import Code, Report
from pkernfs.store.image import Image
from pkernfs.store.super import SuperBlock

#: Permissions and the bits above them (setuid, setgid, sticky).
_PERMISSIONS = 0o7777
#: Bytes of a name that may be damaged.
_NAME_SHOWN = 48
_MAX_SIZE = layout.MAX_FILE_BLOCKS * layout.BLOCK_SIZE


class Kind(StrEnum):
    """What an inode is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


@dataclass(frozen=True, slots=True)
class Extent:
    """``count`` blocks of a file from ``file_block`` on lie at ``block``."""

    file_block: int
    block: int
    count: int


@dataclass(frozen=True, slots=True)
class Inode:
    """A file, directory or symlink.

    :ivar slot: number of its slot.
    :ivar seq: store-wide, higher is later.
    :ivar parent: ino of the directory it is in; the root is its own parent.
    :ivar replaces: ino removed by the same rename, or zero.
    :ivar kind: None if the mode names no kind that a store can hold.
    :ivar mode: kind and permissions as stored.
    :ivar size: bytes of a file, length of a symlink's target.
    :ivar atime_ns: nanoseconds since the epoch, as the three others.
    :ivar extents: where a file's blocks lie, ascending.
    :ivar pages: slots of its extent pages; empty when all extents fit into the inode.
    :ivar target: of a symlink, else empty.
    """

    slot: int
    seq: int
    ino: int
    parent: int
    replaces: int
    kind: Kind | None
    mode: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    name: bytes
    extents: tuple[Extent, ...]
    pages: tuple[int, ...]
    target: bytes

    @property
    def blocks(self) -> int:
        """Blocks of data that belong to it."""
        return sum(extent.count for extent in self.extents)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A slot that is left out: it stays as it is until somebody gives it up.

    :ivar ino: the inode it says it is; a guess unless ``believed``.
    :ivar name: what it says its name is, likewise.
    :ivar believed: its checksum is right.
    """

    slot: int
    ino: int
    name: bytes
    believed: bool

    @classmethod
    def of(cls, values: dict[str, Any], number: int, *, believed: bool) -> Quarantined:
        """What a slot says of itself, as far as it can be read."""
        name = values["name"][: values["name_len"]].split(b"\0")[0]
        return cls(number, values["ino"], name, believed)

    @property
    def guess(self) -> str:
        """What it is, as far as that can be said."""
        name = ascii(self.name[:_NAME_SHOWN].decode("latin-1"))
        return f"{'' if self.believed else 'perhaps '}inode {self.ino} {name}"

    def __str__(self) -> str:
        return f"slot {self.slot}, {self.guess}"


@dataclass
class SlotReader:
    """Reads the inode slots of one store.

    :ivar chain: its metadata blocks.
    :ivar report: takes what is wrong with a slot, also with one that does not count.
    :ivar faults: what is wrong with the content of an inode, by slot; matters only if
        that inode counts.
    :ivar quarantined: slots that can't be believed.
    """

    image: Image
    store: SuperBlock
    chain: frozenset[int]
    report: Report
    uuid_crc: int
    faults: dict[int, Report] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)

    def read(self, number: int) -> Inode | None:
        """The inode of a slot that is in use, None if the slot can't be believed."""
        slot = self.image.slot(number)
        values = layout.INODE.unpack(slot)
        if fault := self._slot_fault(number, slot, values):
            code, text = fault
            damaged = Quarantined.of(values, number, believed=False)
            self.quarantined.append(damaged)
            self.report.add(code, f"{text} ({damaged.guess})", slot=number)
            return None
        content = _Content(self, values, Report())
        inode = content.read()
        if content.report.findings:
            self.faults[number] = content.report
        return inode

    def _slot_fault(
        self, number: int, slot: bytes, values: dict[str, Any]
    ) -> tuple[Code, str] | None:
        if values["checksum"] != layout.inode_checksum(self.uuid_crc, slot):
            return Code.SLOT_CHECKSUM, "wrong checksum"
        if values["slot"] != number:
            return Code.SLOT_NUMBER, f"says it is slot {values['slot']}"
        if values["commit"] != values["seq"]:
            return Code.SLOT_COMMIT, f"commit word {values['commit']}, sequence {values['seq']}"
        if not 0 < values["ino"] < layout.LOST_INO:
            return Code.INODE_NUMBER, f"inode number {values['ino']}"
        if values["seq"] > layout.NUMBER_MAX:
            return Code.INODE_NUMBER, f"sequence number {values['seq']}"
        return None


@dataclass
class _Content:
    """Reads what a slot says, once its checksum is known to be right."""

    reader: SlotReader
    values: dict[str, Any]
    report: Report

    def read(self) -> Inode:
        values = self.values
        kind = _KINDS.get(stat.S_IFMT(values["mode"]))
        self._check_fixed(kind)
        extents: tuple[Extent, ...] = ()
        pages: tuple[int, ...] = ()
        target = b""
        if kind is Kind.FILE:
            extents, pages = self._read_file()
        elif kind is Kind.SYMLINK:
            target = self._read_target()
        elif kind is Kind.DIRECTORY:
            self._check_directory()
        return Inode(
            slot=values["slot"],
            seq=values["seq"],
            ino=values["ino"],
            parent=values["parent"],
            replaces=values["replaces"],
            kind=kind,
            mode=values["mode"],
            uid=values["uid"],
            gid=values["gid"],
            size=values["size"],
            atime_ns=_signed(values["atime_ns"]),
            mtime_ns=_signed(values["mtime_ns"]),
            ctime_ns=_signed(values["ctime_ns"]),
            btime_ns=_signed(values["btime_ns"]),
            name=self._read_name(),
            extents=extents,
            pages=pages,
            target=target,
        )

    def _add(self, code: Code, text: str) -> None:
        self.report.add(code, text, slot=self.values["slot"], ino=self.values["ino"])

    def _check_fixed(self, kind: Kind | None) -> None:
        values = self.values
        if values["flags"]:
            self._add(Code.INODE_RESERVED, f"unknown flags {values['flags']:#x}")
        if values["reserved0"] or values["reserved1"] or values["reserved2"]:
            self._add(Code.INODE_RESERVED, "reserved bytes that are not zero")
        mode = values["mode"]
        if kind is None:
            self._add(Code.INODE_MODE, f"mode {mode:#o} is no file, directory or symlink")
        elif mode & ~_PERMISSIONS != stat.S_IFMT(mode):
            self._add(Code.INODE_MODE, f"mode {mode:#o} has unknown bits")
        if values["replaces"] in (values["ino"], layout.ROOT_INO):
            self._add(Code.INODE_REPLACES, f"replaces inode {values['replaces']}")
        in_itself = values["parent"] == values["ino"]
        if values["ino"] == layout.ROOT_INO and (not in_itself or kind is not Kind.DIRECTORY):
            self._add(Code.ROOT, "the root is not a directory that is its own parent")

    def _read_name(self) -> bytes:
        length = self.values["name_len"]
        field_: bytes = self.values["name"]
        name = field_[:length]
        if (length == 0) != (self.values["ino"] == layout.ROOT_INO):
            self._add(Code.INODE_NAME, f"a name of {length} bytes")
        elif length > layout.NAME_MAX:
            self._add(Code.INODE_NAME, f"a name of {length} bytes, {layout.NAME_MAX} can be")
        elif b"\0" in name or b"/" in name or name in (b".", b".."):
            self._add(Code.INODE_NAME, f"{name!r} can't be a name")
        elif not layout.is_zero(field_[length:]):
            self._add(Code.INODE_NAME, "bytes behind the name that are not zero")
        return name

    def _check_directory(self) -> None:
        if self.values["size"]:
            self._add(Code.INODE_SIZE, f"a directory of {self.values['size']} bytes")
        self._check_no_extents()
        self._check_unused(0)

    def _read_target(self) -> bytes:
        size: int = self.values["size"]
        self._check_no_extents()
        if not 1 <= size <= layout.SYMLINK_MAX:
            self._add(Code.INODE_SIZE, f"a symlink to {size} bytes")
            return b""
        payload: bytes = self.values["payload"]
        target = payload[:size]
        if b"\0" in target:
            self._add(Code.SYMLINK_TARGET, "the target has a NUL in it")
        self._check_unused(size)
        return target

    def _check_no_extents(self) -> None:
        if self.values["nr_extents"] or self.values["nr_pages"]:
            self._add(Code.INODE_COUNTS, "has extents, but is no file")

    def _check_unused(self, used: int) -> None:
        if not layout.is_zero(self.values["payload"][used:]):
            self._add(Code.INODE_PAYLOAD, "unused payload that is not zero")

    def _read_file(self) -> tuple[tuple[Extent, ...], tuple[int, ...]]:
        values = self.values
        if values["size"] > _MAX_SIZE:
            self._add(Code.INODE_SIZE, f"a file of {values['size']} bytes")
        nr_extents, nr_pages = values["nr_extents"], values["nr_pages"]
        if nr_pages > layout.MAX_EXTENT_PAGES:
            self._add(Code.INODE_COUNTS, f"{nr_pages} extent pages")
            return (), ()
        if nr_pages:
            raw, pages = self._read_pages(nr_pages)
        elif nr_extents > layout.INLINE_EXTENTS:
            self._add(Code.INODE_COUNTS, f"{nr_extents} extents in the inode")
            return (), ()
        else:
            used = nr_extents * layout.EXTENT.size
            self._check_unused(used)
            raw, pages = values["payload"][:used], ()
        extents = tuple(Extent(*fields) for fields in layout.EXTENT.iterate(raw))
        if len(extents) != nr_extents:
            self._add(Code.INODE_COUNTS, f"{nr_extents} extents, its pages have {len(extents)}")
        self._check_extents(extents)
        return extents, pages

    def _read_pages(self, nr_pages: int) -> tuple[bytes, tuple[int, ...]]:
        used = nr_pages * layout.PAGE_REF.size
        self._check_unused(used)
        refs = list(layout.PAGE_REF.iterate(self.values["payload"][:used]))
        pieces = []
        for index, (slot, checksum) in enumerate(refs):
            page = self._read_page(slot, checksum)
            if page is None:
                continue
            if index + 1 < nr_pages and page["count"] != layout.EXTENTS_PER_PAGE:
                text = f"extent page {slot} has {page['count']} extents and is not the last"
                self._add(Code.PAGE_FIELD, text)
            pieces.append(page["extents"][: page["count"] * layout.EXTENT.size])
        return b"".join(pieces), tuple(slot for slot, _ in refs)

    def _read_page(self, slot: int, checksum: int) -> dict[str, Any] | None:
        block = slot // layout.SLOTS_PER_BLOCK
        if block not in self.reader.chain or layout.is_fixed_slot(slot):
            self._add(Code.PAGE_SLOT, f"an extent page in slot {slot}, which can't be one")
            return None
        data = self.reader.image.slot(slot)
        if checksum != layout.page_checksum(self.reader.uuid_crc, data):
            self._add(Code.PAGE_CHECKSUM, f"wrong checksum of extent page {slot}")
            return None
        page = layout.EXTENT_PAGE.unpack(data)
        if fault := self._page_fault(slot, page):
            self._add(Code.PAGE_FIELD, f"extent page {slot}: {fault}")
            return None
        return page

    def _page_fault(self, slot: int, page: dict[str, Any]) -> str:
        count = page["count"]
        if page["commit"]:
            return "looks like an inode"
        if page["slot"] != slot:
            return f"says it is slot {page['slot']}"
        if page["ino"] != self.values["ino"]:
            return f"belongs to inode {page['ino']}"
        if not 1 <= page["seq"] <= self.values["seq"]:
            return f"sequence {page['seq']}, the inode has {self.values['seq']}"
        if not 1 <= count <= layout.EXTENTS_PER_PAGE:
            return f"{count} extents"
        if page["reserved"] or not layout.is_zero(page["extents"][count * layout.EXTENT.size :]):
            return "unused bytes that are not zero"
        return ""

    def _check_extents(self, extents: tuple[Extent, ...]) -> None:
        first, last = self.reader.store.page_blocks + 1, self.reader.store.blocks
        end = 0
        for extent in extents:
            if not extent.count:
                self._add(Code.EXTENT_EMPTY, f"an extent of no blocks at {extent.file_block}")
            if extent.file_block < end:
                self._add(Code.EXTENT_ORDER, f"extent at {extent.file_block} begins before {end}")
            end = extent.file_block + extent.count
            if end > layout.MAX_FILE_BLOCKS:
                self._add(Code.EXTENT_RANGE, f"an extent that ends at block {end} of the file")
            if extent.block < first or extent.block + extent.count > last:
                where = f"blocks {extent.block}..{extent.block + extent.count - 1}"
                self._add(Code.EXTENT_RANGE, f"{where} of the range can't be data")


def _signed(value: int) -> int:
    return value - (value >> 63 << 64)
