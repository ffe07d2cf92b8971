# SPDX-License-Identifier: GPL-2.0-only
"""The metadata code of kernel/fs in user space, with sanitizers: C tests and fuzzer."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import Tell
from tests.fuzzing import IMAGES
from tests.native import LIBRARY, SOURCES, available

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler")


def run(program: str, *arguments: object) -> str:
    """Build a program of kernel/tests and run it. :returns: what it printed."""
    path = LIBRARY.with_name(program)
    target = f"../../build/kernel-tests/{program}"
    subprocess.run(["make", "-s", "-C", SOURCES, target], check=True)
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_unit_tests_in_c() -> None:
    assert "all unit tests passed" in run("unit")


def test_fuzz_a_little() -> None:
    assert "3000 damaged images" in run("fuzz", 1, 3000)


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_fuzz_a_lot(tell: Tell) -> None:
    output = run("fuzz", 2, IMAGES)
    tell(output.strip())
    assert f"{IMAGES} damaged images" in output
