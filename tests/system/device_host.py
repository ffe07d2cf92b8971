# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the device hand-over do with a host, beyond pkernfs.lab.devices."""

from __future__ import annotations

from collections.abc import Sequence

from pkernfs.host.bootline import BootLine
from pkernfs.lab.machine import Machine

#: Devices without a bridge above them.
EDU, OTHER = "0000:00:10.0", "0000:00:11.0"
EDUS = (
    *("-device", "edu,addr=0x10,dma_mask=0xffffffff"),
    *("-device", "edu,addr=0x11,dma_mask=0xffffffff"),
)


def kernel_says(host: Machine, text: str) -> list[float]:
    """When (lab's monotonic clock, s) the kernel log had lines with ``text``.

    Or all but one character of it: the emulated serial port loses one now and then.
    """
    shapes = {text, *(text[:at] + text[at + 1 :] for at in range(len(text)))}
    return [line.at for line in host.console.lines if any(shape in line.text for shape in shapes)]


def load(
    host: Machine, mode: str, kernel: str, *, drop: Sequence[str] = (), add: Sequence[str] = ()
) -> None:
    """Load a kernel by kexec, as others than pkernfs do: with the running kernel's boot line.

    :param mode: ``-l`` for a kexec, ``-p`` for after a crash.
    :param drop: parameters that are left out.
    :param add: words that come last.
    """
    version = host.stack.host.kernel(kernel)
    line = BootLine.parse(host.sh("cat /proc/cmdline").check().stdout).without(*drop)
    if mode == "-p":
        line = line.without("crashkernel").plus(BootLine(("nr_cpus=1",)))
    line = line.plus(BootLine(tuple(add)))
    command = ["kexec", "-s", mode, f"/boot/vmlinuz-{version}"]
    command += [f"--initrd=/boot/pkernfs-lab-initrd-{version}", f"--append={line}"]
    host.run(command).check()


def update(host: Machine, kernel: str, *more: str, initrd: str | None = None) -> None:
    """``pkernfs update`` to one of the lab's kernels, until that one runs.

    :param more: further arguments.
    :param initrd: a file in the host; the lab's initrd by default.
    """
    version = host.stack.host.kernel(kernel)
    words = ["--kernel", f"/boot/vmlinuz-{version}"]
    words += ["--initrd", initrd or f"/boot/pkernfs-lab-initrd-{version}"]
    result = host.run(["pkernfs", "update", *words, *more])
    if result.status is not None:
        result.check()
        raise AssertionError("pkernfs update came back without an error")
    host.wait_reboot()
