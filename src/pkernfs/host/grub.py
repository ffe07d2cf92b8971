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
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.files import write_atomic
from pkernfs.host.bootline import REGION, BootLine
from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Region

DEFAULTS = "etc/default/grub"
DROP_INS = "etc/default/grub.d"
#: Read last, as far as names go: a file behind it may set GRUB_CMDLINE_LINUX anew.
DROP_IN = f"{DROP_INS}/zz-pkernfs.cfg"
#: What earlier versions called it.
_FORMER = f"{DROP_INS}/pkernfs.cfg"
CONFIG = "boot/grub/grub.cfg"
UPDATE = "update-grub"
#: systemd-boot and others say here who they are (The Boot Loader Interface).
_LOADER = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

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


def other_loader(machine: Machine) -> str:
    """The boot loader that started this kernel, if it has said so and is not GRUB; or empty."""
    try:
        value = (machine.root / _LOADER).read_bytes()
    except OSError:
        return ""
    # Four bytes of attributes before the value (efivarfs).
    name = value[4:].decode("utf-16-le", errors="replace").strip("\0 ")
    return "" if "grub" in name.lower() else name


def _written(machine: Machine) -> str | None:
    own = machine.read(DROP_IN)
    return machine.read(_FORMER) if own is None else own


def regions(machine: Machine) -> tuple[Region, ...] | None:
    """The regions that the next boot is to have; None when no file of ours says.

    :raises PkernfsError: the file was changed by hand and can't be read.
    """
    text = _written(machine)
    return None if text is None else BootLine(words_of(text)).regions()


def entries(machine: Machine) -> dict[str, list[BootLine]]:
    """The boot lines of this system's entries in grub.cfg, by their kernels' images.

    What os-prober found belongs to other systems and is left out.
    """
    found: dict[str, list[BootLine]] = {}
    ours = True
    for line in (machine.read(CONFIG) or "").splitlines():
        section = re.match(r"### (BEGIN|END) /etc/grub\.d/(\S+)", line)
        if section:
            ours = section[1] == "END" or "os-prober" not in section[2]
        words = line.split(maxsplit=2)
        if ours and len(words) == 3 and words[0] in ("linux", "linuxefi") and "vmlinu" in words[1]:
            # A backslash protects the next character (GRUB manual, "Quoting").
            found.setdefault(words[1], []).append(BootLine.parse(re.sub(r"\\(.)", r"\1", words[2])))
    return found


def missing(machine: Machine) -> list[str]:
    """Kernels whose entries in grub.cfg lack a word of our file's; none where there is no grub.cfg.

    :returns: their images; CONFIG itself if it has no entry at all.
    """
    words = set(words_of(_written(machine) or ""))
    if not words or machine.read(CONFIG) is None:
        return []
    found = entries(machine)
    lacking = [
        image
        for image, lines in found.items()
        if any(not words <= set(line.words) for line in lines)
    ]
    return lacking if found else [f"/{CONFIG}"]


def is_older_than_boot(machine: Machine) -> bool:
    """Was our file written before this kernel started? proc_stat(5) has the time, in seconds."""
    found = re.search(r"^btime (\d+)$", machine.read("proc/stat") or "", re.MULTILINE)
    path = machine.root / DROP_IN
    return found is not None and path.exists() and path.stat().st_mtime < int(found[1])


def overriding(machine: Machine) -> list[str]:
    """Files that set GRUB_CMDLINE_LINUX anew after ours is read."""
    own = machine.root / DROP_IN
    anew = re.compile(r"^\s*GRUB_CMDLINE_LINUX=(?!.*\$\{?GRUB_CMDLINE_LINUX\b)", re.MULTILINE)
    return [
        f"/{path.relative_to(machine.root)}"
        for path in sorted((machine.root / DROP_INS).glob("*.cfg"))
        if path.name > own.name and anew.search(path.read_text(errors="replace"))
    ]


def check_others(machine: Machine) -> None:
    """Make sure that nobody else's configuration names regions.

    The module has one parameter: of two words with it, only the last counts.

    :raises PkernfsError: one does.
    """
    own = (machine.root / DROP_IN, machine.root / _FORMER)
    files = [machine.root / DEFAULTS, *sorted((machine.root / DROP_INS).glob("*.cfg"))]
    for path in files:
        if path in own or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(REGION in line and not line.lstrip().startswith("#") for line in lines):
            raise PkernfsError(
                f"{path} names {REGION} already",
                f"remove that word and its memmap= there; pkernfs writes both into /{DROP_IN}, "
                "and keeps the range that the running kernel has",
            )


def write(machine: Machine, words: Sequence[str], *, update: bool = True) -> bool:
    """Replace the file, have GRUB's configuration made anew, and read what came of it.

    :param update: run update-grub, if there is one.
    :returns: whether it ran.
    :raises PkernfsError: a part failed, or not every entry has the words; the file is then as
        it was before.
    """
    path, former = machine.root / DROP_IN, machine.root / _FORMER
    before = {file: file.read_text(encoding="utf-8") for file in (path, former) if file.exists()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, render(words), mode=0o644)
        former.unlink(missing_ok=True)
    except OSError as error:
        raise PkernfsError(f"can't write {path}: {error.strerror}", "only root can") from error
    program = shutil.which(UPDATE)
    if not update or program is None:
        return False
    try:
        _update(program, path)
        _check_entries(machine)
    except PkernfsError:
        path.unlink()
        for file, text in before.items():
            write_atomic(file, text, mode=0o644)
        raise
    return True


def _update(program: str, path: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=_plain())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise PkernfsError(
            f"{UPDATE} failed: {last[0]}", f"{path} is as before; {UPDATE} by hand shows all of it"
        )


def _check_entries(machine: Machine) -> None:
    """Make sure that every entry of the next boot has the words.

    :raises PkernfsError: one has not; names the file that is to blame, if one is.
    """
    lacking = missing(machine)
    if not lacking:
        return
    files = overriding(machine)
    raise PkernfsError(
        f"{UPDATE} has run, and the words are not in the entry of {lacking[0]}",
        f'{files[0]} sets GRUB_CMDLINE_LINUX anew: write ="$GRUB_CMDLINE_LINUX ..." there'
        if files
        else f"/{CONFIG} has what it made: is another program writing the entries?",
    )


def _plain() -> dict[str, str]:
    """Our environment without what the shell script would take for its own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRUB_")}
