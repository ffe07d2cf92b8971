# SPDX-License-Identifier: GPL-2.0-only
"""What an update answers to which failure: said by the tests that make each one happen.

``@answers(...)`` stands on such a test. The table in docs/operations.md is made of all of
them::

    .venv/bin/python -m tests.answers --write

Read from the tests' source, so nothing has to be imported or run for it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs/operations.md"
BEGIN = "<!-- answers: made of the tests by python -m tests.answers --write -->"
END = "<!-- end of answers -->"

#: In the order of the table.
PHASES = (
    "check",
    "load",
    "pause, save",
    "hand over",
    "up to the jump",
    "next kernel",
    "resume",
    "input",
)


def answers(*, phase: str, failure: str, outcome: str) -> pytest.MarkDecorator:
    """Say what a test shows.

    :param phase: one of :data:`PHASES`.
    :param failure: what it makes happen.
    :param outcome: what comes of it.
    """
    return pytest.mark.answers(phase=phase, failure=failure, outcome=outcome)


@dataclass(frozen=True)
class Answer:
    """A failure with its outcome, and the test that shows it."""

    phase: str
    failure: str
    outcome: str
    test: str
    in_lab: bool


def _of_function(node: ast.FunctionDef, in_lab: bool) -> Iterator[Answer]:
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
            continue
        if decorator.func.id == "answers":
            said = {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}
            yield Answer(said["phase"], said["failure"], said["outcome"], node.name, in_lab)


def collect() -> list[Answer]:
    """Every answer, in the order of the table.

    :raises ValueError: a phase is none of :data:`PHASES`.
    """
    found: list[Answer] = []
    for folder in ("system", "unit"):
        for path in sorted((ROOT / "tests" / folder).glob("**/test_*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    found += _of_function(node, folder == "system")
    return sorted(found, key=lambda answer: PHASES.index(answer.phase))


def table() -> str:
    """The table, as Markdown."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for it in collect():
        where = "lab" if it.in_lab else "model"
        rows.setdefault((it.phase, it.failure, it.outcome), []).append(f"`{it.test}` ({where})")
    lines = ["| phase | what fails | what comes of it | test |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} | {', '.join(tests)} |" for row, tests in rows.items()]
    return "\n".join(lines) + "\n"


def replaced(text: str) -> str:
    """A document with the table as it should be.

    :raises ValueError: it has no place for it.
    """
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOC} has no place for the table")
    return before + begin + "\n" + table() + "\n" + end + after


if __name__ == "__main__":
    content = DOC.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        DOC.write_text(replaced(content), encoding="utf-8")
    else:
        print(table(), end="")
