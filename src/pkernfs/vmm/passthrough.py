# SPDX-License-Identifier: GPL-2.0-only
"""Devices of the host that are given to guests, and work on through an update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host.devices import Control
from pkernfs.vfio.bind import bind, current_driver, interrupt_mode, parse_bdf, unbind
from pkernfs.vmm import process
from pkernfs.vmm.command import options
from pkernfs.vmm.config import Guest, Places, all_guests

#: QEMU's emulated IOMMUs: what a device sees is then the guest's to say, at any time.
_IOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu")


def names(devices: Sequence[str]) -> tuple[str, ...]:
    """PCI names in full, each once.

    :raises UsageError: one is no PCI name, or is there twice.
    """
    found = tuple(parse_bdf(device) for device in devices)
    if len(set(found)) != len(found):
        raise UsageError("the same device is given twice", "name each device once")
    return found


def check_qemu(version: str, arguments: Sequence[str]) -> None:
    """Refuse a QEMU, or arguments, with which passed-through devices can't be updated under.

    :param arguments: the user's part of QEMU's arguments.
    :raises PkernfsError: see above.
    """
    if process.version_tuple(version) < process.MIN_PASSTHROUGH:
        wanted = ".".join(str(part) for part in process.MIN_PASSTHROUGH)
        raise PkernfsError(
            f"QEMU {version} can't hand a passed-through device to the next kernel, {wanted} can",
            "Debian 13: apt install -t trixie-backports qemu-system-x86",
        )
    for option, value in options(arguments):
        if option == "device" and any(name in value for name in _IOMMUS):
            raise UsageError(
                f"-device {value} can't be used together with --device",
                "leave the guest's IOMMU out: the host's tables are what an update hands over",
            )


def check_interrupts(devices: Sequence[str]) -> None:
    """Refuse devices whose driver in the guest uses neither MSI nor MSI-X.

    QEMU 11.1 that takes over a device with INTx registers its eventfd with KVM twice, fails at
    the second time ("failed to setup resample irqfd: Device or resource busy"), and the
    interrupt stays masked for ever. With ``x-no-kvm-intx=on`` it does not, but then a migration
    that is cancelled ends QEMU ("Assertion `type == MIG_EVENT_SETUP' failed").

    :raises PkernfsError: see above.
    """
    for bdf in devices:
        if not interrupt_mode(bdf):
            raise PkernfsError(
                f"{bdf}: its driver in the guest has no MSI or MSI-X vector, and QEMU can't hand "
                "INTx to the next kernel",
                "wait until the guest's driver is up, let it use MSI-X, or stop the guest",
            )


def check_free(places: Places, guest: Guest, devices: Sequence[str]) -> None:
    """Refuse devices that another guest has.

    :raises PkernfsError: see above.
    """
    for other in all_guests(places):
        theirs = _devices_of(other) if other.name != guest.name else ()
        if (taken := sorted(set(devices) & set(theirs))) and _holds(other):
            raise PkernfsError(
                f"{taken[0]} belongs to guest {other.name}",
                f"stop that one first: pkernfs vm stop {other.name}",
            )


def _devices_of(guest: Guest) -> tuple[str, ...]:
    """A guest's devices; none of one whose files can't be read."""
    try:
        return guest.config().devices
    except PkernfsError:
        return ()


def _holds(guest: Guest) -> bool:
    return process.running(guest) is not None or guest.saved() is not None


@contextlib.contextmanager
def given(devices: Sequence[str]) -> Iterator[None]:
    """Take devices from the host, for a guest that is started within the block.

    They are bound to vfio-pci and named to pkernfs_dma as to be preserved. If the block
    fails, both are taken back.

    :raises PkernfsError: a device can't be given away, or can't be preserved.
    """
    if not devices:
        yield
        return
    control = Control.load()
    known = {device.bdf for device in control.devices()}
    with contextlib.ExitStack() as undo:
        for bdf in devices:
            before = current_driver(bdf)
            bind(bdf)
            if before != "vfio-pci":
                undo.callback(unbind, bdf, before)
            if bdf not in known:
                control.preserve(bdf)
                undo.callback(_release, bdf)
        yield
        undo.pop_all()


def _release(bdf: str) -> None:
    with contextlib.suppress(PkernfsError):
        Control().release(bdf)


def forget(devices: Sequence[str]) -> None:
    """Let updates leave devices alone that no guest uses any more; vfio-pci keeps them."""
    known = {device.bdf for device in Control().devices()} if devices else set()
    for bdf in devices:
        if bdf in known:
            _release(bdf)


def forget_idle(places: Places) -> None:
    """Do so for the devices of every guest that is off.

    A preserved device that nobody uses stops an update; a guest that ended by itself would
    leave one.
    """
    theirs = {guest: devices for guest in all_guests(places) if (devices := _devices_of(guest))}
    held = {bdf for guest, devices in theirs.items() if _holds(guest) for bdf in devices}
    for devices in theirs.values():
        forget([bdf for bdf in devices if bdf not in held])
