# SPDX-License-Identifier: GPL-2.0-only
"""Walk, copy, compare and validate second-stage tables against a model of translations."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .harness import (
    LARGE,
    PAGE,
    READ,
    SANITIZE,
    WRITE,
    Leaf,
    Tables,
    build,
    compare,
    copy,
    span,
    validate,
)

GIB = 1 << 30
MEMORY = (0, 1 << 51)


@st.composite
def leaf_sets(draw: st.DrawFn, levels: int) -> list[Leaf]:
    """Leaves of 4 KiB, 2 MiB and 1 GiB that do not overlap, anywhere in the IOVA space."""
    top = span(levels) * 512
    places = draw(
        st.lists(
            st.tuples(
                st.integers(0, top // GIB - 1),
                st.integers(1, 3),
                st.sampled_from([0, 1, 2, 255, 510, 511]),
                st.sampled_from([0, 1, 2, 255, 510, 511]),
            ),
            max_size=24,
        )
    )
    taken: dict[tuple[int, ...], int] = {}
    leaves = []
    for gib, level, middle, low in places:
        key = (gib, middle, low)[: 4 - level]
        # One key is a prefix of another exactly if their leaves overlap.
        if any(key[: len(k)] == k or k[: len(key)] == key for k in taken):
            continue
        taken[key] = level
        iova = gib * GIB + (middle * span(2) if level < 3 else 0) + (low * PAGE if level < 2 else 0)
        phys = draw(st.integers(0, (1 << 46) // span(level) - 1)) * span(level)
        leaves.append(Leaf(iova, phys, span(level), draw(st.sampled_from([1, 2, 3]))))
    return sorted(leaves)


@st.composite
def models(draw: st.DrawFn) -> tuple[int, list[Leaf]]:
    """A number of levels and leaves that fit into it."""
    levels = draw(st.sampled_from([3, 4, 5]))
    return levels, draw(leaf_sets(levels))


@given(models())
def test_walk_reports_exactly_the_leaves(model: tuple[int, list[Leaf]]) -> None:
    levels, leaves = model
    tables = build(levels, leaves)
    assert tables.walk() == (0, leaves)
    counts = tables.counts()
    assert counts.pages == tables.arena.used
    assert (counts.leaves, counts.bytes) == (len(leaves), sum(leaf.size for leaf in leaves))


@given(models(), st.sampled_from([READ, WRITE]))
def test_rights_of_a_path_are_those_of_every_entry(
    model: tuple[int, list[Leaf]], path: int
) -> None:
    levels, leaves = model
    tables = Tables(levels, 1 + len(leaves) * levels)
    tables.take_root()
    for leaf in leaves:
        tables.put(leaf, path)
    seen = {leaf.iova: leaf.rights for leaf in tables.walk()[1]}
    top = span(levels)  # a leaf in the root table has no path above it
    expected = {
        leaf.iova: leaf.rights & (READ | WRITE if leaf.size == top else path) for leaf in leaves
    }
    assert seen == {iova: rights for iova, rights in expected.items() if rights}


@given(models())
def test_copy_translates_the_same_from_other_pages(model: tuple[int, list[Leaf]]) -> None:
    levels, leaves = model
    source = build(levels, leaves)
    before = bytes(source.memory)
    copied = copy(source, int(source.arena.used))
    assert copied.result == 0
    assert copied.tables.walk() == (0, leaves)
    assert copied.dropped == 0
    assert copied.counts.pages == source.arena.used == copied.tables.arena.used
    assert bytes(source.memory) == before
    assert compare(source, copied.tables)[0] == 0
    assert compare(copied.tables, source)[0] == 0


@given(models())
def test_copy_needs_every_page(model: tuple[int, list[Leaf]]) -> None:
    source = build(*model)
    assert copy(source, int(source.arena.used) - 1).result == -errno.ENOSPC


@given(models(), st.integers(0, 1 << 46), st.integers(0, 1 << 46))
def test_copy_leaves_out_what_lies_elsewhere(
    model: tuple[int, list[Leaf]], one: int, other: int
) -> None:
    levels, leaves = model
    start, end = sorted((one, other))
    inside = [leaf for leaf in leaves if start <= leaf.phys and leaf.phys + leaf.size <= end]
    source = build(levels, leaves)
    copied = copy(source, int(source.arena.used), (start, end))
    assert copied.tables.walk() == (0, inside)
    assert copied.dropped == len(leaves) - len(inside)
    assert copied.counts.leaves == len(inside)


@given(models(), st.data())
def test_cursor_finds_in_any_order(model: tuple[int, list[Leaf]], data: st.DataObject) -> None:
    levels, leaves = model
    asked = [leaf.iova + data.draw(st.integers(0, leaf.size - 1)) for leaf in leaves]
    asked += data.draw(st.lists(st.integers(0, (1 << 57) - 1), max_size=8))
    asked = data.draw(st.permutations(asked))
    for iova, (result, found) in zip(asked, build(levels, leaves).find(asked), strict=True):
        holder = [leaf for leaf in leaves if leaf.iova <= iova < leaf.iova + leaf.size]
        if holder:
            assert (result, found) == (0, holder[0])
        else:
            assert result == -errno.ENOENT


@given(models(), st.data())
def test_compare_accepts_smaller_pages_and_more_of_them(
    model: tuple[int, list[Leaf]], data: st.DataObject
) -> None:
    levels, leaves = model
    new: list[Leaf] = []
    for leaf in leaves:
        if leaf.size > PAGE and data.draw(st.booleans()):
            part = leaf.size // 512
            new += [
                Leaf(leaf.iova + i * part, leaf.phys + i * part, part, READ | WRITE)
                for i in range(512)
            ]
        else:
            new.append(Leaf(leaf.iova, leaf.phys, leaf.size, leaf.rights | READ))
    assert compare(build(levels, leaves), build(levels, new))[0] == 0


@given(models(), st.data())
def test_compare_names_the_first_difference(
    model: tuple[int, list[Leaf]], data: st.DataObject
) -> None:
    levels, leaves = model
    if not leaves:
        return
    victim = data.draw(st.integers(0, len(leaves) - 1))
    leaf = leaves[victim]
    kind = data.draw(st.sampled_from(["gone", "moved", "rights"]))
    new = leaves[:victim] + leaves[victim + 1 :]
    if kind == "moved":
        new.append(Leaf(leaf.iova, leaf.phys ^ leaf.size, leaf.size, leaf.rights))
    elif kind == "rights":
        if leaf.rights != READ | WRITE:
            return
        new.append(Leaf(leaf.iova, leaf.phys, leaf.size, data.draw(st.sampled_from([READ, WRITE]))))
    result, difference = compare(build(levels, leaves), build(levels, new))
    assert result == -errno.EXDEV
    assert (difference.iova, difference.old_phys) == (leaf.iova, leaf.phys)
    assert difference.old_rights == leaf.rights
    assert (difference.new_rights == 0) == (kind == "gone")


def test_compare_looks_at_every_part_of_a_large_leaf() -> None:
    old = build(4, [Leaf(GIB, 5 * GIB, span(2), READ)])
    parts = [Leaf(GIB + i * PAGE, 5 * GIB + i * PAGE, PAGE, READ) for i in range(512)]
    parts[-1] = Leaf(parts[-1].iova, 0, PAGE, READ)
    result, difference = compare(old, build(4, parts))
    assert (result, difference.iova) == (-errno.EXDEV, GIB + 511 * PAGE)


def test_compare_across_levels() -> None:
    leaves = [Leaf(0, GIB, span(2), 3), Leaf(510 * GIB, 3 * GIB, GIB, 3)]
    assert compare(build(3, leaves), build(4, leaves))[0] == 0
    assert compare(build(4, leaves), build(3, leaves))[0] == 0
    beyond = [*leaves, Leaf(512 * GIB, 7 * GIB, GIB, 3)]
    result, difference = compare(build(4, beyond), build(3, leaves))
    assert (result, difference.iova) == (-errno.EXDEV, 512 * GIB)


@given(models())
def test_validate_counts_what_it_allows(model: tuple[int, list[Leaf]]) -> None:
    tables = build(*model)
    assert validate(tables, MEMORY, int(tables.arena.used))[0] == 0
    assert validate(tables, MEMORY, int(tables.arena.used) - 1)[0] == -errno.E2BIG


@given(models(), st.data())
def test_validate_names_a_leaf_outside(model: tuple[int, list[Leaf]], data: st.DataObject) -> None:
    levels, leaves = model
    if not leaves:
        return
    end = data.draw(st.sampled_from(leaves)).phys + PAGE - 1
    first = next(leaf for leaf in leaves if leaf.phys + leaf.size > end)
    tables = build(levels, leaves)
    assert validate(tables, (0, end), int(tables.arena.used)) == (-errno.ERANGE, first)


def test_validate_refuses_a_table_elsewhere() -> None:
    tables = build(4, [Leaf(0, GIB, PAGE, 3)])
    tables.memory[tables.entry(tables.root, 7)] = 0x5000 | 3
    assert validate(tables, MEMORY, 64)[0] == -errno.EACCES


def test_validate_ends_on_tables_that_contain_themselves() -> None:
    tables = Tables(4, 1)
    tables.take_root()
    for i in range(512):
        tables.memory[i] = tables.root | 3
    assert validate(tables, MEMORY, 1)[0] == -errno.E2BIG


@pytest.mark.parametrize("levels", [0, 1, 2, 6, 64])
def test_levels_that_no_hardware_has(levels: int) -> None:
    tables = Tables(4, 1)
    tables.levels = levels
    assert tables.walk() == (-errno.EINVAL, [])


@pytest.mark.parametrize("level", [4, 5])
def test_a_leaf_above_1_gib_is_refused(level: int) -> None:
    tables = Tables(level, 1)
    tables.take_root()
    tables.memory[0] = LARGE | 3
    assert tables.walk()[0] == -errno.EINVAL
    assert copy(tables, 1).result == -errno.EINVAL


def test_a_large_leaf_with_reserved_address_bits_is_refused() -> None:
    tables = build(4, [Leaf(0, GIB, span(2), 3)])
    at = next(i for i, value in enumerate(tables.memory) if value & LARGE)
    tables.memory[at] |= PAGE
    assert tables.walk()[0] == -errno.EINVAL
    assert tables.find([0])[0][0] == -errno.EINVAL


def test_a_table_that_cannot_be_read() -> None:
    tables = build(4, [Leaf(0, GIB, PAGE, 3)])
    tables.memory[tables.entry(tables.root, 1)] = 0x5000 | 3
    assert tables.walk()[0] == -errno.EFAULT
    assert copy(tables, 16).result == -errno.EFAULT


@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(3, 5))
@settings(max_examples=50)
def test_noise_never_leaves_the_arena(random: Random, pages: int, levels: int) -> None:
    tables = Tables(levels, pages, base=0)
    for i in range(pages * 512):
        tables.memory[i] = random.getrandbits(64) & ~0xFFFF_FFFF_8000
    assert validate(tables, MEMORY, 4)[0] <= 0


@pytest.mark.skipif(SANITIZE != "undefined", reason="this is the inner run")
def test_again_with_the_address_sanitizer() -> None:
    """All of this directory once more, every access outside an arena reported."""
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = os.environ | {
        "PKERNFS_DMA_SANITIZE": "address",
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent),
    ]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
