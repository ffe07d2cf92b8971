# SPDX-License-Identifier: GPL-2.0-only
"""Devices of the lab's hosts by name: all in one host, each at work; and what is said of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from pkernfs.lab import devices, hardware
from pkernfs.lab.hardware import HARDWARE
from pkernfs.lab.machine import HostConfig, Machine, poll
from tests.answers import answers

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

_PCI = "/sys/bus/pci/devices"
#: The one that QEMU's igb and the driver have for the first of them.
VIRTUAL = "0000:00:1c.0"
_DRIVERS = {
    "e1000e": "e1000e",
    "igb": "igb",
    "virtio-net-ats": "virtio-pci",
    "xhci": "xhci_hcd",
    "nvme": "nvme",
}
#: Is ATS on? In configuration space: PCIe's extended capability 0xf, Enable in its control.
_ATS_IS_ON = """
import sys
config = open(sys.argv[1], "rb").read()
word = lambda at: int.from_bytes(config[at:at + 4], "little")
at = 0x100
while word(at) & 0xffff != 0xf:
    at = word(at) >> 20
print(word(at + 4) >> 31)
"""
_GIVE_TO_VFIO = """
import sys
from pkernfs.vfio.bind import bind, load_vfio
load_vfio()
for bdf in sys.argv[1:]:
    bind(bdf)
"""


def bdf(host: Machine, name: str) -> str:
    """PCI name of a device of the lab."""
    device = HARDWARE[name]
    if not device.port:
        return device.root
    return host.sh(f"cd {_PCI}/{device.root} && echo ????:??:??.?").check().stdout.strip()


def driver(host: Machine, place: str) -> str:
    """Which driver has a device."""
    return host.sh(f"basename $(readlink {_PCI}/{place}/driver)").check().stdout.strip()


def echoed(host: Machine, space: str) -> bool:
    """Does the far end answer to a network namespace?"""
    return host.sh(f"ip netns exec {space} busybox ping -c 1 -W 2 10.0.0.1").status == 0


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    """With all of them, their drivers loaded, and a virtual function."""
    config = HostConfig(
        kernel="7.3", iommu="vtd-ats", devices=tuple(HARDWARE), allowed=devices.EXPECTED
    )
    with Machine(config) as machine:
        machine.sh("modprobe -a e1000e igb igbvf virtio_net xhci_pci nvme").check()
        # Its functions ask it for their addresses, so it has to be up.
        card = bdf(machine, "igb")
        machine.sh(
            f"ip link set $(ls {_PCI}/{card}/net) up && echo 2 >{_PCI}/{card}/sriov_numvfs"
        ).check()
        yield machine


def test_each_has_its_driver(host: Machine) -> None:
    found = {name: driver(host, bdf(host, name)) for name in _DRIVERS}
    assert found == _DRIVERS
    assert driver(host, VIRTUAL) == "igbvf"


def test_the_wire_leads_from_every_card_to_the_others(host: Machine) -> None:
    """From the other cards and a virtual function to the one with ATS, which is in use."""
    far = bdf(host, "virtio-net-ats")
    host.sh(
        f"ip netns add far && ip link set $(ls {_PCI}/{far}/virtio*/net) netns far name wire &&"
        " ip -n far address add 10.0.0.1/24 dev wire && ip -n far link set wire up"
    ).check()
    near = [bdf(host, "e1000e"), bdf(host, "igb"), VIRTUAL]
    for number, place in enumerate(near, start=2):
        host.sh(
            f"ip netns add n{number} &&"
            f" ip link set $(ls {_PCI}/{place}/net) netns n{number} name wire &&"
            f" ip -n n{number} address add 10.0.0.{number}/24 dev wire &&"
            f" ip -n n{number} link set wire up"
        ).check()
    for number, place in enumerate(near, start=2):
        poll(partial(echoed, host, f"n{number}"), 60, f"nothing came back to {place}")
    words = ["python3", "-c", _ATS_IS_ON, f"{_PCI}/{far}/config"]
    assert host.run(words).check().stdout == "1\n"


def test_usb_and_disk(host: Machine) -> None:
    poll(
        lambda: "QEMU USB Tablet" in host.sh("cat /sys/bus/usb/devices/*/product").stdout,
        60,
        "no USB device was found",
    )
    file = hardware.disk("nvme", host.ram_dir)
    with file.open("r+b") as disk:
        disk.write(b"from the lab".ljust(512, b"."))
    host.sh("test $(head -c 12 /dev/nvme0n1 | tr ' ' _) = from_the_lab").check()
    host.sh("echo from the host | dd of=/dev/nvme0n1 seek=1 conv=sync,fsync").check()
    with file.open("rb") as disk:
        assert disk.read(524)[512:] == b"from the hos"


@answers(
    phase="check",
    failure="a virtual function, the card above it, a device with ATS, a USB controller is to be"
    " preserved",
    outcome="refused, with the reason; doctor says it before",
)
def test_what_would_not_work_on_is_refused(host: Machine) -> None:
    refused = {
        bdf(host, "xhci"): "is a USB controller",
        bdf(host, "virtio-net-ats"): "can keep translations of its own (ATS): boot with pci=noats",
        VIRTUAL: "is a virtual function",
    }
    above = {bdf(host, "igb"): "runs virtual functions"}
    for place, why in (refused | above).items():
        result = host.run(["pkernfs", "device", "preserve", place])
        assert result.status == 1
        assert f"{place} can't be preserved: it {why}" in result.stderr
    fine = [bdf(host, name) for name in ("nvme", "edu")]
    for place in fine:
        host.run(["pkernfs", "device", "preserve", place]).check()
    assert {place: entry["state"] for place, entry in devices.listed(host).items()} == (
        dict.fromkeys(fine, "preserved")
    )
    for place in fine:
        host.run(["pkernfs", "device", "release", place]).check()
    # doctor speaks of what VFIO drives. Not of the card above virtual functions: it would end them.
    taken = [*refused, *fine]
    host.run(["python3", "-c", _GIVE_TO_VFIO, *taken], env=devices.ENV).check()
    said = host.run(["pkernfs", "doctor"]).stdout
    for place, why in refused.items():
        assert f"{place} can't be preserved: it {why}" in said
    for place in fine:
        assert f"{place} can be preserved" in said
    hidden = host.sh("setpriv --reuid=65534 --clear-groups cat /sys/fs/pkernfs_dma/devices")
    assert "denied" in hidden.stderr


def test_by_the_command_line() -> None:
    """``lab run --device``."""
    words = [sys.executable, "-c", "from pkernfs.cli import main; main()", "lab", "run"]
    words += ["--no-store", "--device", "edu", "--device", "xhci", "--"]
    command = f"cat {_PCI}/{HARDWARE['edu'].root}/vendor {_PCI}/{HARDWARE['xhci'].root}/class"
    done = subprocess.run(
        [*words, *command.split()], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0x1234", "0x0c0330"], done.stderr
