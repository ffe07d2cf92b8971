# SPDX-License-Identifier: GPL-2.0-only
"""A tree of files in a host's store, to tell whether anything in it has changed."""

from __future__ import annotations

from pkernfs.lab.machine import Machine

# Files around the borders of pages and blocks, and every kind of entry.
_MAKE = r"""
import os
os.chdir("/mnt/pkernfs")
os.makedirs("tree/a/b/c")
os.makedirs("tree/a/with space")
os.mkdir("tree/empty")
def fill(path, size):
    with open(path, "wb") as file:
        file.write(os.urandom(size))
for size in (0, 1, 4095, 4096, 4097, 2097151, 2097152, 2097153, 7340033):
    fill(f"tree/a/{size}", size)
fill("large", 40 << 20)
with open("tree/sparse", "wb") as file:
    file.truncate(9437184)
    file.seek(9437181)
    file.write(b"end")
os.symlink("../a/4096", "tree/a/link")
os.chmod("tree/a/1", 0o640)
os.chown("tree/a/b", 12, 34)
os.utime("tree/a/b/c", ns=(981_173_106_789_000_000, 981_173_106_789_000_001))
for number in range(40):
    fill(f"tree/a/b/file{number}", number)
os.rename("tree/a/4097", "tree/renamed")
os.remove("tree/a/b/file7")
"""

_DESCRIBE = r"""
import hashlib, os, stat
os.chdir("/mnt/pkernfs")
paths = ["large"]
for top, names, files in os.walk("tree"):
    paths += [os.path.join(top, name) for name in names + files]
for path in sorted(paths):
    found = os.lstat(path)
    content = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    owner = (found.st_uid, found.st_gid)
    print(path, oct(found.st_mode), owner, found.st_size, found.st_mtime_ns, content)
"""


def make(host: Machine) -> None:
    """Make the tree, once.

    :raises PkernfsError: it could not be made.
    """
    _python(host, _MAKE)


def describe(host: Machine) -> list[str]:
    """A line for each entry: name, mode, owner, size, time, digest of what is in it.

    :raises PkernfsError: it can't be read.
    """
    return _python(host, _DESCRIBE)


def _python(host: Machine, script: str) -> list[str]:
    return host.run(["python3", "-I", "-S", "-c", script]).check().stdout.splitlines()
