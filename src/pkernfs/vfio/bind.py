# SPDX-License-Identifier: GPL-2.0-only
"""Binding a PCI device to vfio-pci through sysfs (Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pkernfs.errors import PkernfsError, UsageError

SYSFS: Final = Path("/sys")
VFIO_PCI: Final = "vfio-pci"
_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)


def parse_bdf(text: str) -> str:
    """The full name of a PCI device: ``1:00.0`` is no name, ``01:00.0`` is ``0000:01:00.0``.

    :raises UsageError: ``text`` is no such name.
    """
    match = _BDF.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no PCI device", "write it as 0000:01:00.0")
    domain, bus, slot, function = match.groups(default="0000")
    return f"{domain}:{bus}:{slot}.{function}".lower()


def device_dir(bdf: str, sysfs: Path = SYSFS) -> Path:
    """Directory of a PCI device in sysfs.

    :raises PkernfsError: there is no such device.
    """
    path = sysfs / "bus/pci/devices" / bdf
    if not path.exists():
        raise PkernfsError(f"there is no PCI device {bdf}", "see lspci -D")
    return path


def iommu_group(bdf: str, sysfs: Path = SYSFS) -> int:
    """Number of the IOMMU group of a device.

    :raises PkernfsError: no such device, or no IOMMU translates for it.
    """
    link = device_dir(bdf, sysfs) / "iommu_group"
    if not link.exists():
        raise PkernfsError(f"{bdf} is behind no IOMMU", "boot with intel_iommu=on")
    return int(link.resolve().name)


def interrupt_mode(bdf: str, sysfs: Path = SYSFS) -> str:
    """How a device interrupts: "msi", "msix", or "" for INTx and for not at all.

    One file for each vector says it (Documentation/ABI/testing/sysfs-bus-pci).

    :raises PkernfsError: there is no such device.
    """
    vectors = sorted((device_dir(bdf, sysfs) / "msi_irqs").glob("*"))
    return vectors[0].read_text().strip() if vectors else ""


def current_driver(bdf: str, sysfs: Path = SYSFS) -> str | None:
    """Name of the driver that a device is bound to."""
    link = device_dir(bdf, sysfs) / "driver"
    return link.resolve().name if link.exists() else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise PkernfsError(f"can't write {path}: {error.strerror}", "run as root") from error


def load_vfio(sysfs: Path = SYSFS) -> None:
    """Load the modules, unless they are there.

    vfio-pci puts an idle device into D3hot as soon as it is bound, where the device answers no
    DMA and may lose its state: bad for one that is to be adopted while it runs. It reads
    disable_idle_d3 only when it is loaded (vfio_pci_init, vfio_pci_core_register_device in
    drivers/vfio/pci/), and overrides power/control of sysfs.
    """
    if (sysfs / "bus/pci/drivers" / VFIO_PCI).exists():
        return
    for arguments in (["vfio-pci", "disable_idle_d3=1"], ["vfio_iommu_type1"]):
        command = ["modprobe", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PkernfsError(f"can't load {arguments[0]}: {done.stderr.strip()}")


def bind(bdf: str, sysfs: Path = SYSFS) -> str | None:
    """Bind a device to vfio-pci; does nothing if it is.

    :returns: the driver that it had before.
    :raises PkernfsError: no such device, no IOMMU, or the driver won't take it.
    """
    directory = device_dir(bdf, sysfs)
    iommu_group(bdf, sysfs)
    before = current_driver(bdf, sysfs)
    if before == VFIO_PCI:
        return before
    load_vfio(sysfs)
    _write(directory / "driver_override", VFIO_PCI)
    if before is not None:
        _write(directory / "driver/unbind", bdf)
    _write(sysfs / "bus/pci/drivers_probe", bdf)
    if current_driver(bdf, sysfs) != VFIO_PCI:
        raise PkernfsError(f"vfio-pci did not take {bdf}", "the kernel log says why")
    return before


def unbind(bdf: str, driver: str | None, sysfs: Path = SYSFS) -> None:
    """Take a device from vfio-pci and give it back to ``driver`` (None: leave it unbound)."""
    directory = device_dir(bdf, sysfs)
    # A newline clears the override (driver_set_override in drivers/base/driver.c).
    _write(directory / "driver_override", "\n")
    if current_driver(bdf, sysfs) == VFIO_PCI:
        _write(directory / "driver/unbind", bdf)
    if driver is not None:
        _write(sysfs / "bus/pci/drivers_probe", bdf)


@contextlib.contextmanager
def bound(bdf: str, sysfs: Path = SYSFS) -> Iterator[str]:
    """A device bound to vfio-pci while the context lasts; yields its name."""
    before = bind(bdf, sysfs)
    try:
        yield bdf
    finally:
        if before != VFIO_PCI:
            unbind(bdf, before, sysfs)


def find(vendor: int, device: int, sysfs: Path = SYSFS) -> list[str]:
    """Names of the PCI devices with these ids, in order."""
    root = sysfs / "bus/pci/devices"
    wanted = (vendor, device)
    return sorted(
        path.name
        for path in root.iterdir()
        if wanted
        == (int((path / "vendor").read_text(), 16), int((path / "device").read_text(), 16))
    )


def reset_methods(bdf: str, sysfs: Path = SYSFS) -> list[str]:
    """How the kernel may reset a device, the first is tried first: ``flr``, ``pm``, ``bus``..."""
    return (device_dir(bdf, sysfs) / "reset_method").read_text().split()


def choose_reset(bdf: str, method: str, sysfs: Path = SYSFS) -> None:
    """Let the kernel reset a device in this way only.

    A device may offer a method that does nothing: QEMU 7.2's e1000e says that a change to D3hot
    and back resets it (``pm``), and keeps its state over it. ``bus`` resets it for certain.
    """
    _write(device_dir(bdf, sysfs) / "reset_method", method)
