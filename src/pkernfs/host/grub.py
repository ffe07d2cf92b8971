# SPDX-License-Identifier: GPL-2.0-only
"""The boot loader's configuration: a file of its own among GRUB's.

Two programs read a word on its way into the boot line. grub-mkconfig is a shell script
that sources the files and writes the words into grub.cfg as they are then; GRUB reads
that with a language of its own, in which ``$`` begins a variable and ``\\$`` is a dollar.
Within double quotes the shell makes ``\\$`` of ``\\\\\\$``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from pkernfs.errors import PkernfsError
from pkernfs.files import write_atomic
from pkernfs.host.bootline import REGION, BootLine
from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Region

DEFAULTS = "etc/default/grub"
DROP_INS = "etc/default/grub.d"
DROP_IN = f"{DROP_INS}/pkernfs.cfg"
UPDATE = "update-grub"

_HEAD = """\
# Written by pkernfs reserve, which replaces it: pkernfs reserve --list
# The ranges of memory that the kernel leaves to pkernfs, and their names.
"""
_BEGIN = 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX '
#: What a word of ours consists of: nothing that the shell or GRUB reads, but the dollar.
_WORD = re.compile(r"[A-Za-z0-9_.=$!,:-]+")


def render(words: Sequence[str]) -> str:
    """The file's content.

    :param words: of the boot line, as a kernel is to see them.
    """
    assert all(_WORD.fullmatch(word) for word in words), words
    if not words:
        return _HEAD
    escaped = " ".join(words).replace("$", r"\\\$")
    return f'{_HEAD}{_BEGIN}{escaped}"\n'


def words_of(text: str) -> tuple[str, ...]:
    """The words that a file written by :func:`render` adds."""
    for line in text.splitlines():
        if line.startswith(_BEGIN) and line.endswith('"'):
            return tuple(line[len(_BEGIN) : -1].replace(r"\\\$", "$").split())
    return ()


def is_used(machine: Machine) -> bool:
    """Does this machine have a GRUB that reads files like ours? Debian's brings the directory."""
    return (machine.root / DROP_INS).is_dir()


def regions(machine: Machine) -> tuple[Region, ...] | None:
    """The regions that the next boot will have; None when no file of ours says.

    :raises PkernfsError: the file was changed by hand and can't be read.
    """
    text = machine.read(DROP_IN)
    return None if text is None else BootLine(words_of(text)).regions()


def check_others(machine: Machine) -> None:
    """Make sure that nobody else's configuration names regions.

    The module has one parameter: of two words with it, only the last counts.

    :raises PkernfsError: one does.
    """
    own = machine.root / DROP_IN
    files = [machine.root / DEFAULTS, *sorted((machine.root / DROP_INS).glob("*.cfg"))]
    for path in files:
        if path == own or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(REGION in line and not line.lstrip().startswith("#") for line in lines):
            raise PkernfsError(
                f"{path} names {REGION} already",
                f"remove that word and its memmap= there; pkernfs writes both into /{DROP_IN}, "
                "and keeps the range that the running kernel has",
            )


def write(machine: Machine, words: Sequence[str], *, update: bool = True) -> bool:
    """Replace the file, and have GRUB's configuration made anew.

    :param update: run update-grub, if there is one.
    :returns: whether it ran.
    :raises PkernfsError: a part failed; the file is then as it was before.
    """
    path = machine.root / DROP_IN
    before = path.read_text(encoding="utf-8") if path.exists() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, render(words), mode=0o644)
    except OSError as error:
        raise PkernfsError(f"can't write {path}: {error.strerror}", "only root can") from error
    program = shutil.which(UPDATE)
    if not update or program is None:
        return False
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=_plain())
    if done.returncode:
        if before is None:
            path.unlink()
        else:
            write_atomic(path, before, mode=0o644)
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise PkernfsError(
            f"{UPDATE} failed: {last[0]}", f"{path} is as before; {UPDATE} by hand shows all of it"
        )
    return True


def _plain() -> dict[str, str]:
    """Our environment without what the shell script would take for its own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRUB_")}
