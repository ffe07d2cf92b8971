# SPDX-License-Identifier: GPL-2.0-only
"""What doctor says about passed-through devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkernfs.host import initrd
from pkernfs.host.devices_doctor import examine
from pkernfs.host.doctor import Status
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from tests.answers import answers

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


_LINE = (
    "0000:01:00.0 state={state} vendor=8086 device=10d3 leaves=1 bytes=4096 pages=4 dropped=0 "
    "adopted=0 switch_ns=0 adopt_ns=0 held=0 reason=''\n"
)


def preserving(root: Path, state: str = "preserved", *, module: bool = True) -> Machine:
    """A machine with a preserved network card, and the module for the kernel 7.3."""
    found = machine(root, "intel_iommu=on", {"dmar0": LEGACY}, loaded=True)
    (root / "sys/fs/pkernfs_dma/devices").write_text(_LINE.format(state=state))
    card = root / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "modalias").write_text("pci:v00008086d000010D3\n")
    if module:
        (root / "lib/modules/7.3/updates").mkdir(parents=True)
        (root / "lib/modules/7.3/updates/pkernfs_dma.ko").touch()
    return found


@pytest.mark.parametrize(
    ("held", "status", "text"),
    [
        ({"virtio_pci"}, Status.OK, "no driver of a preserved device"),
        ({"e1000e", "pkernfs_dma"}, Status.OK, "brings pkernfs_dma"),
        ({"e1000e"}, Status.BLOCKER, "brings e1000e, a driver of the preserved 0000:01:00.0"),
        (None, Status.NOTE, "can't be listed"),
    ],
)
def test_an_initrd_that_would_reset_a_preserved_device_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: set[str] | None,
    status: Status,
    text: str,
) -> None:
    asked: list[tuple[str, str]] = []

    def drivers(modalias: str, release: str) -> frozenset[str]:
        asked.append((modalias, release))
        return frozenset({"e1000e"})

    monkeypatch.setattr(initrd, "modules", lambda path: None if held is None else frozenset(held))
    monkeypatch.setattr(initrd, "drivers", drivers)
    kernel = Kernel("7.3", tmp_path / "vmlinuz", tmp_path / "initrd")
    _, finding = examine(preserving(tmp_path), kernel)
    assert finding.status is status
    assert text in finding.text
    assert finding.id == ("devices" if status is Status.OK else "devices.initrd")
    assert set(asked) <= {("pci:v00008086d000010D3", "7.3")}


@answers(
    phase="check",
    failure="the module for devices is not installed for the next kernel, and one is preserved",
    outcome="refused, unless --override devices.module",
)
def test_a_next_kernel_without_the_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = preserving(tmp_path, module=False)
    kernel = Kernel("7.3", tmp_path / "vmlinuz", tmp_path / "initrd")
    monkeypatch.setattr(initrd, "modules", lambda path: frozenset({"virtio_pci"}))
    _, finding = examine(host, kernel)
    assert (finding.id, finding.overridable) == ("devices.module", True)
    monkeypatch.setattr(initrd, "modules", lambda path: frozenset({"pkernfs_dma"}))
    assert examine(host, kernel)[1].status is Status.OK
    assert examine(host, Kernel("7.3", tmp_path / "vmlinuz", None))[1].id == "devices.module"


@answers(
    phase="check",
    failure="the next kernel was built without what takes preserved devices over",
    outcome="refused, unless --override devices.config",
)
def test_a_next_kernel_that_can_not_take_devices_over_is_refused(tmp_path: Path) -> None:
    host = preserving(tmp_path)
    (tmp_path / "boot").mkdir()
    config = tmp_path / "boot/config-7.3"
    kernel = Kernel("7.3", tmp_path / "vmlinuz", None)
    built_with = "CONFIG_INTEL_IOMMU=y\nCONFIG_IRQ_REMAP=y\n"
    config.write_text(f"# CONFIG_CRASH_DUMP is not set\n{built_with}")
    finding = examine(host, kernel)[1]
    assert (finding.id, finding.overridable) == ("devices.config", True)
    assert "without CONFIG_CRASH_DUMP," in finding.text
    config.write_text(f"CONFIG_CRASH_DUMP=y\n{built_with}")
    assert [f.id for f in examine(host, kernel) if f.status is Status.BLOCKER] == []


def test_what_can_be_preserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(tmp_path, "intel_iommu=on", {"dmar0": LEGACY}, loaded=True)
    (tmp_path / "sys/fs/pkernfs_dma/candidates").write_text(
        '0000:01:00.0 reason=""\n0000:02:00.0 reason="is a USB controller: it stops"\n'
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    _, good, bad = examine(host)
    assert (good.status, good.text) == (Status.OK, "0000:01:00.0 can be preserved")
    assert bad.status is Status.NOTE
    assert bad.text == "0000:02:00.0 can't be preserved: it is a USB controller: it stops"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert len(examine(host)) == 1


def test_the_next_kernel_does_not_matter_without_a_preserved_device(tmp_path: Path) -> None:
    kernel = Kernel("7.3", tmp_path / "vmlinuz", tmp_path / "initrd")
    assert len(examine(preserving(tmp_path, "cut-off", module=False), kernel)) == 1
