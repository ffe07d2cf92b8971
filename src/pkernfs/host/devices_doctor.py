# SPDX-License-Identifier: GPL-2.0-only
"""Can passed-through devices of this machine work on through an update?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pkernfs.host import initrd
from pkernfs.host.devices import CONTROL, MODULE, Control, Device
from pkernfs.host.doctor import Finding, blocker, how_to_build, note, ok
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine

_TOPIC = "devices"
#: ECAP_REG.SMTS, Intel VT-d specification 4.1, section 11.4.3: scalable mode.
_SCALABLE = 1 << 43
#: To take the tables over, and to remap interrupts.
_NEEDED = ("CONFIG_CRASH_DUMP", "CONFIG_INTEL_IOMMU", "CONFIG_IRQ_REMAP")
_HOOK = "docs/handover.md, 'A host whose initrd brings drivers', has the hook that puts it there"


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
    if not _control(machine).present:
        yield note(
            _TOPIC,
            f"{len(units)} IOMMU(s), the module pkernfs_dma is not loaded",
            "pkernfs device preserve loads it",
        )
        return
    yield ok(_TOPIC, f"{len(units)} IOMMU(s), pkernfs_dma is loaded")
    if os.geteuid() != 0:
        return
    for device in _control(machine).candidates():
        if device.objection:
            yield note(_TOPIC, f"{device.bdf} can't be preserved: it {device.objection}")
        else:
            yield ok(_TOPIC, f"{device.bdf} can be preserved")


def _control(machine: Machine) -> Control:
    return Control(machine.root / str(CONTROL).lstrip("/"))


def _configuration(machine: Machine, kernel: Kernel, device: Device) -> Iterator[Finding]:
    """Was the next kernel built with what a hand-over needs of it? Nothing said: not known."""
    text = machine.read(f"boot/config-{kernel.release}")
    if text is None:
        return
    set_to_yes = {line.removesuffix("=y") for line in text.splitlines() if line.endswith("=y")}
    missing = [name for name in _NEEDED if name not in set_to_yes]
    if missing:
        yield blocker(
            _TOPIC,
            f"the next kernel {kernel.release} was built without {' and '.join(missing)}, and "
            f"{device.bdf} is preserved",
            "another kernel, or pkernfs device release",
            "devices.config",
            overridable=True,
        )


def _next_kernel(machine: Machine, kernel: Kernel, devices: list[Device]) -> Iterator[Finding]:
    """Will the next kernel take over the preserved devices, before a driver resets them?"""
    yield from _configuration(machine, kernel, devices[0])
    held = initrd.modules(kernel.initrd) if kernel.initrd else frozenset()
    if machine.module_file(kernel.release, MODULE) is None and not (held and MODULE in held):
        yield blocker(
            _TOPIC,
            f"{MODULE} is not installed for the next kernel {kernel.release}, and "
            f"{devices[0].bdf} is preserved",
            how_to_build(machine, kernel.release),
            "devices.module",
            overridable=True,
        )
        return
    if held is None:
        yield note(
            _TOPIC,
            f"what {kernel.initrd} holds can't be listed",
            f"if it brings drivers of preserved devices, it needs {MODULE}: {_HOOK}",
            id="devices.initrd",
        )
        return
    if MODULE in held:
        yield ok(_TOPIC, f"{kernel.initrd} brings {MODULE}")
        return
    for device in devices:
        alias = machine.read(f"sys/bus/pci/devices/{device.bdf}/modalias") or ""
        early = sorted(initrd.drivers(alias, kernel.release) & held) if alias else []
        if early:
            yield blocker(
                _TOPIC,
                f"{kernel.initrd} brings {early[0]}, a driver of the preserved {device.bdf}, but "
                f"not {MODULE}, which has to come first",
                _HOOK,
                "devices.initrd",
                overridable=True,
            )
            return
    yield ok(_TOPIC, f"no driver of a preserved device comes ahead of {MODULE}")


def examine(machine: Machine, kernel: Kernel | None = None) -> list[Finding]:
    """All findings. Only those about preserved devices block an update.

    :param kernel: the next kernel, if it is known.
    """
    found = _units_of(machine)
    if kernel is not None:
        devices = _control(machine).devices()
        if preserved := [device for device in devices if device.state != "cut-off"]:
            found += _next_kernel(machine, kernel, preserved)
    return found


def _units_of(machine: Machine) -> list[Finding]:
    """About the IOMMUs. None blocks an update: without a preserved device they do not matter."""
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
