# SPDX-License-Identifier: GPL-2.0-only
"""The manual pages have all that the parser has, and are well-formed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pkernfs.cli import VERBS, build_app, man

_DATE = "2026-01-02"


@pytest.fixture(scope="module")
def command() -> Any:
    return typer.main.get_command(build_app())


@pytest.fixture(scope="module")
def pages(command: Any) -> dict[str, str]:
    return man.pages(command, "pkernfs", _DATE)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in man.commands_of(command).items():
        yield from _walk(child, f"{path} {name}")


def _plain(page: str) -> str:
    """A page as text, of what matters here."""
    page = re.sub(r"^\.(PP|nf|fi)\n", "", page, flags=re.M)
    text = re.sub(r"\\f[BIR]", "", page).replace("\\-", "-").replace("\\&", "")
    return text.replace("\\(aq", "'").replace("\\(ga", "`")


def test_every_command_has_a_page_and_every_page_a_command(
    command: Any, pages: dict[str, str]
) -> None:
    paths = [path for path, _ in _walk(command, "pkernfs")]
    assert {f"{man.page_name(path)}.1" for path in paths} == set(pages)
    for verb in VERBS:
        assert f"pkernfs-{verb}.1" in pages
    assert len(pages) > 20


def test_every_option_and_argument_is_on_its_page(command: Any, pages: dict[str, str]) -> None:
    checked = 0
    for path, found in _walk(command, "pkernfs"):
        page = _plain(pages[f"{man.page_name(path)}.1"])
        words = " ".join(page.split())
        for parameter in found.params:
            if getattr(parameter, "hidden", False):  # for units, not for people
                continue
            for name in (*parameter.opts, *parameter.secondary_opts):
                if parameter.param_type_name == "option":
                    assert re.search(rf"^(.*, )?{re.escape(name)}\b", page, re.M), (path, name)
            assert " ".join((parameter.help or "").split()) in words, (path, parameter.name)
            checked += 1
        assert " ".join((found.help or "").split()) in words, path
    assert checked > 60


def test_every_page_leads_on(command: Any, pages: dict[str, str]) -> None:
    for path, found in _walk(command, "pkernfs"):
        page = _plain(pages[f"{man.page_name(path)}.1"])
        for name in man.commands_of(found):
            assert f"{man.page_name(path)}-{name}(1)" in page
        if " " in path:
            assert f"{man.page_name(path.rpartition(' ')[0])}(1)" in page
        assert f"1 {_DATE} " in page


@pytest.mark.parametrize(
    ("checker", "options"),
    [("mandoc", ["-Tlint", "-W", "warning"]), ("groff", ["-ww", "-man", "-z", "-Tutf8"])],
)
def test_formatters_have_nothing_to_say(
    pages: dict[str, str], tmp_path: Path, checker: str, options: list[str]
) -> None:
    if shutil.which(checker) is None:
        pytest.skip(f"{checker} is not installed")
    for name, page in pages.items():
        (tmp_path / name).write_text(page, encoding="ascii")
    files = [str(tmp_path / name) for name in pages]
    done = subprocess.run([checker, *options, *files], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("text", [".so /etc/passwd", "'br", "a\\fBb", "x\n.TH y", "--opt `a`"])
def test_no_text_becomes_a_request(text: str) -> None:
    lines = man.escape(text).splitlines()
    assert not [line for line in lines if line.startswith((".", "'"))]
    assert "\\f" not in man.escape(text)


def test_pages_are_written_and_old_ones_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: dict[str, str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767312000")
    (tmp_path / "pkernfs-gone.1").write_text("")
    man.main(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == pages
