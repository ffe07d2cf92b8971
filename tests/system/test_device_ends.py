# SPDX-License-Identifier: GPL-2.0-only
"""Inherited devices whose kernel ends otherwise than by an update, and the hosts around them."""

from __future__ import annotations

import pytest

from pkernfs.lab import devices, hardware
from pkernfs.lab.hardware import HARDWARE
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.vfio.edu_program import IOVA, PATTERN
from tests.answers import answers

from . import device_host as on

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
KERNELS = pytest.mark.parametrize("kernel", ["6.12", "7.3"])
#: Where edu_program's "poke" writes to, as the device sees it.
POKED = IOVA + 0x8000
#: Nobody else's memory, for a device that takes its addresses for those of the host.
SPARE = f"memmap=2M${IOVA:#x}"
#: What an update left in the boot line, and a kernel without it: translation is off there.
LEFT = ("pkernfs_update", "pkernfs_watchdog", "pkernfs_back", "panic")
UNTRANSLATED = ("intel_iommu=off", "pkernfs_lab_resume=no")


def edu_host(kernel: str, *append: str, allowed: tuple[str, ...] = ()) -> Machine:
    """A host with two edu devices."""
    allowed = (*devices.EXPECTED, *allowed)
    append = (SPARE, *append)
    return Machine(HostConfig(kernel=kernel, extra=on.EDUS, append=append, allowed=allowed))


def inherit(host: Machine, kernel: str, *more: str) -> None:
    """The first edu device works on tables that the kernel before left."""
    devices.start_edu(host, on.EDU)
    host.run(["pkernfs", "device", "preserve", on.EDU]).check()
    on.update(host, kernel, *more)
    assert devices.listed(host)[on.EDU]["state"] == "inherited"
    assert devices.poke_edu(host, on.EDU)["landed"] is True
    # What was the disguise of this kernel is not in the line that others give to theirs.
    assert host.sh("grep -c elfcorehdr /proc/cmdline").stdout.strip() == "0"


def poked(host: Machine, *modes: str) -> dict[str, bool]:
    """What became of the device: its bus master, and whether its DMA got anywhere.

    Where nothing translates, an address of the device is one of the host: in its first 2 GiB,
    which are the first of the file behind its RAM.
    """
    with host.ram_file.open("r+b") as ram:
        ram.seek(POKED)
        ram.write(bytes(len(PATTERN)))
        ram.flush()
        said = devices.poke_edu(host, on.EDU, *modes)
        ram.seek(POKED)
        astray = ram.read(len(PATTERN)) == PATTERN
    return {"master": said["master"], "landed": said["landed"], "astray": astray}


NOWHERE = {"master": False, "landed": False, "astray": False}


@answers(
    phase="up to the jump",
    failure="a kexec by another program while a device still works on inherited tables",
    outcome="the device is cut off before translation ends",
)
@KERNELS
def test_a_kexec_by_others_cuts_inherited_devices_off(kernel: str) -> None:
    """Into a kernel that switches translation off: DMA would go to the host's own memory."""
    with edu_host(kernel) as host:
        inherit(host, kernel)
        on.load(host, "-l", kernel, drop=(*LEFT, "intel_iommu"), add=UNTRANSLATED)
        assert host.sh("kexec -e").status is None
        host.wait_reboot()
        assert poked(host) == NOWHERE


@answers(
    phase="next kernel",
    failure="the watchdog goes back while a device works on inherited tables",
    outcome="the device is cut off, its guest comes back without it",
)
def test_the_watchdog_goes_back_without_the_device() -> None:
    with edu_host("6.12") as host:
        inherit(host, "7.3", "--watchdog", "60", "--append", "pkernfs_lab_resume=no")
        hello = host.wait_reboot()
        assert hello.kernel.startswith("6.12")
        assert devices.poke_edu(host, on.EDU)["master"] is False


@answers(
    phase="next kernel",
    failure="it crashes while a device works on inherited tables",
    outcome="the device is stopped; a crash kernel that was loaded there has its dump to take",
)
@pytest.mark.parametrize(("kernel", "after"), [("6.12", "7.3"), ("7.3", "6.12")])
def test_a_crash_after_an_update(kernel: str, after: str) -> None:
    """The device can't reach memory in the crash kernel, which has a dump to take."""
    expected = ("sysrq", "Kernel panic - not syncing: sysrq triggered crash")
    with edu_host(kernel, "crashkernel=512M", allowed=expected) as host:
        inherit(host, after)
        release = host.sh("uname -r").check().stdout.strip()
        on.load(host, "-p", after, drop=(*LEFT, "intel_iommu"), add=UNTRANSLATED)
        host.sh("(sleep 0.2; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
        host.wait_reboot()
        notes = host.sh("head -c 65536 /proc/vmcore | grep -a OSRELEASE=").stdout
        dump = f"OSRELEASE={release}" in notes
        assert (dump, poked(host)) == (True, NOWHERE)


_TAKE_AND_LEAVE = """
import sys
from pkernfs.vfio.bind import bind, load_vfio
from pkernfs.vfio.container import Container
from pkernfs.vfio.group import Group
load_vfio()
bind(sys.argv[1])
with Container() as container, Group.of(sys.argv[1]) as group:
    group.join(container)
"""


@pytest.mark.parametrize(("kernel", "after"), [("6.12", "7.3"), ("7.3", "6.12")])
def test_other_devices_of_a_host_that_does_not_translate_for_them(kernel: str, after: str) -> None:
    """iommu=pt: drivers of the kernel see memory as it is, and never ask for a translation."""
    config = HostConfig(
        kernel=kernel,
        devices=("nvme",),
        extra=on.EDUS,
        append=(SPARE, "iommu=pt"),
        allowed=devices.EXPECTED,
    )
    with Machine(config) as host:
        image = hardware.disk("nvme", host.ram_dir)
        with image.open("r+b") as disk:
            disk.write(b"disk" * 1024)
        host.sh("modprobe nvme && head -c 4 /dev/nvme0n1 | grep -q disk").check()
        inherit(host, after)
        host.sh("timeout 60 modprobe nvme").check()
        host.sh("for i in $(seq 60); do test -b /dev/nvme0n1 && break; sleep 1; done").check()
        host.sh("timeout 60 head -c 4 /dev/nvme0n1 | grep -q disk").check()
        host.sh("echo new | timeout 60 dd of=/dev/nvme0n1 conv=fsync,notrunc").check()
        assert image.read_bytes()[:8] == b"new\ndisk"
        assert devices.faults(host, HARDWARE["nvme"].root) == []
        assert devices.listed(host)[on.EDU]["state"] == "inherited"
        # Taken by VFIO and left again, then released: an ordinary device of such a host.
        host.run(["python3", "-c", _TAKE_AND_LEAVE, on.EDU], env=devices.ENV).check()
        assert devices.poke_edu(host, on.EDU)["landed"] is True
        host.run(["pkernfs", "device", "release", on.EDU]).check()
        assert poked(host) == NOWHERE
        assert poked(host, "all") == {**NOWHERE, "astray": True}
