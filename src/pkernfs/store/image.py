# SPDX-License-Identifier: GPL-2.0-only
"""The bytes of a store, wherever they are. Nothing here writes."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import compress
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from pkernfs.errors import PkernfsError
from pkernfs.store.layout import BLOCK_SIZE, HEADER_SLOT, SLOT_SIZE, WORD

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap
_T = TypeVar("_T")

#: Where the module shows its regions.
REGIONS: Final = Path("/sys/fs/pkernfs")

_CACHED_BLOCKS: Final = 16
_ATTEMPTS: Final = 20


class Image:
    """A store's range as bytes that may change while they are looked at.

    Every slot is therefore copied once and judged by that copy.

    :param buffer: the range; is not written to.
    :param base: physical address of the range, None if it isn't known.
    :param exact: the buffer is the whole range; else the range begins with the buffer,
        and the super block says how long it is.
    """

    def __init__(self, buffer: Buffer, *, base: int | None = None, exact: bool = True) -> None:
        self._view = memoryview(buffer).cast("B").toreadonly()
        self.size = len(self._view)
        self.base = base
        self.exact = exact

    def close(self) -> None:
        """Let go of the buffer."""
        self._view.release()

    def slot(self, number: int) -> bytes:
        """A copy of a slot; shorter than a slot, or empty, beyond the end.

        :param number: counted from the start of the range.
        """
        start = number * SLOT_SIZE
        return bytes(self._bytes(start, start + SLOT_SIZE))

    def used_slots(self, block: int) -> list[int]:
        """Indices of the slots before the header whose first word is not zero.

        :param block: must lie in the image.
        """
        start = block * BLOCK_SIZE
        words = self._bytes(start, start + BLOCK_SIZE).cast("Q")
        first = words[:: SLOT_SIZE // WORD.size].tolist()
        return list(compress(range(HEADER_SLOT), first))

    def sequence(self) -> int:
        """A number that changes when the metadata do, as far as that can be known."""
        return 0

    def _bytes(self, start: int, end: int) -> memoryview:
        return self._view[start:end]


class RegionImage(Image):
    """The metadata of a region that the loaded module holds, through sysfs.

    The attribute ``metadata`` has the size of the region, its data blocks read as zero.
    ``sequence`` changes with every change of the metadata.

    :param directory: of the region in sysfs.
    :raises PkernfsError: an attribute can't be read.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(b"")
        self._directory = directory
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._seen = -1
        self.base = self._number("base")
        self.size = self._number("size") or 0
        try:
            self._fd = os.open(directory / "metadata", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(directory / "metadata", error) from error

    def close(self) -> None:
        os.close(self._fd)
        super().close()

    def sequence(self) -> int:
        number = self._number("sequence")
        if number != self._seen:
            self._blocks.clear()
            self._seen = number
        return number

    def _number(self, name: str) -> int:
        path = self._directory / name
        try:
            return int(path.read_text(encoding="ascii"), 0)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _bytes(self, start: int, end: int) -> memoryview:
        block, offset = divmod(start, BLOCK_SIZE)
        if block not in self._blocks:
            self._blocks[block] = self._read(block * BLOCK_SIZE)
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return memoryview(self._blocks[block])[offset : offset + end - start]

    def _read(self, start: int) -> bytes:
        # sysfs gives a page at a time (fs/kernfs/file.c, kernfs_file_read_iter).
        data = bytearray()
        try:
            while len(data) < BLOCK_SIZE:
                piece = os.pread(self._fd, BLOCK_SIZE - len(data), start + len(data))
                if not piece:
                    break
                data += piece
        except OSError as error:
            raise _unreadable(self._directory / "metadata", error) from error
        return bytes(data.ljust(BLOCK_SIZE, b"\0")) if start < self.size else b""


def _unreadable(path: Path, error: Exception) -> PkernfsError:
    return PkernfsError(f"{path}: {error}", "run as root, with the module pkernfs loaded")


def consistent(image: Image, read: Callable[[], _T]) -> _T:
    """The result of ``read``, made while the metadata did not change.

    :param read: reads from ``image``; is called again when they did.
    :raises PkernfsError: they kept changing.
    """
    for _ in range(_ATTEMPTS):
        before = image.sequence()
        result = read()
        if image.sequence() == before:
            return result
    raise PkernfsError("the store keeps changing while it is read", "try again when it is quieter")


@contextmanager
def open_image(
    path: Path | str, offset: int = 0, size: int | None = None, *, base: int | None = None
) -> Iterator[Image]:
    """Map a file, or a part of it, for reading.

    :param path: an image, the file behind a virtual host's RAM, or /dev/mem.
    :param offset: byte at which the range begins, a multiple of the page size.
    :param size: bytes; None: up to the end of the file. Without a size and with an
        offset the file may go on behind the range.
    :param base: physical address of the range, None if it isn't known.
    :raises PkernfsError: the file can't be opened, or ends before the range does.
    """
    with ExitStack() as stack:
        buffer = _map(Path(path), offset, size, stack)
        image = Image(buffer, base=base, exact=size is not None or offset == 0)
        stack.callback(image.close)
        yield image


def _map(path: Path, offset: int, size: int | None, stack: ExitStack) -> Buffer:
    try:
        with path.open("rb", buffering=0) as file:
            length = mapped_length(path, os.fstat(file.fileno()).st_size, offset, size)
            if not length:
                return b""
            mapping = mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ, offset=offset)
            # A slot here and there is read: with what the kernel reads ahead of each, a large
            # sparse file would fill all of memory with its holes.
            mapping.madvise(mmap.MADV_RANDOM)
            return stack.enter_context(mapping)
    except OSError as error:
        raise cannot_map(path, error) from error


def mapped_length(path: Path, end: int, offset: int, size: int | None) -> int:
    """How many bytes of a file a range has.

    :param end: size of the file, bytes.
    :param offset: byte at which the range begins.
    :param size: what was asked for; None: up to the end of the file.
    :raises PkernfsError: the file ends before, or the offset can't be mapped.
    """
    if offset % mmap.PAGESIZE or offset < 0:
        raise PkernfsError(
            f"{path}: offset {offset:#x} is not a multiple of {mmap.PAGESIZE}", status=2
        )
    if path.is_char_device():
        if size is None:
            raise PkernfsError(f"{path} has no size of its own", "give --size", status=2)
        return size
    if offset > end or (size is not None and offset + size > end):
        raise PkernfsError(
            f"{path} has {end} bytes, it ends before the range does", "check --offset and --size"
        )
    return end - offset if size is None else size


def cannot_map(path: Path, error: OSError) -> PkernfsError:
    """What a failed open or mmap means, with what to do about it."""
    if path != Path("/dev/mem"):
        return PkernfsError(f"{path}: {error.strerror or error}")
    return PkernfsError(
        f"/dev/mem: {error.strerror or error}",
        "a range that the module holds can't be read this way (IO_STRICT_DEVMEM): name its region"
        if isinstance(error, PermissionError)
        else "the kernel has no /dev/mem (CONFIG_DEVMEM); load the module and name its region",
    )
