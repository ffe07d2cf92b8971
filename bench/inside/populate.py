# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host: what it costs to allocate memory in a file, and to touch all of it.

``populate.py PATH SIZE ALIGN SHIFT``. Makes the file, allocates it, maps it at an address
that is a multiple of ALIGN plus SHIFT, writes a byte into each page. Prints the kernel's
own counters of this process as JSON: faults, bytes of page tables. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import sys
from pathlib import Path

from marks import span  # type: ignore[import-not-found]

_PAGE = 4096
_MAP_FIXED = 0x10  # include/uapi/asm-generic/mman-common.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def _map(fd: int, size: int, align: int, shift: int) -> int:
    """Map all of the file; the address."""
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    reserve = _LIBC.mmap(None, size + 2 * align, 0, private, -1, 0)
    start = -(-reserve // align) * align + shift
    where = _LIBC.mmap(start, size, prot, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
    if where != start:
        raise SystemExit(f"mmap: {os.strerror(ctypes.get_errno())}")
    return int(start)


def _tables() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmPTE:"))


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def main() -> None:
    """See the module."""
    path, size, align, shift = sys.argv[1], *(int(word) for word in sys.argv[2:5])
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with span("allocate"):
        os.posix_fallocate(fd, 0, size)
    start = _map(fd, size, align, shift)
    view = memoryview((ctypes.c_char * size).from_address(start)).cast("B")[::_PAGE]
    ones = memoryview(b"\1" * (size // _PAGE))
    tables, faults = _tables(), _faults()
    with span("touch"):
        view[:] = ones
    print(json.dumps({"faults": _faults() - faults, "tables": _tables() - tables}))


if __name__ == "__main__":
    main()
