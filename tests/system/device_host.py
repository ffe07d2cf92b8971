# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the device hand-over do with a host."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from pkernfs.lab.machine import Machine, poll
from pkernfs.vfio.landings import Kind, Landing

#: Where the package lies in a host.
ENV = {"PYTHONPATH": "/usr/lib/pkernfs"}
NIC = "0000:01:00.0"
#: Devices without a bridge above them.
EDU, OTHER = "0000:00:10.0", "0000:00:11.0"
#: At 2.5 GT/s the kernel does not wait for a link training that QEMU 7.2 never reports.
PORT = ("-device", "pcie-root-port,id=rp0,chassis=1,slot=1,x-speed=2_5,x-width=1")
EDUS = (
    *("-device", "edu,addr=0x10,dma_mask=0xffffffff"),
    *("-device", "edu,addr=0x11,dma_mask=0xffffffff"),
)
#: What the kernels say about refused DMA and about what is wrong with a device.
EXPECTED = (r"DMAR: .*(fault|PASID|Fault)", r"pkernfs_dma: ")
RINGS = "/mnt/pkernfs/nic"


def faults(host: Machine, bdf: str) -> list[str]:
    """The kernel's reports of refused DMA of a device (drivers/iommu/intel/dmar.c)."""
    name = re.escape(bdf.removeprefix("0000:"))
    pattern = re.compile(rf"DMAR:.*DMA (Read|Write).*{name}\]")
    return [line.text for line in host.console.lines if pattern.search(line.text)]


def kernel_says(host: Machine, text: str) -> list[float]:
    """When (lab's monotonic clock, s) the kernel log had lines with ``text``."""
    return [line.at for line in host.console.lines if text in line.text]


def devices(host: Machine) -> dict[str, dict[str, Any]]:
    """``pkernfs device list --json``, by name."""
    text = host.run(["pkernfs", "device", "list", "--json"]).check().stdout
    return {device["bdf"]: device for device in json.loads(text)["devices"]}


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


def start(host: Machine, name: str, command: str) -> None:
    """Start a program in the background; its output goes to a log of that name."""
    host.sh(
        f"PYTHONPATH=/usr/lib/pkernfs setsid {command} >/run/{name}.log 2>&1 </dev/null &"
    ).check()


def wait_log(host: Machine, name: str, word: str, timeout: float = 120) -> str:
    """Wait until a background program has said ``word``; all that it said."""
    text = ""

    def said() -> bool:
        nonlocal text
        text = host.run(["cat", f"/run/{name}.log"]).stdout
        if "Error" in text or "receiver:" in text:
            raise AssertionError(text)
        return word in text

    poll(said, timeout, f"{name} did not say {word}")
    return text


def start_receiver(host: Machine, verb: str, *words: str) -> str:
    """Start a receiver of numbered frames (``start`` or ``adopt``); the name of its log."""
    name = f"receiver-{time.monotonic_ns()}"
    command = f"python3 -m pkernfs.vfio.receiver {verb} --file {RINGS} {' '.join(words)}"
    start(host, name, command)
    return name


def receive(host: Machine, verb: str, *words: str) -> None:
    """Start a receiver and wait until it is ready."""
    wait_log(host, start_receiver(host, verb, *words), '"ready"')


def stop_receiver(host: Machine) -> None:
    """End the receiver, and with it the device's DMA."""
    host.sh("pkill -TERM -f '[p]kernfs.vfio.receiver'").check()
    poll(
        lambda: host.sh("pgrep -f '[p]kernfs.vfio.receiver'").status != 0, 60, "the receiver ended"
    )


def wait_landed(host: Machine, last: int) -> list[Landing]:
    """What the receivers found in memory, once the frame of number ``last`` is among it."""
    found: list[Landing] = []

    def there() -> bool:
        found[:] = landings(host)
        return any(entry.last >= last for entry in found if entry.kind is Kind.FRAMES)

    poll(there, 240, f"frame {last} did not land")
    return found


def landings(host: Machine) -> list[Landing]:
    """What the receivers found in memory."""
    command = ["python3", "-m", "pkernfs.vfio.receiver", "show", "--file", RINGS]
    return [
        Landing.from_json(value) for value in json.loads(host.run(command, env=ENV).check().stdout)
    ]
