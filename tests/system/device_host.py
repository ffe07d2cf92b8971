# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the device hand-over do with a host, beyond pkernfs.lab.devices."""

from __future__ import annotations

from pkernfs.lab.machine import Machine

#: Devices without a bridge above them.
EDU, OTHER = "0000:00:10.0", "0000:00:11.0"
EDUS = (
    *("-device", "edu,addr=0x10,dma_mask=0xffffffff"),
    *("-device", "edu,addr=0x11,dma_mask=0xffffffff"),
)


def kernel_says(host: Machine, text: str) -> list[float]:
    """When (lab's monotonic clock, s) the kernel log had lines with ``text``."""
    return [line.at for line in host.console.lines if text in line.text]


def update(host: Machine, kernel: str) -> None:
    """``pkernfs update`` to one of the lab's kernels, until that one runs."""
    version = host.stack.host.kernel(kernel)
    words = ["--kernel", f"/boot/vmlinuz-{version}"]
    words += ["--initrd", f"/boot/pkernfs-lab-initrd-{version}"]
    result = host.run(["pkernfs", "update", *words])
    if result.status is not None:
        result.check()
        raise AssertionError("pkernfs update came back without an error")
    host.wait_reboot()
