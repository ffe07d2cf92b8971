# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's boot line: reading it, and writing the next kernel's from the running one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pkernfs.errors import PkernfsError
from pkernfs.host.ranges import Range, Region, parse_regions, parse_size

#: Marks a kernel that an update started. No dot: modprobe would take it for a
#: parameter of a module.
MARKER = "pkernfs_update"
REGION = "pkernfs.region"

#: A kernel that panics before it has brought the guests back resets the machine after so many
#: seconds; without this word it stands still until somebody comes
#: (Documentation/admin-guide/kernel-parameters.txt). Guests saved are in the store then.
PANIC = "panic"
PANIC_S = 30

#: Words about how the running kernel was loaded; they mean nothing to the next one.
_LOADER_WORDS = frozenset({"BOOT_IMAGE", "elfcorehdr", "kexec_jump_back_entry"})

#: COMMAND_LINE_SIZE of x86 (arch/x86/include/asm/setup.h), with the final NUL.
MAX_LENGTH = 2048

_SPACE = " \t\n\v\f\r"


def split_words(text: str) -> tuple[str, ...]:
    """Split a boot line at white space outside of double quotes, quotes kept.

    Same rule as next_arg() in lib/cmdline.c: a quote begins or ends quoting wherever
    it stands, and a quote that is never closed reaches to the end.
    """
    words: list[str] = []
    word = ""
    quoted = False
    for char in text:
        if char == '"':
            quoted = not quoted
        if char in _SPACE and not quoted:
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    if word:
        words.append(word)
    return tuple(words)


def word_name(word: str) -> str:
    """The parameter's name, with the kernel's rule that ``-`` and ``_`` are the same."""
    return word.lstrip('"').partition("=")[0].rstrip('"').replace("-", "_")


def word_value(word: str) -> str:
    """What stands behind the first ``=``, without the quotes around it."""
    return word.strip('"').partition("=")[2].strip('"')


@dataclass(frozen=True)
class BootLine:
    """A boot line as words.

    :ivar words: parameters of the kernel and its modules, in order, as written.
    :ivar init: words behind ``--``, for the first program; None when there is no ``--``.
    """

    words: tuple[str, ...]
    init: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> BootLine:
        """Read the text of /proc/cmdline."""
        words = split_words(text)
        for index, word in enumerate(words):
            if word.strip('"') == "--":
                return cls(words[:index], words[index + 1 :])
        return cls(words)

    def __str__(self) -> str:
        tail = () if self.init is None else ("--", *self.init)
        return " ".join((*self.words, *tail))

    def values(self, name: str) -> list[str]:
        """All values of a parameter, in order."""
        wanted = name.replace("-", "_")
        return [word_value(word) for word in self.words if word_name(word) == wanted]

    def without(self, *names: str) -> BootLine:
        """This line without the parameters of these names."""
        return replace(self, words=tuple(w for w in self.words if word_name(w) not in names))

    def plus(self, other: BootLine) -> BootLine:
        """This line with the words of another one added, each on its side of ``--``."""
        init = self.init
        if other.init is not None:
            init = (*(init or ()), *other.init)
        return BootLine((*self.words, *other.words), init)

    def regions(self) -> tuple[Region, ...]:
        """The regions that the line gives to pkernfs.

        :raises PkernfsError: a region can't be read.
        """
        return tuple(r for value in self.values(REGION) for r in parse_regions(value))

    def reservations(self) -> Iterator[tuple[Range, str]]:
        """Ranges named by ``memmap=``, each with the character that says what becomes of it.

        ``$`` reserved, ``!`` persistent memory, ``#`` ACPI, ``%`` a conversion, ``@`` RAM
        (Documentation/admin-guide/kernel-parameters.txt).
        """
        for value in self.values("memmap"):
            for part in value.split(","):
                for kind in "$!#%@":
                    size, mark, rest = part.partition(kind)
                    if not mark:
                        continue
                    start = rest.partition("-")[0].partition("+")[0]
                    try:
                        yield Range(parse_size(start), parse_size(size)), kind
                    except PkernfsError:
                        break
                    break


def reserving_word(region: Region) -> str:
    """The word that keeps the kernel off a region, in the form that KASLR avoids too."""
    size, _, start = str(Region("", region.range)).partition("!")
    return f"memmap={size}${start}"


def is_reserved(line: BootLine, region: Region) -> bool:
    """Does the line keep the kernel, KASLR and the pmem driver off a region?"""
    return any(kind == "$" and span.contains(region.range) for span, kind in line.reservations())


def next_boot_line(
    running: BootLine, regions: Sequence[Region], update: str, append: str = ""
) -> BootLine:
    """Write the next kernel's boot line from the running one.

    Keeps every word but old markers and what the boot loader added, makes sure that the
    regions are reserved and named, and adds the marker of the update. A kernel that panics is
    to reset the machine, unless the line says something about that already.

    :param running: the running kernel's line.
    :param regions: regions that must be there again, in the order of the parameter.
    :param update: id of the update, for the marker.
    :param append: more words, from the user; they come last and so count.
    :raises PkernfsError: the line is longer than a kernel reads.
    """
    line = running.without(MARKER, *_LOADER_WORDS)
    if line.regions() != tuple(regions):
        value = ",".join(str(region) for region in regions)
        line = line.without(REGION).plus(BootLine((f"{REGION}={value}",)))
    missing = tuple(reserving_word(region) for region in regions if not is_reserved(line, region))
    more = BootLine.parse(append)
    panic = () if line.values(PANIC) or more.values(PANIC) else (f"{PANIC}={PANIC_S}",)
    line = line.plus(BootLine((*missing, f"{MARKER}={update}", *panic))).plus(more)
    length = len(str(line).encode()) + 1
    if length > MAX_LENGTH:
        raise PkernfsError(
            f"the next kernel's boot line has {length} bytes, a kernel reads {MAX_LENGTH}",
            "leave words out of the running kernel's boot line, or of --append",
        )
    return line
