# SPDX-License-Identifier: GPL-2.0-only
"""Manual pages of all verbs, from the parser that runs them.

``python -m pkernfs.cli.man DIR`` writes them; ``make man`` does that. The format is that of
man(7). click-man, which does this for click, does not know the parser that typer brings along.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_FILES = (
    ("/mnt/pkernfs", "Where the store is mounted, unless --store says otherwise."),
    ("/mnt/pkernfs/vms/NAME", "All that outlives the kernel of a guest."),
    ("/mnt/pkernfs/updates/ID", "Plan, timeline and report.json of an update."),
    ("/run/pkernfs", "What ends with the kernel: sockets, processes, QEMU's messages."),
)
_STATUS = (
    ("0", "It is done."),
    ("1", "It failed; the message says what, and below it what to do."),
    ("2", "The command line is wrong."),
    ("3", "It is done in part: some guest is as it should be, another is not; each one is named."),
)
#: Verbs that say in their own help what their exit status means.
_OWN_STATUS = re.compile(r"[Ee]xit status|[Ee]xits? with")


def escape(text: str) -> str:
    """Text that can't be taken for a request, groff_char(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def _wrapped(text: str) -> str:
    """Text in lines of the length that mandoc likes; formatting joins them again."""
    lines = textwrap.wrap(
        " ".join(text.split()), 72, break_on_hyphens=False, break_long_words=False
    )
    return escape("\n".join(lines))


def _paragraphs(text: str) -> Iterator[str]:
    """A help text; a paragraph that begins with a line of ``\\b`` keeps its lines."""
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        if block.lstrip().startswith("\b"):
            yield ".nf"
            yield escape("\n".join(line.strip() for line in block.split("\n")[1:]))
            yield ".fi"
        else:
            yield _wrapped(block)


def _own(parameter: Any) -> bool:
    return not getattr(parameter, "hidden", False)


def arguments_of(command: Any) -> list[Any]:
    """The positional parameters of a command."""
    return [p for p in command.params if p.param_type_name == "argument" and _own(p)]


def options_of(command: Any) -> list[Any]:
    """Its options, but for --help."""
    return [p for p in command.params if p.param_type_name == "option" and _own(p)]


def commands_of(command: Any) -> dict[str, Any]:
    """The commands of a group; none of another."""
    return dict(getattr(command, "commands", {}))


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _synopsis(path: str, command: Any) -> Iterator[str]:
    words = [f"\\fB{escape(path)}\\fR"]
    if options_of(command):
        words.append("[\\fIOPTIONS\\fR]")
    if commands_of(command):
        words.append("\\fICOMMAND\\fR [\\fIARGS\\fR]...")
    for argument in arguments_of(command):
        name = _metavar(argument).strip("[]")
        words.append(
            f"\\fI{escape(name)}\\fR" if argument.required else f"[\\fI{escape(name)}\\fR]"
        )
    yield " ".join(words)


def _option(option: Any) -> Iterator[str]:
    names = [f"\\fB{escape(name)}\\fR" for name in (*option.opts, *option.secondary_opts)]
    value = "" if option.is_flag else f" \\fI{escape(_metavar(option))}\\fR"
    yield ".TP"
    yield ", ".join(names) + value
    text = option.help or ""
    if not option.is_flag and option.default not in (None, "", ()) and option.show_default:
        text += f" [default: {option.default}]"
    yield _wrapped(text) or "\\&"


def _sections(path: str, command: Any) -> Iterator[str]:
    if arguments_of(command):
        yield ".SH ARGUMENTS"
    for argument in arguments_of(command):
        yield from (".TP", f"\\fI{escape(_metavar(argument).strip('[]'))}\\fR")
        yield _wrapped(argument.help or "") or "\\&"
    yield ".SH OPTIONS"
    for option in options_of(command):
        yield from _option(option)
    yield from (".TP", "\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "Show a short help and exit.")
    if commands_of(command):
        yield ".SH COMMANDS"
    for name, child in commands_of(command).items():
        yield from (".TP", f"\\fB{escape(page_name(f'{path} {name}'))}\\fR(1)")
        yield _wrapped(summary(child))
    if command.epilog:
        yield ".SH EXAMPLES"
        yield from _paragraphs(command.epilog.replace("Examples:\n", "", 1))


def _list(title: str, entries: tuple[tuple[str, str], ...]) -> Iterator[str]:
    yield f".SH {title}"
    for name, text in entries:
        yield from (".TP", f"\\fB{escape(name)}\\fR", escape(text))


def summary(command: Any) -> str:
    """The first sentence of a command's help."""
    first = " ".join(str(command.help or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[a-z])\. ", first)[0].rstrip(".")


def page_name(path: str) -> str:
    """The name of a command's page, e.g. ``pkernfs-vm-start``."""
    return path.replace(" ", "-")


def page(path: str, command: Any, parent: str | None, date: str) -> str:
    """The manual page of a command.

    :param path: the command as it is typed, e.g. ``pkernfs vm start``.
    :param parent: the command that it belongs to.
    :param date: of the page, YYYY-MM-DD.
    """
    name = escape(page_name(path))
    version = metadata.version("pkernfs")
    lines = [
        '.\\" Made from the command line parser by pkernfs.cli.man.',
        f'.TH {name.upper()} 1 {date} "pkernfs {version}" "Live updates of a host\\(aqs kernel"',
        ".SH NAME",
        f"{name} \\- {escape(summary(command))}",
        ".SH SYNOPSIS",
        *_synopsis(path, command),
        ".SH DESCRIPTION",
        *_paragraphs(str(command.help or "")),
        *_sections(path, command),
    ]
    if parent is None:
        lines += _list("FILES", _FILES)
    if not _OWN_STATUS.search(str(command.help or "")) and not commands_of(command):
        lines += _list("EXIT STATUS", _STATUS)
    if parent is not None:
        lines += [".SH SEE ALSO", f"\\fB{escape(page_name(parent))}\\fR(1)"]
    return "\n".join(lines) + "\n"


def pages(command: Any, path: str, date: str, parent: str | None = None) -> dict[str, str]:
    """The pages of a command and of all below it, by file name."""
    found = {f"{page_name(path)}.1": page(path, command, parent, date)}
    for name, child in commands_of(command).items():
        found |= pages(child, f"{path} {name}", date, path)
    return found


def _date() -> str:
    """Today, or the date that a reproducible build wants."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.UTC)
    if epoch is not None:
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return now.strftime("%Y-%m-%d")


def main(directory: Path) -> None:
    """Write all pages into a directory."""
    import typer

    from pkernfs.cli import build_app

    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("pkernfs*.1"):
        old.unlink()
    command = typer.main.get_command(build_app())
    for name, text in pages(command, "pkernfs", _date()).items():
        (directory / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
