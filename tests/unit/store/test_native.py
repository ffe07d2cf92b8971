# SPDX-License-Identifier: GPL-2.0-only
"""The checker and the module's own metadata code (kernel/fs in user space) agree."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from pkernfs.store import layout
from pkernfs.store.check import check
from pkernfs.store.findings import Verdict
from pkernfs.store.image import Image
from pkernfs.store.make import NewStore, make
from pkernfs.store.tree import Tree

from .mutate import BASES, Mutator
from .writer import BASE, SLOT

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "build" / "kernel-tests" / "libpkernfs_native.so"
IMAGES = int(os.environ.get("PKERNFS_FUZZ_IMAGES", "120000"))


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    subprocess.run(["make", "-s", "-C", ROOT / "kernel" / "tests", "library"], check=True)
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.pkn_new.argtypes = [ctypes.c_uint32, ctypes.c_uint64]
    for name in ("pkn_new", "pkn_memory"):
        getattr(loaded, name).restype = ctypes.c_void_p
    loaded.pkn_said.restype = ctypes.c_char_p
    return loaded


class Native:
    """One range in the memory of the C code."""

    def __init__(self, library: ctypes.CDLL, blocks: int) -> None:
        self._library = library
        self._handle = ctypes.c_void_p(library.pkn_new(blocks, BASE))
        memory = library.pkn_memory(self._handle)
        self.memory = (ctypes.c_ubyte * (blocks * layout.BLOCK_SIZE)).from_address(memory)

    def call(self, name: str, *arguments: object) -> int:
        return int(getattr(self._library, f"pkn_{name}")(self._handle, *arguments))

    def said(self) -> str:
        said: bytes = self._library.pkn_said(self._handle)
        return said.decode()

    def poke(self, slot: int, content: bytes) -> None:
        self.call("poke", ctypes.c_uint64(slot * SLOT), content, ctypes.c_uint32(len(content)))

    def do(self, name: str, *arguments: object) -> None:
        assert self.call(name, *arguments) == 0, f"{name}{arguments}: {self.said()}"

    def image(self) -> Image:
        return Image(memoryview(self.memory), base=BASE)

    def dump(self) -> dict[str, tuple[int, str, int, str]]:
        """Path -> ino, mode, size, extents or target."""
        size = self.call("dump", None, ctypes.c_uint64(0)) + 1
        buffer = ctypes.create_string_buffer(size)
        self.call("dump", buffer, ctypes.c_uint64(size))
        lines = [line.split("\t") for line in buffer.value.decode("latin-1").split("\n")[:-1]]
        return {
            line[0]: (int(line[1]), line[2], int(line[3]), "".join(line[4:5])) for line in lines
        }


@contextmanager
def native(library: ctypes.CDLL, blocks: int) -> Iterator[Native]:
    opened = Native(library, blocks)
    try:
        yield opened
    finally:
        opened.call("free")


def from_tree(tree: Tree) -> dict[str, tuple[int, str, int, str]]:
    """The same as :meth:`Native.dump`, from what Python read."""
    result = {}
    for inode in tree.inodes.values():
        path = b"/" + b"/".join(tree.names(inode.ino) or [])
        extents = ",".join(f"{e.file_block}:{e.block}:{e.count}" for e in inode.extents)
        value = (
            inode.ino,
            f"{inode.mode:o}",
            inode.size,
            inode.target.decode("latin-1") or extents,
        )
        result[path.decode("latin-1")] = value
    return result


def test_c_opens_what_python_makes(library: ctypes.CDLL) -> None:
    new = NewStore(base=BASE, label="main", page_blocks=2, uuid=UUID(int=1))
    with native(library, 8) as store:
        make(memoryview(store.memory), new)
        store.do("open")
        assert store.said() == ""
        assert list(store.dump()) == ["/"]
        store.do("create", b"/file", 0o100644, None)
        store.call("close")
        assert check(store.image()).verdict is Verdict.CLEAN


def test_python_reads_what_c_makes(library: ctypes.CDLL) -> None:
    with native(library, 64) as store:
        store.do("make", b"main", ctypes.c_uint32(1), False)
        store.do("open")
        store.do("create", b"/vm", 0o40755, None)
        store.do("create", b"/vm/link", 0o120777, b"../other")
        for path in (b"/vm/ram", b"/other", b"/gone"):
            store.do("create", path, 0o100600, None)
            store.do("resize", path, ctypes.c_uint64(12345))
        for path, block in ((b"/vm/ram", 0), (b"/other", 3), (b"/vm/ram", 5), (b"/gone", 0)):
            store.do("allocate", path, block, 2, ctypes.c_uint64(0), ctypes.c_int64(1))
        store.do("rename", b"/other", b"/gone")
        store.do("punch", b"/vm/ram", 0, 1)
        result = check(store.image())
        assert [str(finding) for finding in result.findings] == []
        assert result.tree is not None
        assert from_tree(result.tree) == store.dump()
        assert set(store.dump()) == {"/", "/vm", "/vm/link", "/vm/ram", "/gone"}
        store.call("close")


def agree(library: ctypes.CDLL, images: int, seed: int) -> int:
    """:returns: how many of the images both called usable."""
    rng = random.Random(seed)
    usable = 0
    for base in BASES:
        mutator = Mutator(base(), rng)
        with native(library, mutator.writer.blocks) as store:
            store.call("record", False)
            for block in mutator.writer.metadata:
                for slot in range(block * 512, block * 512 + 512):
                    store.poke(slot, mutator.writer.read(slot))
            store.call("keep")
            for _ in range(images // len(BASES)):
                with mutator.damaged() as writer:
                    for slot in mutator.saved:
                        store.poke(slot, writer.read(slot))
                usable += judge(store)
                store.call("restore")
    return usable


def judge(store: Native) -> bool:
    """Let both look at the same bytes. :returns: whether the store can be used."""
    before = check(store.image())
    opened = store.call("open") == 0
    said = store.said()
    findings = [str(finding) for finding in before.findings]
    assert opened == before.mountable, f"C: {said or 'ok'}\nPython: {findings}"
    if opened:
        assert before.tree is not None
        inodes = before.tree.inodes.values()
        if not any(byte in i.name + i.target for i in inodes for byte in (b"\n", b"\t")):
            assert store.dump() == from_tree(before.tree)
        store.call("close")
        after = check(store.image())
        assert after.findings == (), "not all repaired at mount"
    return opened


def test_both_agree_on_damaged_stores(library: ctypes.CDLL) -> None:
    assert agree(library, 3000, seed=1) > 100


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
def test_both_agree_on_many_damaged_stores(library: ctypes.CDLL) -> None:
    usable = agree(library, IMAGES, seed=2)
    print(f"\n{IMAGES} images, {usable} usable for both")
    assert usable > IMAGES // 100
