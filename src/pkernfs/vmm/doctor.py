# SPDX-License-Identifier: GPL-2.0-only
"""Can guests be updated under with the QEMU of this machine?"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Finding, blocker, note, ok
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from pkernfs.vmm import nested, process
from pkernfs.vmm.guests import struct_pages


def _qemu() -> Iterator[Finding]:
    topic = "QEMU"
    try:
        version = process.qemu_version(process.find_qemu())
    except PkernfsError as error:
        yield blocker(topic, error.what, error.hint, "qemu.missing", overridable=True)
        return
    if process.version_tuple(version) < process.MIN_VERSION:
        wanted = ".".join(str(part) for part in process.MIN_VERSION)
        yield blocker(
            topic,
            f"version {version} can't save a guest for an update, {wanted} can",
            "Debian 13: apt install -t trixie-backports qemu-system-x86",
            "qemu.old",
            overridable=True,
        )
    else:
        yield ok(topic, f"version {version}")


def _kvm(machine: Machine) -> Iterator[Finding]:
    if os.access(machine.root / "dev/kvm", os.R_OK | os.W_OK):
        yield ok("KVM", "/dev/kvm can be used")
    else:
        yield note(
            "KVM", "/dev/kvm can't be used: guests are emulated", "modprobe kvm_intel or kvm_amd"
        )


def _direct_io(machine: Machine) -> Iterator[Finding]:
    if struct_pages(machine):
        yield ok("O_DIRECT", "guests may use disks with cache=none")
    else:
        yield note(
            "O_DIRECT",
            "the store's memory has no struct page: O_DIRECT can't reach it",
            "guests' disks with cache=writeback, not cache=none; or a store with struct pages"
            " (pkernfs.pages=1 on the boot line before it is made)",
        )


def examine(machine: Machine, kernel: Kernel | None) -> list[Finding]:
    """Answer every question; nothing is changed.

    :param kernel: the next kernel, if it is known.
    """
    return [*_qemu(), *_kvm(machine), *_direct_io(machine), *nested.of_host(machine, kernel)]
