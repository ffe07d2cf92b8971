# SPDX-License-Identifier: GPL-2.0-only
"""kernel/dma/roots.c and keep.c from Python: IOMMUs with root tables, and a record of them."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dissect.cstruct import cstruct  # type: ignore[import-untyped]

from .harness import PAGE, Tables, library

RECORD_FILE = Path(__file__).resolve().parents[3] / "kernel" / "dma" / "record.h"
BLOCK = 2 << 20
#: The range that everything is kept in.
BASE, SIZE = 0x40_0000_0000, 1 << 30


@functools.cache
def layout() -> Any:
    """record.h, its constants and structs."""
    parser = cstruct(endian="<")
    for name, standard in (("u8", 8), ("le16", 16), ("le32", 32), ("le64", 64)):
        parser.add_type(f"__{name}", f"uint{standard}")
    parser.load(RECORD_FILE.read_text(encoding="ascii"), align=True)
    return parser


@functools.cache
def code() -> ctypes.CDLL:
    """The functions, with what ctypes has to know of them."""
    loaded = library()
    byte, word = ctypes.c_uint8, ctypes.c_uint64
    pointer = ctypes.POINTER(Context)
    loaded.harness_entry.argtypes = (ctypes.c_void_p, word, byte, byte)
    loaded.harness_entry.restype = pointer
    loaded.harness_owned.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint16, word, ctypes.c_uint16),
        *(byte, byte),
    )
    loaded.harness_owned.restype = pointer
    loaded.harness_next.argtypes = (ctypes.c_void_p, word, ctypes.POINTER(ctypes.c_uint))
    loaded.harness_next.restype = pointer
    loaded.keep_start.argtypes = (ctypes.c_void_p, word, word, word, ctypes.c_char_p)
    loaded.keep_start.restype = None
    loaded.keep_seal.argtypes = (ctypes.c_void_p,)
    loaded.keep_seal.restype = None
    loaded.keep_seal_header.argtypes = (ctypes.c_void_p,)
    loaded.keep_seal_header.restype = None
    loaded.keep_add_unit.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    loaded.keep_add_device.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    for name in ("keep_record_fault", "keep_header_fault"):
        function = getattr(loaded, name)
        function.argtypes = (ctypes.c_char_p, word, word)
        function.restype = ctypes.c_char_p
    loaded.keep_entry_fault.argtypes = (ctypes.c_char_p, pointer)
    loaded.keep_entry_fault.restype = ctypes.c_char_p
    loaded.keep_unit_of.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    loaded.keep_unit_of.restype = ctypes.c_void_p
    loaded.vtd_context_root.argtypes = (pointer,)
    loaded.vtd_context_root.restype = word
    return loaded


class Context(ctypes.Structure):
    """``struct vtd_context``."""

    _fields_ = (("lo", ctypes.c_uint64), ("hi", ctypes.c_uint64))


class KeepUnit(ctypes.Structure):
    """``struct keep_unit``."""

    _fields_ = (
        ("registers", ctypes.c_uint64),
        ("segment", ctypes.c_uint16),
        ("remaps_interrupts", ctypes.c_bool),
        ("section", ctypes.c_void_p),
        ("section_phys", ctypes.c_uint64),
    )


@dataclass(frozen=True, order=True)
class Where:
    """A device by name."""

    segment: int
    bus: int
    devfn: int


@dataclass(frozen=True)
class Entry:
    """What a context entry says: second-stage tables at ``root``."""

    root: int
    levels: int
    domain: int

    @property
    def words(self) -> tuple[int, int]:
        """The 16 bytes, VT-d specification, section 9.3: present, width, domain id."""
        return self.root | 1, (self.levels - 2) | self.domain << 8

    @classmethod
    def of(cls, raw: Context) -> Entry:
        """Read one; nothing but what :attr:`words` writes may be set."""
        entry = cls(raw.lo & ~0xFFF, (raw.hi & 7) + 2, raw.hi >> 8)
        assert entry.words == (raw.lo, raw.hi)
        return entry


@dataclass
class Unit:
    """An IOMMU of the kernel that ends: a root table and context tables, as its driver made them.

    :ivar number: its place in the section's file; a kernel may count them in another order.
    """

    registers: int
    number: int
    segment: int = 0
    remaps: bool = False
    memory: Tables = field(init=False)
    section: Tables = field(init=False)

    def __post_init__(self) -> None:
        self.memory = Tables(4, 300, base=0x1000_0000 * (1 + self.number))
        self.memory.take_root()
        # Not zero: what an earlier hand-over left.
        self.section = Tables(4, BLOCK // PAGE, base=BASE + BLOCK * (1 + self.number))
        ctypes.memset(self.section.memory, 0xAD, BLOCK)

    def put(self, bus: int, devfn: int, words: tuple[int, int]) -> None:
        """Write a context entry as the driver does."""
        at = self.memory.entry(self.memory.root, bus * 2)
        if not self.memory.memory[at]:
            self.memory.memory[at] = self.memory.new_page() | 1
        table = self.memory.memory[at] & ~0xFFF
        slot = self.memory.entry(table, devfn * 2)
        self.memory.memory[slot], self.memory.memory[slot + 1] = words

    def owned(self, where: Where, rtaddr_bits: int = 0) -> Entry | None:
        """vtd_roots_owned() on the tables that the driver made."""
        found = code().harness_owned(
            *(ctypes.byref(self.memory.arena), self.segment, self.memory.root | rtaddr_bits),
            *(where.segment, where.bus, where.devfn),
        )
        return Entry.of(found.contents) if found else None

    @property
    def kept(self) -> KeepUnit:
        """For keep_add_unit()."""
        memory = ctypes.cast(self.section.memory, ctypes.c_void_p)
        return KeepUnit(self.registers, self.segment, self.remaps, memory, self.section.base)

    @property
    def new_root(self) -> int:
        """Where the next kernel finds the root table."""
        return self.section.base + int(layout().PKERNFS_DMA_SECTION_ROOT)

    def inherited(self, bus: int, devfn: int) -> Any:
        """vtd_roots_entry() on the section: a pointer, maybe NULL."""
        return code().harness_entry(ctypes.byref(self.section.arena), self.new_root, bus, devfn)

    def all_inherited(self) -> dict[Where, Entry]:
        """Every present entry of the section, by vtd_roots_next()."""
        found: dict[Where, Entry] = {}
        number = ctypes.c_uint(0)
        arena = ctypes.byref(self.section.arena)
        while entry := code().harness_next(arena, self.new_root, ctypes.byref(number)):
            where = Where(self.segment, number.value >> 8, number.value & 0xFF)
            found[where] = Entry.of(entry.contents)
            number.value += 1
        assert number.value == 1 << 16
        return found


@dataclass
class Record:
    """A record, as handover.c makes one."""

    data: ctypes.Array[ctypes.c_char] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.data = ctypes.create_string_buffer(len(layout().pkernfs_dma_record))
        code().keep_start(self.data, BASE, SIZE, 1234, b"6.12.118+deb13-amd64")

    def add_unit(self, unit: Unit) -> int:
        """0, or a negative errno."""
        return int(code().keep_add_unit(self.data, ctypes.byref(unit.kept)))

    def add_device(self, where: Where, unit: Unit, entry: Entry, **more: int) -> int:
        """0, or a negative errno."""
        device = layout().pkernfs_dma_device(
            segment=where.segment,
            bus=where.bus,
            devfn=where.devfn,
            unit=unit.number,
            domain=entry.domain,
            levels=entry.levels,
            root=entry.root,
            **more,
        )
        kept = unit.kept
        return int(code().keep_add_device(self.data, ctypes.byref(kept), device.dumps()))

    def seal(self) -> None:
        """No more changes."""
        code().keep_seal(self.data)

    @property
    def parsed(self) -> Any:
        """The fields, as record.h has them."""
        return layout().pkernfs_dma_record(self.data.raw)

    def fault(self, base: int = BASE, size: int = SIZE) -> str:
        """Why it is not trusted; empty: it is."""
        return (code().keep_record_fault(self.data.raw, base, size) or b"").decode()

    def registers_of(self, device: Any) -> int | None:
        """keep_unit_of(): base of the registers of the IOMMU that a device was behind."""
        data = self.data.raw
        at = code().keep_unit_of(data, device.dumps())
        return int.from_bytes(ctypes.string_at(at, 8), "little") if at else None


def entry_fault(device: Any, entry: Any) -> str:
    """Why hardware does not do what the record says; empty: it does."""
    return (code().keep_entry_fault(device.dumps(), entry) or b"").decode()


def header(blocks: list[int], count: int | None = None) -> bytes:
    """A sealed header of a device's file."""
    room = layout().pkernfs_dma_tables()
    room.magic = layout().PKERNFS_DMA_TABLES_MAGIC
    room.nr_blocks = len(blocks) if count is None else count
    for i, block in enumerate(blocks):
        room.blocks[i] = block
    data = ctypes.create_string_buffer(room.dumps(), len(layout().pkernfs_dma_tables))
    code().keep_seal_header(data)
    return data.raw


def header_fault(data: bytes) -> str:
    """Why a device's file is not trusted; empty: it is."""
    return (code().keep_header_fault(data, BASE, SIZE) or b"").decode()
