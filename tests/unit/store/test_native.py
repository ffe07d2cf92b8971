# SPDX-License-Identifier: GPL-2.0-only
"""The checker and the module's own metadata code (kernel/fs in user space) agree."""

from __future__ import annotations

import contextlib
import random
import stat
from uuid import UUID

import pytest

from pkernfs.store import layout
from pkernfs.store.check import CheckResult, check
from pkernfs.store.findings import Code, Verdict
from pkernfs.store.image import Image
from pkernfs.store.inode import Quarantined
from pkernfs.store.make import NewStore, make
from pkernfs.store.tree import Tree
from tests.answers import answers
from tests.conftest import Tell
from tests.fuzzing import IMAGES
from tests.native import Line, Native, available

from .mutate import BASES, Mutator
from .writer import BASE, SLOT

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler")


class Range(Native):
    """A range that can be put back in order after it was damaged."""

    def image(self) -> Image:
        return Image(memoryview(self.memory), base=BASE)

    def keep(self) -> None:
        """Remember the memory as it is now."""
        self._call("record", False)
        self._call("keep")

    def restore(self) -> None:
        """Back to what was remembered."""
        self._call("restore")


def from_tree(tree: Tree) -> list[Line]:
    """The same as :meth:`Native.dump`, from what Python read."""
    result = []
    for inode in tree.inodes.values():
        if inode.ino == layout.LOST_INO:
            continue
        path = b"/" + b"/".join(tree.names(inode.ino) or [])
        extents = ",".join(f"{e.file_block}:{e.block}:{e.count}" for e in inode.extents)
        rest = inode.target.decode("latin-1") or extents
        result.append(Line(path.decode("latin-1"), inode.ino, inode.mode, inode.size, rest))
    return by_ino(result)


def by_ino(lines: list[Line] | tuple[Line, ...]) -> list[Line]:
    """In the order of their numbers; lost+found is compared by what is in it."""
    stored = (line for line in lines if line.ino != layout.LOST_INO)
    return sorted(stored, key=lambda line: line.ino)


def test_c_opens_what_python_makes() -> None:
    new = NewStore(base=BASE, label="main", page_blocks=2, uuid=UUID(int=1))
    with Range(8, BASE) as store:
        make(memoryview(store.memory), new)
        with store.opened():
            assert store.said() == ""
            assert [line.path for line in store.dump()] == ["/"]
            store.create("/file", stat.S_IFREG | 0o644)
        assert check(store.image()).verdict is Verdict.CLEAN


def test_python_reads_what_c_makes() -> None:
    with Range(64, BASE) as store:
        store.make("main", page_blocks=1)
        with store.opened():
            store.create("/vm", stat.S_IFDIR | 0o755)
            store.create("/vm/link", stat.S_IFLNK | 0o777, "../other")
            for path in ("/vm/ram", "/other", "/gone"):
                store.create(path, stat.S_IFREG | 0o600)
                store.resize(path, 12345)
            for path, block in (("/vm/ram", 0), ("/other", 3), ("/vm/ram", 5), ("/gone", 0)):
                store.allocate(path, block, 2)
            store.rename("/other", "/gone")
            store.punch("/vm/ram", 0, 1)
            result = check(store.image())
            assert [str(finding) for finding in result.findings] == []
            assert result.tree is not None
            assert from_tree(result.tree) == by_ino(store.dump())
            paths = {line.path for line in store.dump()}
            assert paths == {"/", "/vm", "/vm/link", "/vm/ram", "/gone"}


def test_any_byte_in_a_name() -> None:
    with Range(64, BASE) as store:
        store.make()
        with store.opened():
            store.create("/tab\tand\nline\x1cend\\x41", stat.S_IFREG | 0o644)
            store.create("/link é", stat.S_IFLNK | 0o777, "to\nnowhere")
            tree = check(store.image()).tree
            assert tree is not None
            assert len(store.dump()) == 3
            assert by_ino(store.dump()) == from_tree(tree)


@answers(
    phase="input",
    failure="one bit of a guest's file in the store is flipped",
    outcome="the store is mounted without that file, which log and pkernfs check name;"
    " nothing that may be its own is overwritten",
)
def test_one_damaged_inode_of_fifty() -> None:
    guests = [f"/vms/{number}" for number in range(50)]
    with Range(128, BASE) as store:
        store.make()
        with store.opened():
            store.create("/vms", stat.S_IFDIR | 0o755)
            for path in guests:
                store.create(path, stat.S_IFREG | 0o600)
                store.write(path, 0, path.encode())
        tree = check(store.image()).tree
        assert tree is not None
        victim = tree.lookup(guests[7])
        at = victim.slot * SLOT + layout.INODE.offsets["gid"]
        store.poke(at, bytes([store.memory[at] ^ 1]))
        result = check(store.image())
        assert result.mountable
        assert [finding.slot for finding in result.findings] == [victim.slot]
        assert f"perhaps inode {victim.ino} '7'" in str(result.findings[0])
        assert result.tree is not None
        assert result.tree.usage().free_blocks == 0
        with store.opened():
            assert f"perhaps inode {victim.ino} '7': wrong checksum" in store.said()
            assert store.usage().blocks_free == 0
            there = {line.path for line in store.dump()}
            assert there == {"/", "/vms", *guests} - {guests[7]}
            for path in there - {"/", "/vms"}:
                assert store.read(path, 0, len(path)) == path.encode()


def agree(images: int, seed: int) -> int:
    """:returns: how many of the images both called usable."""
    rng = random.Random(seed)
    usable = 0
    for base in BASES:
        mutator = Mutator(base(), rng)
        with Range(mutator.writer.blocks, BASE) as store:
            for block in mutator.writer.metadata:
                for slot in range(block * 512, block * 512 + 512):
                    store.poke(slot * SLOT, mutator.writer.read(slot))
            store.keep()
            for _ in range(images // len(BASES)):
                with mutator.damaged() as writer:
                    for slot in mutator.saved:
                        store.poke(slot * SLOT, writer.read(slot))
                usable += judge(store, rng)
                store.restore()
    return usable


def judge(store: Range, rng: random.Random) -> bool:
    """Let both look at the same bytes. :returns: whether the store can be used."""
    before = check(store.image())
    findings = [str(finding) for finding in before.findings]
    try:
        store.open()
    except OSError as error:
        assert not before.mountable, f"C: {error}\nPython: {findings}"
        return False
    try:
        said = store.said()
        assert before.mountable, f"C: {said or 'ok'}\nPython: {findings}"
        assert before.tree is not None
        assert by_ino(store.dump()) == from_tree(before.tree), (said, findings)
        assert summary(check(store.image())) == summary(before), "not all repaired at mount"
        use(store, rng)
        if before.tree.quarantined:
            check_kept(before, check(store.image()))
    finally:
        store.close()
    store.said()
    return True


def summary(result: CheckResult) -> tuple[set[Code], set[Quarantined]]:
    """What a mount can't repair."""
    assert result.tree is not None
    found = {finding.code for finding in result.findings}
    return found - {Code.LEFTOVER, Code.SUPER_COPY}, set(result.tree.quarantined)


def use(store: Range, rng: random.Random) -> None:
    """Do some of what changes blocks and slots; much of it is refused."""
    paths = [line.path for line in store.dump() if line.path.isascii()]
    for number in range(4):
        path = rng.choice([*paths, f"/new{number}"])
        with contextlib.suppress(OSError):
            match rng.randrange(5):
                case 0:
                    store.create(path, stat.S_IFREG | 0o600)
                case 1:
                    store.allocate(path, rng.randrange(4), 1 + rng.randrange(3))
                case 2:
                    store.punch(path, 0, 2)
                case 3:
                    store.unlink(path)
                case _:
                    store.rename(path, "/moved")


def check_kept(before: CheckResult, after: CheckResult) -> None:
    """Nobody got a block that no good inode owned, or a slot that is damaged."""
    assert before.tree is not None
    assert after.tree is not None
    assert not blocks_of(after.tree) - blocks_of(before.tree)
    assert set(after.tree.quarantined) == set(before.tree.quarantined)


def blocks_of(tree: Tree) -> set[int]:
    used = set(tree.metadata_blocks)
    for inode in tree.inodes.values():
        for extent in inode.extents:
            used.update(range(extent.block, extent.block + extent.count))
    return used


def test_both_agree_on_damaged_stores() -> None:
    assert agree(3000, seed=1) > 100


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
def test_both_agree_on_many_damaged_stores(tell: Tell) -> None:
    usable = agree(IMAGES, seed=2)
    tell(f"{IMAGES} images, {usable} usable for both")
    assert usable > IMAGES // 100
