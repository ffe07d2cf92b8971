# SPDX-License-Identifier: GPL-2.0-only
"""Memory that a device can be given: a mapped file (of pkernfs, usually) or plain pages."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from pathlib import Path
from typing import Self

from pkernfs.errors import PkernfsError
from pkernfs.vfio.closing import Closing


class Memory(Closing):
    """A shared, writable mapping with a known address; a context manager.

    :ivar view: its bytes. Slices of it keep the mapping alive; release them first.
    :ivar address: its virtual address.
    :ivar size: bytes.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.size = len(mapping)
        # from_buffer holds an export of the mapping, so it is dropped once the address is known.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self.view = memoryview(mapping)

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """Zeroed memory of this process only. It does not survive a kexec.

        :param size: bytes, a multiple of the page size.
        """
        return cls(mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))

    @classmethod
    def of_file(cls, path: Path, *, size: int | None = None, offset: int = 0) -> Self:
        """The pages of a file, as they are.

        :param size: bytes; None for the rest of the file.
        :param offset: where in the file, bytes, a multiple of the page size.
        :raises PkernfsError: the file is missing or smaller than that.
        """
        try:
            with path.open("r+b") as file:
                length = path.stat().st_size - offset if size is None else size
                return cls(mmap.mmap(file.fileno(), length, mmap.MAP_SHARED, offset=offset))
        except (OSError, ValueError) as error:
            raise PkernfsError(f"can't map {path}: {error}") from error

    @classmethod
    def create_file(cls, path: Path, size: int) -> Self:
        """A new file of ``size`` zero bytes (or an old one cut or grown to it), mapped.

        :raises PkernfsError: there is no room for it.
        """
        try:
            with path.open("a+b") as file:
                file.truncate(size)
        except OSError as error:
            raise PkernfsError(f"can't make {path} of {size} bytes: {error.strerror}") from error
        return cls.of_file(path, size=size)

    def close(self) -> None:
        """Give the mapping back. DMA maps of it must be gone before."""
        self.view.release()
        # A slice that somebody still holds keeps the pages; that is harmless.
        with contextlib.suppress(BufferError):
            self._mapping.close()
