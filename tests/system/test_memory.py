# SPDX-License-Identifier: GPL-2.0-only
"""docs/memory.md says what memory from a pkernfs file can't do: here each row is tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.lab.link import Result
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

pytestmark = pytest.mark.system

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).parent / "scripts/memory_limits.py"


def _documented(column: int) -> dict[str, str]:
    """A column of the table: 1 is memory without pages, 2 with pages."""
    text = (_ROOT / "docs/memory.md").read_text()
    lines = text[: text.index("\n## ")].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {row[0]: row[column] for row in rows[2:]}


def _tried(host: Machine) -> dict[str, str]:
    script = host.upload(_SCRIPT)
    result = host.run(["python3", script, "/mnt/pkernfs", "/mnt/scratch/memory-limits"]).check()
    host.sh("rm /mnt/scratch/memory-limits").check()
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def _start(host: Machine, cache: str) -> Result:
    """Start a guest with a disk; firmware alone is enough."""
    disk = f"file=/mnt/scratch/disk.img,format=raw,if=virtio,cache={cache}"
    host.sh("truncate -s 8M /mnt/scratch/disk.img").check()
    return host.run(["pkernfs", "vm", "start", "disk", "--ram", "64M", "--", "-drive", disk])


def test_memory_without_pages_is_as_documented(each_host: Machine) -> None:
    assert _tried(each_host) == _documented(1)


def test_a_disk_that_can_not_work_is_refused(host: Machine) -> None:
    refused = _start(host, "none")
    assert refused.status == 2
    assert "cache=writeback" in refused.stderr
    assert host.sh("ls /mnt/pkernfs/vms 2>/dev/null").stdout == ""


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_memory_with_pages_is_as_documented(new_host: HostFactory, kernel: str) -> None:
    host = new_host(kernel=kernel, append=("pkernfs.pages=1",))
    assert _tried(host) == _documented(2)
    assert "cache=none" in host.run(["pkernfs", "doctor"]).stdout
    _start(host, "none").check()
    host.run(["pkernfs", "vm", "stop", "disk", "--force"]).check()
