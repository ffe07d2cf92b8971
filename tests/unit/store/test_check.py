# SPDX-License-Identifier: GPL-2.0-only
"""Every finding has a store that causes it, and a good store has none."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from pkernfs.store import layout
from pkernfs.store.check import CheckResult, check
from pkernfs.store.findings import Code, Severity, Verdict
from pkernfs.store.image import Image
from pkernfs.store.inode import Kind
from tests.answers import answers

from .writer import BASE, HEADER_INDEX, SUPER_B, Writer, extent_bytes, sample


def codes(result: CheckResult) -> set[Code]:
    return {finding.code for finding in result.findings}


def test_sample_is_clean_and_complete() -> None:
    result = check(sample().image())
    assert result.findings == ()
    assert result.verdict is Verdict.CLEAN
    assert result.mountable
    tree = result.tree
    assert tree is not None
    assert [path for path, _ in tree.walk()] == [
        "/",
        "/nothing",
        "/paged",
        "/vm",
        "/vm/empty",
        "/vm/far",
        "/vm/link",
        "/vm/ram",
    ]
    usage = tree.usage()
    assert (usage.files, usage.directories, usage.symlinks) == (4, 3, 1)
    assert (usage.metadata_blocks, usage.page_blocks, usage.data_blocks) == (2, 1, 5)
    assert usage.free_blocks == 16 - 2 - 1 - 5
    assert usage.free_slots == 2 * 511 - 2 - 8 - 1
    ram = tree.lookup("/vm/ram")
    assert [(e.file_block, e.count) for e in ram.extents] == [(0, 2), (4, 1)]
    assert tree.lookup("vm/link").target == b"../nothing"
    assert tree.lookup("paged").pages != ()
    assert tree.lookup("/").kind is Kind.DIRECTORY


def super_both(**values: int | bytes) -> Callable[[Writer], None]:
    def apply(writer: Writer) -> None:
        for slot in (0, SUPER_B):
            writer.put(slot, writer.super_values(**values))

    return apply


def on(path: str, **values: int | bytes) -> Callable[[Writer], None]:
    """Change fields of the inode at a path, with the right checksum."""

    def apply(writer: Writer) -> None:
        writer.change(slot_at(writer, path), **values)

    return apply


def slot_at(writer: Writer, path: str) -> int:
    tree = check(writer.image()).tree
    assert tree is not None
    return tree.lookup(path).slot


def raw(path: str, **values: int | bytes) -> Callable[[Writer], None]:
    """Change fields of the inode at a path and leave its checksum."""

    def apply(writer: Writer) -> None:
        writer.set(slot_at(writer, path), layout.INODE, **values)

    return apply


def header(where: int, *, seal: bool, **values: int | bytes) -> Callable[[Writer], None]:
    def apply(writer: Writer) -> None:
        writer.set(where * 512 + HEADER_INDEX, layout.HEADER, **values)
        if seal:
            writer.reseal_header(where)

    return apply


def link(following: int) -> Callable[[Writer], None]:
    return lambda writer: writer.link(writer.metadata[-1], following)


def page(*, seal: bool = True, **values: int | bytes) -> Callable[[Writer], None]:
    """Change fields of the one extent page."""

    def apply(writer: Writer) -> None:
        slot = slot_at(writer, "paged")
        number = int.from_bytes(layout.INODE.unpack(writer.read(slot))["payload"][:4], "little")
        writer.set(number, layout.EXTENT_PAGE, **values)
        if seal:
            writer.change(slot, payload=writer.page_ref(number))

    return apply


def extents(*items: tuple[int, int, int]) -> Callable[[Writer], None]:
    return on("/vm/ram", nr_extents=len(items), payload=extent_bytes(items))


def add_file(name: bytes, **values: int | bytes) -> Callable[[Writer], None]:
    return lambda writer: void(writer.file(1, name, **values))  # type: ignore[arg-type]


def void(_: object) -> None:
    return None


def page_named_twice(writer: Writer) -> None:
    values = layout.INODE.unpack(writer.read(slot_at(writer, "paged")))
    writer.change(slot_at(writer, "nothing"), nr_extents=1, nr_pages=1, payload=values["payload"])


def cycle(writer: Writer) -> None:
    first = writer.directory(1, b"a")
    second = writer.directory(first, b"b")
    writer.change(slot_at(writer, "/a"), parent=second)


FLAWS: list[tuple[str, Code, Callable[[Writer], None]]] = [
    ("version", Code.VERSION_UNKNOWN, super_both(version=2)),
    ("feature", Code.FEATURE_UNKNOWN, super_both(incompat=1 << 63)),
    ("super copy", Code.SUPER_COPY, lambda w: w.set(0, layout.SUPER, base=0)),
    ("super copy without magic", Code.SUPER_COPY, lambda w: w.put(0, w.super_values(magic=0))),
    ("super copy gone", Code.SUPER_COPY, lambda w: w.put(SUPER_B, bytes(4096))),
    ("supers differ", Code.SUPER_DIFFER, lambda w: w.put(0, w.super_values(label=b"x"))),
    ("block shift", Code.SUPER_FIELD, super_both(block_shift=12)),
    ("slot shift", Code.SUPER_FIELD, super_both(slot_shift=9)),
    ("odd size", Code.SUPER_FIELD, super_both(size=(8 << 20) + 1)),
    ("too small", Code.SUPER_FIELD, super_both(size=6 << 20)),
    ("too large", Code.SUPER_FIELD, super_both(size=(16 << 40) + (2 << 20))),
    ("odd base", Code.SUPER_FIELD, super_both(base=4096)),
    ("pages everywhere", Code.SUPER_FIELD, super_both(page_blocks=16)),
    ("endless label", Code.SUPER_FIELD, super_both(label=b"x" * 32)),
    ("label with a tail", Code.SUPER_FIELD, super_both(label=b"x\0y")),
    ("super reserved", Code.SUPER_FIELD, super_both(reserved=b"\0x")),
    ("super reserved0", Code.SUPER_FIELD, super_both(reserved0=1)),
    ("base", Code.BASE_MISMATCH, super_both(base=BASE * 2)),
    ("size", Code.SIZE_MISMATCH, super_both(size=64 << 20)),
    ("header magic", Code.HEADER, header(6, seal=True, magic=0)),
    ("header checksum", Code.HEADER, header(0, seal=False, checksum=0)),
    ("header block", Code.HEADER, header(0, seal=True, block=1)),
    ("header reserved", Code.HEADER, header(0, seal=True, reserved=b"x")),
    ("next", Code.CHAIN_NEXT, header(0, seal=False, next=5)),
    ("next beyond the end", Code.CHAIN_RANGE, link(16)),
    ("next in struct pages", Code.CHAIN_RANGE, link(1)),
    ("next is a cycle", Code.CHAIN_CYCLE, lambda w: w.link(w.metadata[-1], w.metadata[-1])),
    ("next goes into nowhere", Code.HEADER, link(15)),
    ("checksum", Code.SLOT_CHECKSUM, raw("/vm/ram", mode=0)),
    ("checksum of the payload", Code.SLOT_CHECKSUM, raw("/vm/ram", payload=b"x" * 3712)),
    ("slot number", Code.SLOT_NUMBER, on("/vm/ram", slot=9999)),
    ("commit", Code.SLOT_COMMIT, raw("/vm/ram", commit=1 << 40)),
    ("seq", Code.SLOT_COMMIT, on("/vm/ram", seq=1 << 40)),
    ("seq twice", Code.SEQ_TWICE, on("/vm/ram", seq=1, commit=1)),
    ("seq too high", Code.INODE_NUMBER, on("/vm/ram", seq=1 << 63, commit=1 << 63)),
    ("ino too high", Code.INODE_NUMBER, on("/vm/ram", ino=1 << 63)),
    ("in itself", Code.PARENT_CYCLE, on("/vm", parent=2)),
    ("ino zero", Code.INODE_NUMBER, on("/vm/ram", ino=0)),
    ("replaces itself", Code.INODE_REPLACES, on("/vm", replaces=2)),
    ("replaces the root", Code.INODE_REPLACES, on("/vm", replaces=1)),
    ("flags", Code.INODE_RESERVED, on("/vm", flags=1)),
    ("reserved0", Code.INODE_RESERVED, on("/vm", reserved0=1)),
    ("reserved1", Code.INODE_RESERVED, on("/vm", reserved1=1)),
    ("reserved2", Code.INODE_RESERVED, on("/vm", reserved2=1)),
    ("mode of a device", Code.INODE_MODE, on("/vm/ram", mode=stat.S_IFBLK | 0o600)),
    ("mode with high bits", Code.INODE_MODE, on("/vm/ram", mode=stat.S_IFREG | 1 << 20)),
    ("mode zero", Code.INODE_MODE, on("/vm/ram", mode=0)),
    ("name of the root", Code.INODE_NAME, on("/", name=b"x", name_len=1)),
    ("no name", Code.INODE_NAME, on("/vm/ram", name=b"", name_len=0)),
    ("long name", Code.INODE_NAME, on("/vm/ram", name=b"x" * 256, name_len=256)),
    ("name with a slash", Code.INODE_NAME, on("/vm/ram", name=b"r/m")),
    ("name with a NUL", Code.INODE_NAME, on("/vm/ram", name=b"r\0m")),
    ("dot", Code.INODE_NAME, on("/vm/ram", name=b".", name_len=1)),
    ("dot dot", Code.INODE_NAME, on("/vm/ram", name=b"..", name_len=2)),
    ("tail of a name", Code.INODE_NAME, on("/vm/ram", name=b"ramx")),
    ("size of a directory", Code.INODE_SIZE, on("/vm", size=1)),
    ("size of a file", Code.INODE_SIZE, on("/vm/ram", size=1 << 60)),
    ("symlink to nothing", Code.INODE_SIZE, on("/vm/link", size=0)),
    ("long symlink", Code.INODE_SIZE, on("/vm/link", size=3712)),
    ("extents of a directory", Code.INODE_COUNTS, on("/vm", nr_extents=1)),
    ("pages of a symlink", Code.INODE_COUNTS, on("/vm/link", nr_pages=1)),
    ("too many extents", Code.INODE_COUNTS, on("/vm/ram", nr_extents=310)),
    ("too many pages", Code.INODE_COUNTS, on("/vm/ram", nr_pages=465)),
    ("sum of the pages", Code.INODE_COUNTS, on("/paged", nr_extents=2)),
    ("payload of a directory", Code.INODE_PAYLOAD, on("/vm", payload=b"\0x")),
    ("payload of a file", Code.INODE_PAYLOAD, on("/nothing", payload=b"\0x")),
    ("payload behind a target", Code.INODE_PAYLOAD, on("/vm/link", size=5)),
    ("target", Code.SYMLINK_TARGET, on("/vm/link", payload=b"../\0othing")),
    ("page nowhere", Code.PAGE_SLOT, on("/paged", payload=b"\xff" * 8)),
    ("page in a super block", Code.PAGE_SLOT, on("/paged", payload=bytes(8))),
    ("page named twice", Code.PAGE_FIELD, page_named_twice),
    ("page checksum", Code.PAGE_CHECKSUM, page(seal=False, count=2)),
    ("page slot", Code.PAGE_FIELD, page(slot=3)),
    ("page ino", Code.PAGE_FIELD, page(ino=1)),
    ("page seq", Code.PAGE_FIELD, page(seq=1 << 40)),
    ("page seq zero", Code.PAGE_FIELD, page(seq=0)),
    ("page count", Code.PAGE_FIELD, page(count=339)),
    ("page empty", Code.PAGE_FIELD, page(count=0)),
    ("page reserved", Code.PAGE_FIELD, page(reserved=1)),
    ("page tail", Code.PAGE_FIELD, page(extents=extent_bytes([(7, 5, 1), (0, 0, 1)]))),
    ("page with a commit word", Code.SLOT_CHECKSUM, page(commit=1)),
    ("empty extent", Code.EXTENT_EMPTY, extents((0, 3, 0))),
    ("extents out of order", Code.EXTENT_ORDER, extents((4, 10, 1), (0, 11, 1))),
    ("extents that overlap", Code.EXTENT_ORDER, extents((0, 10, 2), (1, 12, 1))),
    ("extent in block 0", Code.EXTENT_RANGE, extents((0, 0, 1))),
    ("extent in struct pages", Code.EXTENT_RANGE, extents((0, 1, 1))),
    ("extent beyond the end", Code.EXTENT_RANGE, extents((0, 15, 2))),
    ("extent far beyond", Code.EXTENT_RANGE, extents((0, 0xFFFFFFFF, 0xFFFFFFFF))),
    ("extent too far in the file", Code.EXTENT_RANGE, extents((0xFFFFFFFF, 15, 1))),
    ("block used twice", Code.EXTENT_OVERLAP, extents((0, 10, 2), (4, 11, 1))),
    ("block of another file", Code.EXTENT_OVERLAP, extents((0, 2, 4))),
    ("block of metadata", Code.EXTENT_OVERLAP, extents((0, 6, 1))),
    ("no root", Code.ROOT, raw("/", commit=0)),
    ("root is a file", Code.ROOT, on("/", mode=stat.S_IFREG | 0o755)),
    ("root has a parent", Code.ROOT, on("/", parent=2)),
    ("no parent", Code.PARENT_MISSING, on("/vm/ram", parent=77)),
    ("parent is a file", Code.PARENT_KIND, on("/vm/ram", parent=5)),
    ("cycle", Code.PARENT_CYCLE, cycle),
    ("two of a name", Code.NAME_TWICE, add_file(b"vm")),
]


@pytest.mark.parametrize(
    ("code", "flaw"), [flaw[1:] for flaw in FLAWS], ids=[flaw[0] for flaw in FLAWS]
)
def test_every_flaw_is_found(code: Code, flaw: Callable[[Writer], None]) -> None:
    writer = sample()
    flaw(writer)
    result = check(writer.image())
    assert code in codes(result), [str(finding) for finding in result.findings]
    assert result.verdict is not Verdict.CLEAN
    refused = code.value.severity is Severity.ERROR or Code.ROOT in codes(result)
    assert result.mountable != refused
    for finding in result.findings:
        assert "\n" not in str(finding)
        assert str(finding).startswith(f"{finding.severity}: {finding.code}: ")


def test_every_code_has_a_flaw() -> None:
    tried = {code for _, code, _ in FLAWS}
    elsewhere = {Code.NOT_A_STORE, Code.SUPER_DAMAGED, Code.LEFTOVER}
    assert tried | elsewhere == set(Code)


def test_verdicts_without_a_usable_super_block() -> None:
    writer = sample()
    for slot in (0, SUPER_B):
        writer.set(slot, layout.SUPER, base=0)
    result = check(writer.image())
    assert (codes(result), result.verdict) == ({Code.SUPER_DAMAGED}, Verdict.DAMAGED)
    assert result.tree is None
    for slot in (0, SUPER_B):
        writer.set(slot, layout.SUPER, magic=0)
    # There are files, so it was one.
    assert codes(check(writer.image())) == {Code.SUPER_DAMAGED}
    result = check(Image(bytes(len(writer.buffer))))
    assert (codes(result), result.verdict) == ({Code.NOT_A_STORE}, Verdict.NOT_A_STORE)
    assert not result.mountable


@answers(
    phase="input",
    failure="a store from a newer format version",
    outcome="not mounted, not changed; pkernfs check names the version",
)
@pytest.mark.parametrize("flaw", [super_both(version=2), super_both(incompat=2)])
def test_a_store_of_another_version_is_not_ours(flaw: Callable[[Writer], None]) -> None:
    writer = sample()
    flaw(writer)
    assert check(writer.image()).verdict is Verdict.NOT_A_STORE


@pytest.mark.parametrize("size", [0, 1, 8, 4096, 4097, 2 << 20, 2 << 20 | 1, 6 << 20, 16 << 20])
def test_cut_off_images(size: int) -> None:
    whole = sample().buffer
    cut = check(Image(whole[:size]))
    assert cut.verdict is (Verdict.NOT_A_STORE if size < 8 else Verdict.DAMAGED)
    blank = check(Image(bytes(size)))
    assert blank.verdict is Verdict.NOT_A_STORE


def test_a_longer_file_is_right_only_if_it_may_be_longer() -> None:
    writer = sample()
    longer = writer.buffer[:] + bytes(4096)
    assert codes(check(Image(longer))) == {Code.SIZE_MISMATCH}
    assert check(Image(longer, exact=False)).verdict is Verdict.CLEAN


def test_a_later_state_counts_and_the_older_is_left_over() -> None:
    writer = sample()
    old = slot_at(writer, "/vm/ram")
    ino = writer.ino(old)
    writer.file(1, b"moved", ino=ino)
    result = check(writer.image())
    assert [finding.code for finding in result.findings] == [Code.LEFTOVER]
    assert result.findings[0].severity is Severity.NOTE
    assert result.findings[0].slot == old
    assert result.verdict is Verdict.CLEAN
    assert result.tree is not None
    assert result.tree.lookup("moved").ino == ino
    assert [leftover.inode.slot for leftover in result.tree.leftovers] == [old]


def test_the_older_state_may_stand_behind_the_later() -> None:
    writer = sample()
    later = slot_at(writer, "/vm/ram")
    writer.file(1, b"moved", ino=writer.ino(later))
    writer.change(later, seq=99, commit=99)
    tree = check(writer.image()).tree
    assert tree is not None
    assert tree.lookup("/vm/ram").slot == later


def test_rename_over_removes_what_it_replaces() -> None:
    writer = sample()
    victim = slot_at(writer, "/vm/ram")
    writer.file(2, b"ram", [(0, 2, 2)], replaces=writer.ino(victim))
    result = check(writer.image())
    assert [finding.code for finding in result.findings] == [Code.LEFTOVER]
    assert result.findings[0].slot == victim
    assert result.tree is not None
    assert result.tree.lookup("/vm/ram").slot != victim


def test_a_later_inode_is_not_replaced() -> None:
    writer = sample()
    writer.change(slot_at(writer, "/nothing"), replaces=writer.last_ino)
    assert check(writer.image()).findings == ()


def test_content_of_a_leftover_is_no_damage() -> None:
    writer = sample()
    old = slot_at(writer, "/vm/ram")
    writer.change(old, payload=extent_bytes([(0, 0xFFFFFFFF, 5)]), flags=1, mode=0)
    writer.file(2, b"ram", ino=writer.ino(old))
    assert check(writer.image()).verdict is Verdict.CLEAN


def test_a_leftover_still_replaces() -> None:
    writer = sample()
    victim = slot_at(writer, "/vm/ram")
    first = writer.file(2, b"ram", replaces=writer.ino(victim))
    writer.file(2, b"ram", ino=writer.ino(first))
    result = check(writer.image())
    assert {finding.slot for finding in result.findings} == {victim, first}
    assert result.verdict is Verdict.CLEAN


def test_findings_name_the_path() -> None:
    writer = sample()
    on("/vm/ram", flags=4)(writer)
    (finding,) = check(writer.image()).findings
    assert finding.path == "/vm/ram"
    assert str(finding) == (
        f"damage: inode-reserved: slot {finding.slot}, /vm/ram: unknown flags 0x4"
    )


def test_many_extents_over_many_pages() -> None:
    count = layout.EXTENTS_PER_PAGE * 2 + 3
    writer = Writer(blocks=count + 8)
    items = [(2 * i, 1 + i, 1) for i in range(count)]
    slot = writer.file(1, b"f", items)
    result = check(writer.image())
    assert result.findings == ()
    assert result.tree is not None
    assert len(result.tree.lookup("f").extents) == count
    writer.change(slot, payload=b"".join(reversed(writer_refs(writer, slot))))
    assert {Code.PAGE_FIELD, Code.EXTENT_ORDER} <= codes(check(writer.image()))


def writer_refs(writer: Writer, slot: int) -> list[bytes]:
    values = layout.INODE.unpack(writer.read(slot))
    return [values["payload"][8 * i : 8 * i + 8] for i in range(values["nr_pages"])]
