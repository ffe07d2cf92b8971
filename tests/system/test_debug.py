# SPDX-License-Identifier: GPL-2.0-only
"""What only the debug kernel shows: its checks are on, and allocations that fail do no harm.

``make test-debug`` runs these, and the system tests of the filesystem and of devices on the
same kernel. Each of its hosts is asked for leaks at its end (pkernfs.lab.debug_checks).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pkernfs.lab import devices
from pkernfs.lab.image import DEBUG
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import Layout
from tests.conftest import Tell

from . import device_host as on
from .fs_scripts.common import REGION

pytestmark = [pytest.mark.debug, pytest.mark.timeout(1200)]
HERE = Path(__file__).parent
#: What of the kernel's configuration the tests lean on.
CHECKS = (
    "KASAN",
    "PROVE_LOCKING",
    "DEBUG_VM",
    "DEBUG_ATOMIC_SLEEP",
    "DEBUG_KMEMLEAK",
    "FAILSLAB",
    "FAIL_PAGE_ALLOC",
)


@contextmanager
def debug_host(**fields: Any) -> Iterator[Machine]:
    """A host with the debug kernel and the scripts."""
    with Machine(HostConfig(kernel=DEBUG, **fields)) as host:
        for name in ("fs_scripts", "fault_scripts"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(HERE / name, host.share / HERE.name / name, ignore=ignored)
        yield host


def test_the_checks_are_on() -> None:
    with debug_host() as host:
        assert host.hello.kernel.endswith(f"-{DEBUG}")
        config = host.sh("zcat /proc/config.gz").check().stdout.splitlines()
        assert [name for name in CHECKS if f"CONFIG_{name}=y" not in config] == []
        # It offers the interfaces that the device module looks for, and refuses to do without.
        host.sh("modprobe pkernfs_dma && cat /sys/fs/pkernfs_dma/hooks").check()
        host.sh("rmmod pkernfs_dma && umount /mnt/pkernfs && rmmod pkernfs").check()


def test_allocations_of_the_filesystem_fail(tell: Tell) -> None:
    with debug_host(layout=Layout.of(REGION)) as host:
        argv = ["python3", "-m", "system.fault_scripts.store"]
        done = host.run(argv, cwd="/mnt/share", timeout=1000).check()
        outcomes: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        failed = {name: value["failed"] for name, value in outcomes.items() if "failed" in value}
        assert failed == {}
        assert host.problems == []
    tell(_summary(outcomes))
    # Each of these allocates; a sweep that met nothing proves nothing.
    for name in ("create", "write", "allocate", "mount_again", "make_store", "touch_mapping"):
        assert outcomes[name]["points"] > 0, name


def test_allocations_of_the_hand_over_fail(tell: Tell) -> None:
    with debug_host(extra=on.EDUS, allowed=devices.EXPECTED) as host:
        devices.start_edu(host, on.EDU)
        host.sh("modprobe pkernfs_dma").check()
        outcomes = _device_script(host, "before")
        on.update(host, DEBUG)
        assert devices.listed(host)[on.EDU]["state"] == "inherited"
        outcomes |= _device_script(host, "after")
        assert devices.faults(host, on.EDU) == []
    tell(_summary(outcomes))
    for name in ("arm", "adopt"):
        assert outcomes[name]["points"] > 0, name


def _device_script(host: Machine, verb: str) -> dict[str, dict[str, Any]]:
    argv = ["python3", "-m", "system.fault_scripts.device", verb, devices.EDU_FILE, on.EDU]
    done = host.run(argv, cwd="/mnt/share", env=devices.ENV, timeout=600).check()
    outcomes: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def _summary(outcomes: dict[str, dict[str, Any]]) -> str:
    points = sum(value["points"] for value in outcomes.values())
    return f"{points} allocations failed in {len(outcomes)} operations"
