# SPDX-License-Identifier: GPL-2.0-only
"""Every sequence of two operations, stopped after each store to the range."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable

import pytest

from pkernfs.store.layout import BLOCK_SIZE
from tests.conftest import Tell
from tests.native import Line, Native, available

from .crash import CrashedRange, Step, record

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler")

FILE, DIRECTORY, SYMLINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
#: What whoever maps a file may leave behind its end.
DIRT = b"\xff" * 4096


class Scene:
    """Where an operation finds what it works on.

    :param lines: the store at this moment.
    :param other: prefer another file than the first one.
    """

    def __init__(self, lines: tuple[Line, ...], *, other: bool) -> None:
        self.lines = lines
        self.other = other

    def free_name(self) -> str:
        paths = {line.path for line in self.lines}
        return next(path for number in range(9) if (path := f"/d/n{number}") not in paths)

    def files(self) -> list[Line]:
        found = [line for line in self.lines if stat.S_ISREG(line.mode) and line.path[1] != "x"]
        found.sort(key=lambda line: line.ino)
        return found[1:] + found[:1] if self.other else found

    def file(self) -> Line:
        return self.files()[0]

    def empty_directory(self) -> str:
        return next(
            line.path
            for line in reversed(self.lines)
            if stat.S_ISDIR(line.mode)
            and not any(other.path.startswith(line.path + "/") for other in self.lines)
        )


def create(scene: Scene) -> list[Step]:
    path = scene.free_name()
    return [Step(lambda n: n.create(path, FILE))]


def mkdir(scene: Scene) -> list[Step]:
    path = scene.free_name()
    return [Step(lambda n: n.create(path, DIRECTORY))]


def symlink(scene: Scene) -> list[Step]:
    path = scene.free_name()
    return [Step(lambda n: n.create(path, SYMLINK, "a/target"))]


def write_extend(scene: Scene) -> list[Step]:
    """Blocks and size come in one step, then the data."""
    file = scene.file()
    data = b"written " * 100
    first = file.size // BLOCK_SIZE
    count = (file.size + BLOCK_SIZE) // BLOCK_SIZE - first + 1

    def extend(native: Native) -> None:
        native.allocate(file.path, first, count, file.size + BLOCK_SIZE)
        exposed = native.read(file.path, file.size, BLOCK_SIZE)
        assert not exposed.strip(b"\0"), "what lay behind the end can be read"

    write = Step(lambda n: n.write(file.path, file.size, data), data_of=file.path)
    return [Step(extend), write]


def truncate_up(scene: Scene) -> list[Step]:
    file = scene.file()

    def extend(native: Native) -> None:
        native.resize(file.path, file.size + 5000)
        exposed = native.read(file.path, file.size, 5000)
        assert not exposed.strip(b"\0"), "what lay behind the end can be read"

    return [Step(extend)]


def truncate_down(scene: Scene) -> list[Step]:
    file = scene.file()
    size = max(0, file.size - BLOCK_SIZE - 1000)
    return [Step(lambda n: n.resize(file.path, size))]


def punch(scene: Scene) -> list[Step]:
    file = scene.file()
    return [Step(lambda n: n.punch(file.path, 1, 1))]


def rename(scene: Scene) -> list[Step]:
    path, name = scene.file().path, scene.free_name()
    return [Step(lambda n: n.rename(path, name))]


def rename_over(scene: Scene) -> list[Step]:
    old, new = (line.path for line in scene.files()[:2])
    return [Step(lambda n: n.rename(old, new))]


def unlink(scene: Scene) -> list[Step]:
    path = scene.file().path
    return [Step(lambda n: n.unlink(path))]


def rmdir(scene: Scene) -> list[Step]:
    path = scene.empty_directory()
    return [Step(lambda n: n.unlink(path))]


OPERATIONS: tuple[Callable[[Scene], list[Step]], ...] = (
    create,
    write_extend,
    truncate_up,
    truncate_down,
    punch,
    rename,
    rename_over,
    unlink,
    mkdir,
    rmdir,
    symlink,
)


def plain(native: Native) -> None:
    """A few files with holes, data, and dirt behind their ends."""
    native.create("/d", DIRECTORY)
    native.create("/d/e1", DIRECTORY)
    native.create("/d/e2", DIRECTORY)
    for name, size in (("/a", 4 * BLOCK_SIZE - 3000), ("/d/b", BLOCK_SIZE + 7), ("/d/c", 100)):
        native.create(name, FILE)
        native.write(name, size - 50, b"e" * 50)
        native.write(name, 0, b"b" * 50)
        dirty_end(native, name)
    native.create("/d/s", SYMLINK, "target")


def dirty_end(native: Native, path: str) -> None:
    """As a mapping of the last block lets anyone do."""
    line = next(line for line in native.dump() if line.path == path)
    native.write(path, line.size, DIRT)
    native.resize(path, line.size)
    # The shrink has cleared the last page only up to its end.
    _, block, count = (int(part) for part in line.rest.split(",")[-1].split(":"))
    start = (block + count - 1) * BLOCK_SIZE + line.size % BLOCK_SIZE
    native.poke(start, DIRT[: BLOCK_SIZE - line.size % BLOCK_SIZE])


def crowded(native: Native) -> None:
    """The next inode needs another metadata block."""
    plain(native)
    native.create("/x", DIRECTORY)
    blocks = native.usage().blocks
    start = native.log_size()
    number = 0
    while native.usage().blocks == blocks:
        start = native.log_size()
        native.create(f"/x/{number}", FILE)
        number += 1
    native.close()
    native.rollback(start)
    native.open()


def emptying(native: Native) -> None:
    """The second metadata block has one inode left, that of the first file."""
    native.create("/x", DIRECTORY)
    for number in range(507):
        native.create(f"/x/{number}", FILE)
    plain(native)
    for number in range(507):
        native.unlink(f"/x/{number}")
    for line in native.dump():
        if line.path not in ("/", "/x", "/a"):
            native.chmod(line.path, line.mode)


def paged(native: Native) -> None:
    """A file with extent pages, so that one step writes several slots."""
    plain(native)
    native.resize("/a", 0)
    native.allocate("/a", 0, 2 * 340, 2 * 340 * BLOCK_SIZE)
    for number in range(339):
        native.punch("/a", 2 * number + 1 if number else 679, 1)
    native.write("/a", 0, b"paged")


#: Name -> (blocks of the range, what makes the content).
SCENES: dict[str, tuple[int, Callable[[Native], None]]] = {
    "plain": (16, plain),
    "crowded": (16, crowded),
    "emptying": (16, emptying),
    "paged": (800, paged),
}


def sweep(scene: str, *, every: int = 1, other: bool = False) -> int:
    """Every sequence of two operations, or each ``every``-th of them.

    :returns: number of images.
    """
    blocks, prepare = SCENES[scene]
    with Native(blocks) as native, Native(blocks) as second:
        native.make()
        with native.opened():
            prepare(native)
        start = native.log_size()
        crashed = CrashedRange(second)
        crashed.copy_from(native)
        for pair in list(itertools.product(OPERATIONS, repeat=2))[::every]:
            native.rollback(start)
            try:
                with crashed.undone(), native.opened():
                    for index, operation in enumerate(pair):
                        now = Scene(native.dump(), other=other and index == 1)
                        for recorded in record(native, operation(now)):
                            crashed.replay(recorded)
            except AssertionError as error:
                names = ", ".join(operation.__name__ for operation in pair)
                raise AssertionError(f"{scene}, {names}: {error}") from error
        return crashed.images


@pytest.mark.parametrize("scene", SCENES)
def test_some_crashes(scene: str) -> None:
    assert sweep(scene, every=31) > 50


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_all_crashes(tell: Tell) -> None:
    images = {scene: sweep(scene) for scene in SCENES}
    images["plain, two files"] = sweep("plain", other=True)
    tell(f"{sum(images.values())} crash images: {images}")
    assert sum(images.values()) > 5000
