# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host with LUO: keep a guest's memory in a memfd, and hand it to the next kernel.

``luo.py start SIZE LINK COMMAND...`` makes the memory and runs COMMAND, in which the word
``@RAM`` stands for the memory's path; on SIGUSR1 it gives the memory to LUO.
``luo.py resume LINK COMMAND...`` takes it back in the next kernel and runs COMMAND.
LINK becomes a symbolic link to the memory, for others. Standard library only.

The requests are those of include/uapi/linux/liveupdate.h, Linux 7.3.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

_DEVICE = "/dev/liveupdate"
_CREATE_SESSION, _RETRIEVE_SESSION = 0xBA00, 0xBA01
_PRESERVE_FD, _RETRIEVE_FD, _FINISH = 0xBA40, 0xBA41, 0xBA42
_SESSION = struct.Struct("Ii64s")
_FILE = struct.Struct("IiQ")
_END = struct.Struct("II")
_NAME = b"bench"
_TOKEN = 1


def _session(request: int) -> int:
    device = os.open(_DEVICE, os.O_RDWR)
    answer = fcntl.ioctl(device, request, _SESSION.pack(_SESSION.size, -1, _NAME))
    return int(_SESSION.unpack(answer)[1])


def _run(command: list[str], memory: int, link: Path) -> subprocess.Popen[bytes]:
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(f"/proc/{os.getpid()}/fd/{memory}")
    words = [word.replace("@RAM", f"/proc/self/fd/{memory}") for word in command]
    return subprocess.Popen(words, pass_fds=[memory])


def start(size: int, link: Path, command: list[str]) -> None:
    """Run a guest with new memory; on SIGUSR1 preserve it, and say so by a file."""
    memory = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(memory, size)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    child = _run(command, memory, link)
    Path(f"{link}.pid").write_text(str(os.getpid()))
    signal.sigwait({signal.SIGUSR1})
    session = _session(_CREATE_SESSION)
    fcntl.ioctl(session, _PRESERVE_FD, _FILE.pack(_FILE.size, memory, _TOKEN))
    Path(f"{link}.preserved").touch()
    child.wait()
    signal.pause()


def resume(link: Path, command: list[str]) -> None:
    """Run a guest with the memory of the kernel before."""
    session = _session(_RETRIEVE_SESSION)
    answer = fcntl.ioctl(session, _RETRIEVE_FD, _FILE.pack(_FILE.size, -1, _TOKEN))
    memory = int(_FILE.unpack(answer)[1])
    child = _run(command, memory, link)
    fcntl.ioctl(session, _FINISH, _END.pack(_END.size, 0))
    os.close(session)
    child.wait()


if __name__ == "__main__":
    if sys.argv[1] == "start":
        start(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        resume(Path(sys.argv[2]), sys.argv[3:])
