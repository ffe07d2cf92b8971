# SPDX-License-Identifier: GPL-2.0-only
"""Whoever calls it, and wherever the output goes: words, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pkernfs
from pkernfs.cli import VERBS

_CALL = "import sys; from pkernfs.cli import main; sys.argv[0] = 'pkernfs'; main()"
#: Those that ask for more than a name.
_WORDS = {
    "reserve": ("--list",),
    "vm": ("list",),
    "device": ("list",),
    "lab": ("run", "--region", "x", "--", "true"),
    "completion": ("bash",),
    "report": ("--json",),
    "update": ("--dry-run",),
}

#: Somebody who may do nothing but read, so that the sources can lie in root's home.
_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


def _run(
    *words: str, output: int | None = subprocess.PIPE, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", _CALL, *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd="/",
        timeout=60,
    )


def _is_said(done: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2), done


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("reserve", "--list"), ("doctor",)])
def test_an_output_that_is_full_is_an_error(words: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = _run(*words, output=full)
    finally:
        os.close(full)
    _is_said(done)
    assert done.returncode == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("doctor",)])
def test_an_output_that_nobody_reads_is_no_traceback(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        _is_said(_run(*words, output=writing))
    finally:
        os.close(writing)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_as_somebody_else(verb: str) -> None:
    done = _run(verb, *_WORDS.get(verb, ()), before=_NOBODY)
    _is_said(done)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_on_garbage(verb: str) -> None:
    done = _run(verb, "--nonsense", "\udcff")
    _is_said(done)
    assert done.returncode == 2


def test_the_version_is_printed() -> None:
    assert _run("--version").stdout == f"pkernfs {pkernfs.__version__}\n"


def test_doctor_says_what_is_wrong_with_a_kernel_and_all_else() -> None:
    done = _run("doctor", "--kernel", "/dev/null")
    _is_said(done)
    assert done.returncode == 1
    assert "/dev/null is not a kernel" in done.stdout
    assert "range" in done.stdout


def test_a_make_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.img"
    for words in (("--base", "1"), ("--label", os.fsdecode(b"\xff"))):
        done = _run("make", str(file), "--size", "8M", *words)
        _is_said(done)
        assert done.returncode == 2, done.stderr
        assert not file.exists()
    file.write_bytes(b"data")
    assert _run("make", str(file), "--size", "8M", "--base", "1").returncode == 2
    assert file.read_bytes() == b"data"
