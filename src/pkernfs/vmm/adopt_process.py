# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU behind a QMP socket: which process it is, and how it was started."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.vmm import taps

_DELETED = " (deleted)"


@dataclass(frozen=True)
class Mapping:
    """A part of a file that a process has in its memory.

    :ivar size: bytes of it that are mapped, all mappings of the file together.
    :ivar shared: whether what is written there gets into the file.
    """

    path: Path
    size: int
    shared: bool


@dataclass(frozen=True)
class Found:
    """A QEMU that runs.

    :ivar arguments: its command line without the program.
    :ivar directory: its working directory now.
    :ivar files: what its descriptors are, as /proc has it.
    :ivar taps: names of network interfaces, by descriptor.
    """

    pid: int
    program: Path
    arguments: tuple[str, ...]
    directory: Path
    uid: int
    gid: int
    files: dict[int, str] = field(default_factory=dict)
    taps: dict[int, str] = field(default_factory=dict)
    mappings: tuple[Mapping, ...] = ()


def find(path: Path) -> int:
    """Process id of the QEMU that listens on a unix socket.

    The kernel names the process that made the socket listen (SO_PEERCRED, unix(7)). That
    is QEMU itself, or whoever started it and passed the socket on, as libvirt does: then
    the one that has the socket open is looked for.

    :raises PkernfsError: nobody listens there, or no QEMU does.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError as error:
        raise PkernfsError(
            f"nobody answers at {path}: {error.strerror or error}",
            "QEMU's QMP socket: -qmp unix:PATH,server=on,wait=off",
        ) from error
    pid = int(struct.unpack("3i", credentials)[0])
    if _is_qemu(pid):
        return pid
    holders = [other for other in _holders(path) if _is_qemu(other)]
    if len(holders) != 1:
        raise PkernfsError(
            f"{len(holders)} processes of QEMU have {path} open", "name the socket of one guest"
        )
    return holders[0]


def _is_qemu(pid: int) -> bool:
    try:
        return "qemu" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False


def _holders(path: Path) -> list[int]:
    """Processes that have a listening socket of this path open."""
    inodes = set()
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and Path(fields[7]) == path.absolute():
            inodes.add(f"socket:[{fields[6]}]")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and inodes & set(_files(int(entry.name)).values()):
            found.append(int(entry.name))
    return found


def _files(pid: int) -> dict[int, str]:
    found = {}
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = str(entry.readlink())
    return found


def parse_maps(text: str, root: Path = Path("/")) -> tuple[Mapping, ...]:
    """Files in a process's memory, from /proc/PID/maps (proc_pid_maps(5)).

    :param root: the process's root directory, as seen from here.
    """
    sizes: dict[tuple[str, bool], int] = {}
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith("/"):
            continue
        first, last = (int(number, 16) for number in fields[0].split("-"))
        key = fields[5], fields[1][3] == "s"
        sizes[key] = sizes.get(key, 0) + last - first
    return tuple(
        Mapping(_inside(Path(path), root), size, shared) for (path, shared), size in sizes.items()
    )


def _inside(path: Path, root: Path) -> Path:
    """A path as the process has it. Another mount namespace, as libvirt makes, may be a chroot."""
    return Path("/") / path.relative_to(root) if path.is_relative_to(root) else path


def _link(path: Path, root: Path) -> Path:
    """What is linked to, also if it was replaced on the disk since."""
    return _inside(Path(str(path.readlink()).removesuffix(_DELETED)), root)


def read(pid: int) -> Found:
    """How a QEMU was started, and what it has open.

    :raises PkernfsError: it is gone, or this is not allowed.
    """
    home = Path(f"/proc/{pid}")
    try:
        words = home.joinpath("cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        status = home.joinpath("status").read_text(encoding="utf-8")
        files = _files(pid)
        root = (home / "root").readlink()
        # The effective ids are the second ones (proc_pid_status(5)).
        ids = [
            int(re.search(rf"^{name}:\s+\d+\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
            for name in ("Uid", "Gid")
        ]
        return Found(
            pid=pid,
            program=_link(home / "exe", root),
            arguments=tuple(os.fsdecode(word) for word in words[1:]),
            directory=_link(home / "cwd", root),
            uid=ids[0],
            gid=ids[1],
            files=files,
            taps=taps.by_descriptor(pid),
            mappings=parse_maps(home.joinpath("maps").read_text(encoding="utf-8"), root),
        )
    except OSError as error:
        raise PkernfsError(f"process {pid} can't be looked at: {error.strerror}") from error
