# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's metadata code in user space: kernel/tests/native.h from Python.

Every store of that code to its range is recorded, so that a test can make the memory
that a crash between any two of them leaves.
"""

from __future__ import annotations

import ctypes
import errno
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pkernfs.store.layout import BLOCK_SIZE

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "kernel" / "tests"
LIBRARY = ROOT / "build" / "kernel-tests" / "libpkernfs_native.so"


class Kind(IntEnum):
    """What a recorded store is; the values of ``enum pkn_kind``."""

    WORD = 0
    BODY = 1
    ZERO = 2
    DATA = 3


@dataclass(frozen=True, slots=True)
class Store:
    """One recorded store.

    :ivar offset: bytes from the start of the range.
    :ivar data: what was stored.
    """

    offset: int
    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """One inode as the C code sees it.

    :ivar mode: kind and permissions.
    :ivar size: bytes.
    :ivar rest: target of a symlink, or extents as file_block:block:count with commas.
    """

    path: str
    ino: int
    mode: int
    size: int
    rest: str


class _Entry(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("old", ctypes.POINTER(ctypes.c_ubyte)),
        ("new", ctypes.POINTER(ctypes.c_ubyte)),
    )


class Usage(ctypes.Structure):
    """``struct pkernfs_usage``: blocks of 2 MiB and inodes, all and free."""

    blocks: int
    blocks_free: int
    blocks_limbo: int
    nodes: int
    nodes_free: int
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("blocks", "blocks_free", "blocks_limbo", "nodes", "nodes_free")
    )


_U32, _U64, _TEXT, _HANDLE = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p

#: Function of native.h -> types of its parameters after the handle, and of its result.
_SIGNATURES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "free": ((), None),
    "memory": ((), _HANDLE),
    "said": ((), _TEXT),
    "record": ((ctypes.c_bool,), None),
    "log_size": ((), _U64),
    "log_entry": ((_U64, ctypes.POINTER(_Entry)), None),
    "rollback": ((_U64,), None),
    "poke": ((_U64, _TEXT, _U32), None),
    "keep": ((), None),
    "restore": ((), None),
    "make": ((_TEXT, _U32, ctypes.c_bool), ctypes.c_int),
    "open": ((), ctypes.c_int),
    "close": ((), None),
    "usage": ((ctypes.POINTER(Usage),), None),
    "set_busy": ((_U32, ctypes.c_bool), None),
    "create": ((_TEXT, _U32, _TEXT), ctypes.c_int),
    "unlink": ((_TEXT, ctypes.c_bool, ctypes.POINTER(_U64)), ctypes.c_int),
    "release": ((_U64,), ctypes.c_int),
    "rename": ((_TEXT, _TEXT), ctypes.c_int),
    "resize": ((_TEXT, _U64), ctypes.c_int),
    "punch": ((_TEXT, _U32, _U32), ctypes.c_int),
    "allocate": ((_TEXT, _U32, _U32, _U64), ctypes.c_int),
    "chmod": ((_TEXT, _U32), ctypes.c_int),
    "write": ((_TEXT, _U64, _TEXT, _U32), ctypes.c_int),
    "read": ((_TEXT, _U64, ctypes.c_char_p, _U32), ctypes.c_int),
    "digest": ((_TEXT,), _U32),
    "dump": ((ctypes.c_char_p, _U64), _U64),
}


def available() -> bool:
    """Whether the library can be built here."""
    return bool(shutil.which("cc") and shutil.which("make"))


@cache
def library() -> dict[str, Callable[..., Any]]:
    """The functions of native.h by their name without ``pkn_``; built when needed.

    :raises subprocess.CalledProcessError: it does not compile.
    """
    subprocess.run(["make", "-s", "-C", SOURCES, "library"], check=True)
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.pkn_new.argtypes = [_U32, _U64]
    loaded.pkn_new.restype = _HANDLE
    functions: dict[str, Callable[..., Any]] = {"new": loaded.pkn_new}
    for name, (parameters, result) in _SIGNATURES.items():
        function = getattr(loaded, f"pkn_{name}")
        function.argtypes = [_HANDLE, *parameters]
        function.restype = result
        functions[name] = function
    return functions


class Native:
    """A range in ordinary memory, and the store in it while one is open.

    Its methods raise :class:`OSError` with the errno of the C code.

    :param blocks: of 2 MiB.
    :param base: physical address that the range is said to have.
    """

    def __init__(self, blocks: int, base: int = 0) -> None:
        self._calls = library()
        self._handle: int = self._calls["new"](blocks, base)
        self.size = blocks * BLOCK_SIZE
        self.memory = (ctypes.c_ubyte * self.size).from_address(self._call("memory"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call("free")

    def _call(self, name: str, *arguments: object) -> Any:
        return self._calls[name](self._handle, *arguments)

    def _do(self, name: str, *arguments: object) -> None:
        status: int = self._call(name, *arguments)
        if status:
            text = f"{name}: {errno.errorcode.get(-status, status)} {self.said()}"
            raise OSError(-status, text.strip())

    def make(self, label: str = "test", page_blocks: int = 0, *, force: bool = False) -> None:
        """Make a store in the range."""
        self._do("make", label.encode(), page_blocks, force)

    def open(self) -> None:
        """Open the store as a mount does."""
        self._do("open")

    def close(self) -> None:
        """Forget the store; nothing is written."""
        self._call("close")

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """The store open, and closed again after."""
        self.open()
        try:
            yield self
        finally:
            self.close()

    def said(self) -> str:
        """Everything that was told since the last time."""
        text: bytes = self._call("said")
        return text.decode()

    def log_size(self) -> int:
        """Number of stores that were recorded."""
        return int(self._call("log_size"))

    def stores(self, start: int, end: int) -> list[Store]:
        """Recorded stores, by their index."""
        result = []
        entry = _Entry()
        for index in range(start, end):
            self._call("log_entry", index, ctypes.byref(entry))
            data = ctypes.string_at(entry.new, entry.bytes)
            result.append(Store(entry.offset, Kind(entry.kind), data))
        return result

    def rollback(self, size: int) -> None:
        """Undo all recorded stores but the first ``size``; the store must be closed."""
        self._call("rollback", size)

    def poke(self, offset: int, data: bytes) -> None:
        """Store something; recorded like all else.

        :param offset: bytes from the start of the range.
        """
        self._call("poke", offset, data, len(data))

    def usage(self) -> Usage:
        """What statfs shows."""
        usage = Usage()
        self._call("usage", ctypes.byref(usage))
        return usage

    def create(self, path: str, mode: int, target: str | None = None) -> None:
        """Create a file, directory or symlink, after the kind in ``mode``."""
        self._do("create", path.encode(), mode, target.encode() if target else None)

    def unlink(self, path: str) -> None:
        """Remove what nobody has open."""
        self._do("unlink", path.encode(), False, None)

    def rename(self, old: str, new: str) -> None:
        """Rename, over what is there."""
        self._do("rename", old.encode(), new.encode())

    def resize(self, path: str, size: int) -> None:
        """Truncate, either way."""
        self._do("resize", path.encode(), size)

    def punch(self, path: str, file_block: int, count: int) -> None:
        """Take whole blocks away."""
        self._do("punch", path.encode(), file_block, count)

    def allocate(self, path: str, file_block: int, count: int, new_size: int = 0) -> None:
        """Fill holes, and raise the size."""
        self._do("allocate", path.encode(), file_block, count, new_size)

    def chmod(self, path: str, mode: int) -> None:
        """Set permissions."""
        self._do("chmod", path.encode(), mode)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write as the module does: blocks and size first, then the data."""
        self._do("write", path.encode(), offset, data, len(data))

    def read(self, path: str, offset: int, count: int) -> bytes:
        """Bytes of a file, whether or not they are within its size."""
        buffer = ctypes.create_string_buffer(count)
        self._do("read", path.encode(), offset, buffer, count)
        return buffer.raw

    def digest(self, path: str) -> int:
        """CRC-32 of a file's content; of its pages that are not zero."""
        return int(self._call("digest", path.encode()))

    def dump(self) -> tuple[Line, ...]:
        """All inodes, directories before what is in them."""
        size: int = self._call("dump", None, 0)
        buffer = ctypes.create_string_buffer(size + 1)
        self._call("dump", buffer, size)
        fields = [line.split("\t") for line in buffer.value.decode("ascii").splitlines()]
        return tuple(
            Line(unescaped(path), int(ino), int(mode, 8), int(length), unescaped(rest))
            for path, ino, mode, length, rest in fields
        )


def unescaped(text: str) -> str:
    """What ``dump_text()`` of native_paths.c was given, a character per byte."""
    return re.sub(r"\\x(..)", lambda match: chr(int(match[1], 16)), text)
