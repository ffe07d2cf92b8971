# SPDX-License-Identifier: GPL-2.0-only
"""A host that panics in the middle of it all: the next kernel finds a store in order."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from pkernfs.lab.machine import Machine
from pkernfs.store.check import check
from pkernfs.store.findings import Verdict
from pkernfs.store.image import open_image
from tests.conftest import HostFactory

from . import device_host
from .scripts import hammer

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

_SCRIPT = Path(__file__).parent / "scripts/hammer.py"
_WRITERS = 2
_CHURNERS = 3
#: Each writer has replaced its file so often before the host dies.
_VERSIONS = 5
_WAIT_S = 240.0


def _acknowledged(host: Machine) -> dict[str, int]:
    """The last version that each writer has acknowledged."""
    last: dict[str, int] = {}
    for line in host.serials[0].lines:
        found = re.fullmatch(r"(writer\d+) (\d+)", line.text.strip())
        if found:
            last[found[1]] = max(last.get(found[1], 0), int(found[2]))
    return last


def _wait_for_versions(host: Machine) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        last = _acknowledged(host)
        if len(last) == _WRITERS and min(last.values()) >= _VERSIONS:
            return
        assert time.monotonic() < deadline, f"the writers are too slow: {last}"
        time.sleep(0.2)


def _assert_nothing_lost(host: Machine, acknowledged: dict[str, int]) -> None:
    """Each writer's file is one whole version, and not an older one than acknowledged."""
    for writer, least in acknowledged.items():
        path = f"/mnt/pkernfs/hammer/{writer}/current"
        host.run(["cp", path, f"/mnt/share/{writer}"]).check()
        content = (host.share / writer).read_bytes()
        number = int(content[:16])
        assert number >= least, f"{writer} had version {least} and now has {number}"
        assert content == hammer.version(number), f"{writer}: version {number} is not whole"


@pytest.mark.parametrize(("kernel", "crash_kernel"), [("6.12", "7.3"), ("7.3", "6.12")])
def test_a_panic_leaves_a_clean_store(
    new_host: HostFactory, kernel: str, crash_kernel: str
) -> None:
    host = new_host(
        kernel=kernel,
        append=("crashkernel=512M",),
        allowed=("sysrq", "Kernel panic - not syncing: sysrq triggered crash"),
    )
    device_host.load(host, "-p", crash_kernel)
    script = host.upload(_SCRIPT)
    count = f"{_WRITERS} {_CHURNERS}"
    host.sh(f"python3 {script} /mnt/pkernfs/hammer /dev/ttyS1 {count} >/dev/null 2>&1 &").check()
    _wait_for_versions(host)
    host.sh("(sleep 0.2; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.wait_reboot()
    acknowledged = _acknowledged(host)
    assert host.sh("uname -r").check().stdout.startswith(f"{crash_kernel}.")

    where = host.range_file
    with open_image(where.file, where.offset, where.size) as image:
        result = check(image)
        assert result.verdict is Verdict.CLEAN, [finding.text for finding in result.findings]
    host.run(["pkernfs", "check"]).check()
    _assert_nothing_lost(host, acknowledged)
    host.sh("cat $(find /mnt/pkernfs/hammer -type f) | wc -c; rm -r /mnt/pkernfs/hammer").check()
    left = host.sh("ls -A /mnt/pkernfs").check().stdout
    assert "hammer" not in left, left
