# SPDX-License-Identifier: GPL-2.0-only
"""What programs in a host mark (bench/inside/marks.py), timed from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.meter import Meter
from bench.results import Values
from bench.stage import HOME, Stage
from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Line

_MARK = re.compile(r"bench: (begin|end) (\S+)")


def spans(lines: Sequence[Line], work: Meter) -> Values:
    """Time and work of each span, by its name.

    :raises PkernfsError: a span has no end.
    """
    begun: dict[str, float] = {}
    values: Values = {}
    for line in lines:
        match = _MARK.search(line.text)
        if match is None:
            continue
        verb, name = match.groups()
        if verb == "begin":
            begun[name] = line.at
        elif name in begun:
            begin = begun.pop(name)
            values[name] = line.at - begin
            values[f"work: {name}"] = work.between(begin, line.at)
    if begun:
        raise PkernfsError(f"{', '.join(begun)} did not end")
    return values


def script(stage: Stage, who: str, name: str, *words: str) -> tuple[Values, str]:
    """Run a program of ``bench/inside`` in the host; its spans, and what it printed."""
    command = ["python3", "-S", f"{HOME}/{name}", *words]
    start = len(stage.host.console.lines)
    with stage.work_clock() as work:
        printed = stage.run(who, command, timeout=900)
    return spans(_settled(stage, start), work), printed


def shell(stage: Stage, who: str, name: str, line: str) -> Values:
    """Run a shell line as one span."""
    start = len(stage.host.console.lines)
    marks = "echo '<6>bench: {} {}' >/dev/kmsg"
    wrapped = f"{marks.format('begin', name)}; {line}; s=$?; {marks.format('end', name)}; exit $s"
    stage.note(who, line)
    with stage.work_clock() as work:
        stage.host.sh(wrapped, timeout=900).check()
    return spans(_settled(stage, start), work)


def _settled(stage: Stage, start: int) -> Sequence[Line]:
    """The console's lines, once the last mark must have come."""
    stage.host.console.wait_for(r"bench: end", 30, start=start)
    stage.host.sh("echo '<6>bench: settled' >/dev/kmsg").check()
    stage.host.console.wait_for(r"bench: settled", 30, start=start)
    return stage.host.console.since(start)
