# SPDX-License-Identifier: GPL-2.0-only
"""Can passed-through devices of this machine work on through an update?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pkernfs.host.devices import CONTROL
from pkernfs.host.doctor import Finding, note, ok
from pkernfs.host.machine import Machine

_TOPIC = "devices"
#: ECAP_REG.SMTS, Intel VT-d specification 4.1, section 11.4.3: scalable mode.
_SCALABLE = 1 << 43


def _units(machine: Machine, kind: str) -> list[Path]:
    return sorted((machine.root / "sys/class/iommu").glob(f"{kind}*"))


def _can_scale(unit: Path) -> bool:
    try:
        return bool(int((unit / "intel-iommu/ecap").read_text(), 16) & _SCALABLE)
    except (OSError, ValueError):
        return False


def _intel(machine: Machine, units: list[Path]) -> Iterator[Finding]:
    words = ",".join(machine.boot_line.values("intel_iommu")).split(",")
    # Distributions build the kernel with scalable mode on (INTEL_IOMMU_SCALABLE_MODE_DEFAULT_ON).
    if "sm_off" not in words and any(_can_scale(unit) for unit in units):
        yield note(
            _TOPIC,
            "the IOMMU is in scalable mode, whose tables are not handed over",
            "to preserve devices, boot with intel_iommu=on,sm_off",
        )
        return
    if not (machine.root / str(CONTROL).lstrip("/")).is_dir():
        yield note(
            _TOPIC,
            f"{len(units)} IOMMU(s), the module pkernfs_dma is not loaded",
            "pkernfs device preserve loads it",
        )
        return
    yield ok(_TOPIC, f"{len(units)} IOMMU(s), pkernfs_dma is loaded")


def examine(machine: Machine) -> list[Finding]:
    """All findings. None blocks an update: without a preserved device nothing here matters."""
    intel = _units(machine, "dmar")
    if intel:
        return list(_intel(machine, intel))
    if _units(machine, "ivhd"):
        return [note(_TOPIC, "AMD-Vi: passed-through devices can't be preserved")]
    return [
        note(
            _TOPIC,
            "no IOMMU is in use: passed-through devices can't be preserved",
            "boot with intel_iommu=on",
        )
    ]
