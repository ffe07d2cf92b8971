# SPDX-License-Identifier: GPL-2.0-only
"""The filesystem on both kernels: one host each, all checks of fs_scripts in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import Layout
from tests.kernels import KERNELS

from .fs_scripts import run as checks
from .fs_scripts.common import CHECKS, REGION

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

SCRIPTS = Path(__file__).parent / "fs_scripts"


@dataclass(frozen=True)
class Outcome:
    """What a host said: error text (or none) by check, and bad lines of its kernel log."""

    results: dict[str, str | None]
    problems: list[str]


@contextmanager
def _host(kernel: str) -> Iterator[Machine]:
    # 3 GiB from 4 GiB on: there is one whole, aligned GiB besides the metadata.
    with Machine(HostConfig(kernel=kernel, layout=Layout.of(REGION))) as host:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SCRIPTS, host.share / SCRIPTS.name, ignore=ignored)
        yield host


@pytest.fixture(scope="module", params=KERNELS)
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """Runs all checks on a kernel, once."""
    with _host(request.param) as host:
        argv = ["python3", "-m", f"{SCRIPTS.name}.{checks.__name__.rpartition('.')[2]}"]
        done = host.run(argv, cwd="/mnt/share", timeout=1000).check()
        return Outcome(json.loads(done.stdout.splitlines()[-1]), host.problems)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_check(outcome: Outcome, name: str) -> None:
    error = outcome.results[name]
    assert error is None, error


def test_kernel_log_is_clean(outcome: Outcome) -> None:
    assert outcome.problems == []
