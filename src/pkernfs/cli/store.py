# SPDX-License-Identifier: GPL-2.0-only
"""The verbs for the content of a range: make, ls, check, dump."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pkernfs.errors import PkernfsError, UsageError

if TYPE_CHECKING:
    from pkernfs.cli.target import Target
    from pkernfs.store.check import CheckResult
    from pkernfs.store.inode import Inode
    from pkernfs.store.tree import Tree

_TARGET_HELP = (
    "An image file, FILE@OFFSET for a part of one, a region of this host, a mount point,"
    " or a range of memory as SIZE!START. Left out: the region of this host."
)
_Target = Annotated[str | None, typer.Argument(metavar="TARGET", help=_TARGET_HELP)]
_Offset = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Where in the file the range begins.")
]
_Size = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Size of the range: 8M, 4G, 0x200000.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("make")(make)
    app.command("ls")(ls)
    app.command("check")(check)
    app.command("dump")(dump)


def make(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="An image file, or a region that this host's boot line keeps for pkernfs, by"
            " name or as SIZE!START. Left out: the only region.",
        ),
    ] = None,
    size: _Size = None,
    offset: _Offset = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Physical address the range will have."),
    ] = None,
    label: Annotated[str, typer.Option(help="Name of the region, up to 31 bytes.")] = "",
    page_blocks: Annotated[
        int, typer.Option(metavar="N", help="Keep N blocks of 2 MiB for struct pages.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a store that is there. Its files are lost.")
    ] = False,
) -> None:
    """Make a new, empty store.

    A file that does not exist is created with the given --size. A range of memory can
    be made while the module is not loaded; with it, use 'mount -o init'.
    """
    from pkernfs.cli.target import reserved_range, resolve
    from pkernfs.host.ranges import parse_size
    from pkernfs.store.make import NewStore, open_new
    from pkernfs.store.make import make as make_store

    where = resolve(reserved_range(target), offset, size)
    if where.file is None:
        raise UsageError(
            f"{where.text} is held by the module",
            "pkernfs mount --init if it was never used, else modprobe -r pkernfs first",
        )
    if base is not None and where.base is not None:
        raise UsageError("a range SIZE!START says its address itself", "leave out --base")
    address = parse_size(base) if base is not None else where.base or 0
    new = NewStore(base=address, label=label, page_blocks=page_blocks)
    with open_new(where.file, where.offset, where.size) as buffer:
        make_store(buffer, new, force=force, used=where.base is not None)
        blocks = len(buffer)
    print(f"{where.text}: new store {new.uuid} of {blocks >> 20} MiB for a range at {address:#x}")


def check(
    target: _Target = None,
    offset: _Offset = None,
    size: _Size = None,
    json_: _Json = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Give up what is damaged, for good: the blocks it may own are free again."
            " Of a store that is not mounted, and only while no device reaches its memory.",
        ),
    ] = False,
) -> None:
    """Check a store, or without TARGET those of all regions.

    Without --repair it changes nothing, and can look at one that is mounted. Prints a line
    per finding and one that sums up. Exit status: 0 clean, 1 damaged, 2 not a store or not
    readable; of several stores, the worst. What a crash left over is no damage: the next
    mount clears it.
    """
    from pkernfs.store.regions import region_names

    if repair:
        _repair(target, offset, size, json_)
    targets: list[str | None] = [target]
    if target is None and len(names := region_names()) > 1:
        targets = [*names]
    worst = 0
    for one in targets:
        try:
            name, result = _check(one, offset, size)
        except PkernfsError as error:
            error.status = 2
            raise
        _show_check(name, result, json_)
        worst = max(worst, int(result.verdict))
    raise typer.Exit(worst)


def _repair(target: str | None, offset: str | None, size: str | None, as_json: bool) -> None:
    """Give up what is damaged, a line for each; exits with what a check says then."""
    from pkernfs.cli.target import reserved_range, resolve
    from pkernfs.store.repair import give_up, open_writable

    if as_json:
        raise UsageError("--repair prints no JSON", "'pkernfs check --json' does, before and after")
    where = resolve(reserved_range(target), offset, size)
    if where.file is None:
        raise UsageError(
            f"{where.text} is held by the module",
            "umount it and modprobe -r pkernfs first, then name it again",
        )
    exact = where.size is not None or where.offset == 0
    with open_writable(where.file, where.offset, where.size) as buffer:
        result, given_up = give_up(buffer, base=where.base, exact=exact)
    for slot in given_up:
        print(f"given up: {slot}")
    _show_check(where.text, result, as_json=False)
    raise typer.Exit(int(result.verdict))


def _show_check(name: str, result: CheckResult, as_json: bool) -> None:
    """One store's result: a JSON document in a line, or lines of text."""
    if as_json:
        from pkernfs.store.export import check_value

        print(json.dumps({"schema": "pkernfs-check/1", "target": name} | check_value(result)))
        return
    for finding in result.findings:
        print(finding)
    print(f"{name}: {_summary(result)}")


def dump(
    target: _Target = None,
    offset: _Offset = None,
    size: _Size = None,
    json_: Annotated[bool, typer.Option("--json", help="The only format; may be left out.")] = True,
) -> None:
    """Print everything that a store says, as JSON."""
    from pkernfs.store.export import dump_value

    name, result = _check(target, offset, size)
    print(json.dumps({"target": name} | dump_value(result), indent=1))


def ls(
    target: _Target = None,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="In the store; default: its root.")
    ] = "",
    long: Annotated[
        bool, typer.Option("--long", "-l", help="With sizes, and where the blocks lie.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="All below PATH.")] = False,
    offset: _Offset = None,
    size: _Size = None,
    json_: _Json = False,
) -> None:
    """List files in a store, mounted or not.

    With -l a line per file: mode, owner, group, bytes, extents, time of change, name;
    and a line per extent: offset in the file, size, physical addresses.
    """
    from pkernfs.cli.target import resolve

    where = resolve(target, offset, size)
    tree = _readable(_run_check(where))
    found = _listed(tree, path or where.path, recursive)
    if json_:
        from pkernfs.store.export import inode_value

        print(json.dumps([inode_value(tree, inode) for _, inode in found], indent=1))
        return
    for name, inode in found:
        print(_long_line(name, inode) if long else name)
        if long:
            _print_extents(tree, inode)


def _check(target: str | None, offset: str | None, size: str | None) -> tuple[str, CheckResult]:
    from pkernfs.cli.target import resolve

    where = resolve(target, offset, size)
    return where.text, _run_check(where)


def _run_check(where: Target) -> CheckResult:
    from pkernfs.store.check import check as check_image

    with where.open() as image:
        return check_image(image)


def _readable(result: CheckResult) -> Tree:
    if result.tree is None:
        raise PkernfsError(result.findings[0].text, "'pkernfs check' says more")
    if result.verdict:
        print("warning: the store is damaged, see 'pkernfs check'", file=sys.stderr)
    return result.tree


def _listed(tree: Tree, path: str, recursive: bool) -> list[tuple[str, Inode]]:
    from pkernfs.store.inode import Kind
    from pkernfs.store.tree import shown

    start = tree.lookup(path)
    if start.kind is not Kind.DIRECTORY:
        return [(tree.path(start.ino) or "", start)]
    if recursive:
        return list(tree.walk(start))[1:]
    return [(shown(inode.name), inode) for inode in tree.entries(start)]


def _long_line(name: str, inode: Inode) -> str:
    import stat
    from datetime import UTC, datetime

    from pkernfs.store.tree import shown

    try:
        changed = datetime.fromtimestamp(inode.mtime_ns // 10**9, UTC).strftime("%F %T")
    except (ValueError, OverflowError):
        changed = f"{inode.mtime_ns} ns"
    target = f" -> {shown(inode.target)}" if inode.target else ""
    return (
        f"{stat.filemode(inode.mode)} {inode.uid:5} {inode.gid:5} {inode.size:15}"
        f" {len(inode.extents):5} {changed} {name}{target}"
    )


def _print_extents(tree: Tree, inode: Inode) -> None:
    from pkernfs.store.export import extent_value

    for extent in inode.extents:
        value = extent_value(tree.store, extent)
        first, end = value["address"], value["address"] + value["size"]
        print(f"    {value['offset']:#012x} {value['size'] >> 20:8} MiB {first:#x}-{end - 1:#x}")


def _summary(result: CheckResult) -> str:
    from collections import Counter

    from pkernfs.store.findings import Severity

    counts = Counter(finding.severity for finding in result.findings)
    # Of one slot there may be several.
    counts.pop(Severity.DAMAGE, None)
    parts = [_count(number, str(name)) for name, number in counts.items()]
    if result.tree is not None:
        if result.tree.quarantined:
            parts.append(f"{_count(len(result.tree.quarantined), 'slot')} left out")
        usage = result.tree.usage()
        parts += [
            _count(usage.files, "file"),
            _count(usage.directories, "director", "y", "ies"),
            _count(usage.symlinks, "symlink"),
            f"{usage.free_blocks} of {usage.blocks} blocks free",
        ]
    return ", ".join([str(result.verdict), *parts])


def _count(number: int, name: str, one: str = "", many: str = "s") -> str:
    return f"{number} {name}{one if number == 1 else many}"
