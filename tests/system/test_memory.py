# SPDX-License-Identifier: GPL-2.0-only
"""docs/memory.md says what memory from a pkernfs file can't do: here each row is tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

pytestmark = pytest.mark.system

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).parent / "scripts/memory_limits.py"


def _documented(column: int) -> dict[str, str]:
    """A column of the table: 1 is memory without pages, 2 with pages."""
    lines = (_ROOT / "docs/memory.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {row[0]: row[column] for row in rows[2:]}


def _tried(host: Machine) -> dict[str, str]:
    script = host.upload(_SCRIPT)
    result = host.run(["python3", script, "/mnt/pkernfs", "/mnt/scratch/memory-limits"]).check()
    host.sh("rm /mnt/scratch/memory-limits").check()
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_memory_without_pages_is_as_documented(each_host: Machine) -> None:
    assert _tried(each_host) == _documented(1)


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_memory_with_pages_is_as_documented(new_host: HostFactory, kernel: str) -> None:
    assert _tried(new_host(kernel=kernel, append=("pkernfs.pages=1",))) == _documented(2)
