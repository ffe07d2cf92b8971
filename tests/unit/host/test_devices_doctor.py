# SPDX-License-Identifier: GPL-2.0-only
"""What doctor says about passed-through devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.host.devices_doctor import examine
from pkernfs.host.doctor import Status
from pkernfs.host.machine import Machine

LEGACY, SCALABLE = "f00f4a", "80000f00f4a"


def machine(root: Path, line: str, units: dict[str, str], *, loaded: bool = False) -> Machine:
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text(line + "\n")
    for name, ecap in units.items():
        home = root / "sys/class/iommu" / name / "intel-iommu"
        home.mkdir(parents=True)
        (home / "ecap").write_text(ecap + "\n")
    if loaded:
        (root / "sys/fs/pkernfs_dma").mkdir(parents=True)
    return Machine(root)


@pytest.mark.parametrize(
    ("line", "units", "loaded", "status", "text"),
    [
        ("quiet", {}, False, Status.NOTE, "no IOMMU is in use"),
        ("quiet", {"ivhd0": "0"}, False, Status.NOTE, "AMD-Vi"),
        ("intel_iommu=on", {"dmar0": LEGACY, "dmar1": LEGACY}, True, Status.OK, "2 IOMMU"),
        ("intel_iommu=on", {"dmar0": LEGACY}, False, Status.NOTE, "not loaded"),
        ("intel_iommu=on", {"dmar0": LEGACY, "dmar1": SCALABLE}, True, Status.NOTE, "scalable"),
        ("intel_iommu=on,sm_off", {"dmar0": SCALABLE}, True, Status.OK, "1 IOMMU"),
    ],
)
def test_one_finding(
    tmp_path: Path, line: str, units: dict[str, str], loaded: bool, status: Status, text: str
) -> None:
    (finding,) = examine(machine(tmp_path, line, units, loaded=loaded))
    assert finding.status is status
    assert text in finding.text
    assert bool(finding.hint) == (status is Status.NOTE and "AMD" not in text)
