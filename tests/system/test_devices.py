# SPDX-License-Identifier: GPL-2.0-only
"""Preserved devices: what is refused, what is cut off, what is guarded; with QEMU's edu device."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.lab import devices
from pkernfs.lab.machine import HostConfig, Machine, poll
from pkernfs.lab.memory import HIGH_START, Layout
from tests.answers import answers
from tests.kernels import FIRST, KERNELS, NEXT, successor

from . import device_host as on

pytestmark = pytest.mark.system
SCRIPT = Path(__file__).parent / "scripts" / "handover_edu.py"


def edu_host(kernel: str, *append: str, allowed: tuple[str, ...] = (), nodes: int = 1) -> Machine:
    """A host with two edu devices.

    :param append: more words for the boot line.
    :param allowed: more lines of the kernel log that are expected.
    :param nodes: NUMA nodes, each with a store.
    """
    return Machine(
        HostConfig(
            kernel=kernel,
            layout=Layout.of(nodes=nodes),
            extra=on.EDUS,
            append=append,
            allowed=(*devices.EXPECTED, *allowed),
        )
    )


@pytest.fixture(params=KERNELS)
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with edu_host(request.param) as machine:
        yield machine


def in_use(host: Machine, file: str = devices.EDU_FILE) -> None:
    """Both devices in use by VFIO, the first one preserved."""
    host.upload(SCRIPT)
    devices.start_edu(host, on.EDU, on.OTHER, file=file)
    host.run(["pkernfs", "device", "preserve", on.EDU]).check()


def steps(host: Machine, *modes: str, file: str = devices.EDU_FILE) -> dict[str, dict[str, Any]]:
    """What the script says about taking the preserved device over, by step."""
    argv = ["python3", f"/mnt/share/{SCRIPT.name}", file, on.EDU, *modes]
    lines = host.run(argv, env=devices.ENV).check().stdout.splitlines()
    return {value["step"]: value for value in map(json.loads, lines)}


def refusal(host: Machine, command: str) -> str:
    """What a command that must fail says."""
    result = host.sh(command)
    assert result.status not in (0, None), command
    return result.stderr


def test_taken_over_step_by_step(host: Machine) -> None:
    in_use(host)
    on.update(host, successor(host.config.kernel))
    other = devices.poke_edu(host, on.OTHER, "all")
    assert (other["master"], other["landed"]) == (False, False)
    poll(lambda: bool(devices.faults(host, on.OTHER)), 20, "a fault of the device that is cut off")
    # Until it is adopted, the memory that it works on stays where it is.
    assert "in use" in refusal(host, "rmmod pkernfs_dma")
    for command in ("truncate -s 1M", "fallocate -p -o 2M -l 2M", "rm"):
        assert "busy" in refusal(host, f"{command} /mnt/pkernfs/edu"), command
    assert "busy" in refusal(host, f"rm /mnt/pkernfs/iommu/{on.EDU}")
    done = steps(host, "wrong")
    refused = {step: value["refused"] for step, value in done.items() if "refused" in value}
    at = f"can't be adopted: {on.EDU}: "
    assert f"{at}no VFIO user has taken it yet" in refused["adopt: not taken"]
    assert f"{at}IOVA 0x40000000 was read-write" in refused["adopt: nothing mapped"]
    assert "now unmapped" in refused["adopt: nothing mapped"]
    assert f"{at}IOVA 0x40000000 was read-write" in refused["adopt: shifted"]
    assert f"{at}IOVA 0x40000000 was read-write" in refused["adopt: other file"]
    assert "now read-write at" in refused["adopt: other file"]
    assert "now read at" in refused["adopt: read only"]
    assert f"{at}IOVA 0x42000000 was read-write" in refused["adopt: half"]
    landed = {step: value["landed"] for step, value in done.items() if "landed" in value}
    assert [step for step, there in landed.items() if not there] == ["unmapped"]
    assert done["mapped"]["state"] == "inherited"
    assert done["opened"]["state"] == "preserved"
    assert done["opened"]["switch_us"] > 0
    # Back to ordinary: the tables are given back, the file is free, the module can go.
    assert on.EDU not in host.sh("ls /mnt/pkernfs/iommu").check().stdout
    host.run(["pkernfs", "device", "release", on.EDU]).check()
    host.sh("rm /mnt/pkernfs/edu && rm -f /mnt/pkernfs/iommu/* && rmmod pkernfs_dma").check()
    assert all("fault addr 0x4" in line for line in devices.faults(host, on.EDU))
    assert len(devices.faults(host, on.EDU)) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_switched_on_demand(kernel: str) -> None:
    """Two devices in one VFIO container, as those of one guest; its memory in a second store."""
    file = "/mnt/pkernfs-node1/edu"
    with edu_host(kernel, nodes=2) as host:
        in_use(host, file)
        host.run(["pkernfs", "device", "preserve", on.OTHER]).check()
        on.update(host, kernel)
        assert "busy" in refusal(host, f"truncate -s 1M {file}")
        done = steps(host, "explicit", f"beside={on.OTHER}", file=file)
        assert done["adopt: explicit"]["refused"] == ""
        assert done["explicit"]["state"] == "preserved"
        assert done["second joined"]["state"] == "inherited"
        assert done["second opened"]["state"] == "preserved"
        assert [s for s, v in done.items() if v.get("landed") is False] == ["unmapped"]
        assert devices.faults(host, on.OTHER) == []


def test_what_is_guarded(host: Machine) -> None:
    in_use(host)
    assert "in use" in refusal(host, "rmmod pkernfs_dma")
    host.sh("echo 1 >/sys/fs/pkernfs_dma/arm").check()
    for command in (
        "rm /mnt/pkernfs/edu",
        "truncate -s 1M /mnt/pkernfs/edu",
        "fallocate -p -o 2M -l 2M /mnt/pkernfs/edu",
        "touch /mnt/pkernfs/other && mv /mnt/pkernfs/other /mnt/pkernfs/edu",
        "rm /mnt/pkernfs/iommu/root-pgtables",
    ):
        assert "busy" in refusal(host, command), command
    assert f"{on.EDU} reaches" in host.sh("dmesg").stdout
    for command in (
        "cat /mnt/pkernfs/iommu/root-pgtables",
        "echo x >/mnt/pkernfs/iommu/root-pgtables",
        f"truncate -s 0 /mnt/pkernfs/iommu/{on.EDU}",
        f"chmod 644 /mnt/pkernfs/iommu/{on.EDU}",
        "touch /mnt/pkernfs/iommu/new",
        "mkdir /mnt/pkernfs/iommu/new",
        "mv /mnt/pkernfs/iommu/root-pgtables /mnt/pkernfs/mine",
        "mv /mnt/pkernfs/iommu /mnt/pkernfs/mine",
        "mv /mnt/pkernfs/other /mnt/pkernfs/iommu/other",
    ):
        assert "not permitted" in refusal(host, command), command
    names = host.sh("ls /mnt/pkernfs/iommu").check().stdout.split()
    assert names == [on.EDU, "root-pgtables"]
    host.sh("echo 0 >/sys/fs/pkernfs_dma/arm").check()
    assert host.sh("ls /mnt/pkernfs/iommu").check().stdout == ""
    host.run(["pkernfs", "device", "release", on.EDU]).check()
    host.sh("truncate -s 1M /mnt/pkernfs/edu && rmmod pkernfs_dma").check()


@answers(
    phase="check",
    failure="no room in the store for a preserved device's tables",
    outcome="refused, the device works on",
)
def test_no_room_no_update(host: Machine) -> None:
    in_use(host)
    boot_id = host.sh("cat /proc/sys/kernel/random/boot_id").stdout
    host.sh(
        "fallocate -l $(df -B1 --output=avail /mnt/pkernfs | tail -1) /mnt/pkernfs/fill"
    ).check()
    refusal(host, "echo 1 >/sys/fs/pkernfs_dma/arm")
    assert "no room for" in host.sh("cat /sys/fs/pkernfs_dma/message").stdout
    refusal(host, "pkernfs update --kernel $(uname -r)")
    assert host.sh("cat /proc/sys/kernel/random/boot_id").stdout == boot_id
    assert host.sh("cat /sys/fs/pkernfs_dma/arm").stdout.strip() == "0"
    # A reboot is one, armed or not.
    host.sh("rm /mnt/pkernfs/fill && echo 1 >/sys/fs/pkernfs_dma/arm").check()
    host.sh("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")
    poll(lambda: bool(on.kernel_says(host, "reboot: machine restart")), 60, "no reboot")
    assert not on.kernel_says(host, "handed over")


@answers(
    phase="check",
    failure="a device that can't be preserved, or that nobody uses",
    outcome="refused, nothing touched",
)
def test_nobody_uses_it(host: Machine) -> None:
    host.run(["pkernfs", "device", "preserve", on.EDU]).check()
    assert "nobody uses it through VFIO" in refusal(host, "pkernfs update --kernel $(uname -r)")
    assert "shares its IOMMU group" in refusal(host, "pkernfs device preserve 0000:00:1f.2")
    assert "no PCI device" in refusal(host, "pkernfs device preserve 0000:00:1c.0")


@answers(
    phase="next kernel",
    failure="what it is told about preserved devices is damaged",
    outcome="these devices are cut off; memory and store are whole",
)
def test_a_damaged_record_cuts_the_device_off(host: Machine) -> None:
    in_use(host)

    def damage() -> None:
        """While the next kernel boots, one byte of the record changes."""
        poll(lambda: bool(on.kernel_says(host, "Copied translation tables")), 300, "a next kernel")
        at = host.range_file.offset + record - HIGH_START + 4096
        with host.range_file.file.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    host.sh("echo 1 >/sys/fs/pkernfs_dma/arm").check()
    record = int(host.sh("cat /sys/fs/pkernfs_dma/record").check().stdout, 16)
    thread = threading.Thread(target=damage)
    thread.start()
    on.update(host, host.config.kernel)
    thread.join()
    assert on.kernel_says(host, "is not trusted: its checksum is wrong")
    assert on.kernel_says(host, f"{on.EDU} is cut off")
    poked = devices.poke_edu(host, on.EDU, "all")
    assert (poked["master"], poked["landed"]) == (False, False)
    assert host.sh("stat -c %s /mnt/pkernfs/edu").check().stdout.strip() == str(64 << 20)
    # As if nothing had been: used, preserved, updated.
    in_use(host)
    on.update(host, host.config.kernel)
    assert steps(host)["opened"]["state"] == "preserved"


def test_an_unknown_kernel(host: Machine) -> None:
    said = refusal(host, "modprobe pkernfs_dma require=pci_clear_master,no_such_function")
    assert "pkernfs_dma" in said
    assert on.kernel_says(host, "refused: this kernel has no no_such_function")
    host.sh("touch /mnt/pkernfs/there && modprobe pkernfs_dma && rmmod pkernfs_dma").check()


def test_a_kernel_that_has_inlined_what_is_diverted(host: Machine) -> None:
    fine = "domain_context_clear_one>iommu_context_addr"
    refusal(
        host, f"modprobe pkernfs_dma 'require={fine},domain_context_clear_one>pci_clear_master'"
    )
    what = "refused: domain_context_clear_one does not call pci_clear_master"
    assert on.kernel_says(host, what)
    host.sh(f"modprobe pkernfs_dma 'require={fine}' && rmmod pkernfs_dma").check()


@answers(
    phase="next kernel",
    failure="the module for devices refuses it",
    outcome="it boots and mounts; devices can't reach memory any more",
)
def test_an_unknown_kernel_inherits_a_device() -> None:
    """The host boots and mounts; the device stops, and a module that fits cuts it off."""
    with edu_host(FIRST) as host:
        in_use(host)
        with pytest.raises(PkernfsError, match="taking devices over"):
            on.update(host, NEXT, "--append", "pkernfs_dma.require=no_such_function")
        assert on.kernel_says(host, "refused: this kernel has no no_such_function")
        assert host.sh("stat -c %s /mnt/pkernfs/edu").check().stdout.strip() == str(64 << 20)
        assert on.kernel_says(host, f"{on.EDU} is stopped: this kernel is refused")
        poked = devices.poke_edu(host, on.EDU)
        assert (poked["master"], poked["landed"]) == (False, False)
        host.sh("modprobe pkernfs_dma require=pci_clear_master").check()
        assert on.kernel_says(host, f"{on.EDU} is cut off: no record speaks for its tables")
        poked = devices.poke_edu(host, on.EDU, "all")
        assert (poked["master"], poked["landed"]) == (False, False)
        host.sh("echo there >/mnt/pkernfs/new && rm /mnt/pkernfs/edu").check()


def test_no_other_vfio_than_groups_and_containers(host: Machine) -> None:
    """Debian builds its kernels without iommufd. Once it does, adoption has to be tried with it."""
    assert host.sh("grep CONFIG_IOMMUFD= /boot/config-$(uname -r)").stdout == ""
    assert host.sh("modinfo iommufd").status != 0


@answers(
    phase="up to the jump",
    failure="a kexec by another program, or a crash, while devices are ready",
    outcome="an ordinary one: devices are not handed over",
)
def test_others_are_as_on_a_stock_kernel() -> None:
    """A kexec by somebody else, and a crash, even with a hand-over armed."""
    expected = ("sysrq", "Kernel panic - not syncing: sysrq triggered crash")
    with edu_host(FIRST, "crashkernel=512M", allowed=expected) as host:
        in_use(host)
        host.sh("echo 1 >/sys/fs/pkernfs_dma/arm").check()
        on.load(host, "-l", NEXT)
        assert host.sh("kexec -e").status is None
        host.wait_reboot()
        assert on.kernel_says(host, "not handed over: this kexec is not by the process that armed")
        assert not on.kernel_says(host, "pkernfs_dma: handed over")
        assert not on.kernel_says(host, "Copied translation tables")
        assert devices.poke_edu(host, on.EDU)["master"] is False

        in_use(host)
        host.sh("echo 1 >/sys/fs/pkernfs_dma/arm").check()
        on.load(host, "-p", NEXT)
        host.sh("(sleep 0.2; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
        host.wait_reboot()
        assert not on.kernel_says(host, "pkernfs_dma: handed over")
        # A crash kernel it stays: there is a dump to take, and the module keeps away.
        host.sh("test -s /proc/vmcore && ls /mnt/pkernfs/edu").check()
        refusal(host, "modprobe pkernfs_dma")
        assert on.kernel_says(host, "refused: this kernel was started after a crash")


def test_an_ordinary_kexec_is_ordinary(host: Machine) -> None:
    in_use(host)
    # Not armed: as on a stock kernel.
    on.load(host, "-l", host.config.kernel)
    assert host.sh("kexec -e").status is None
    host.wait_reboot()
    time.sleep(1)
    assert not on.kernel_says(host, "handed over")
    assert not on.kernel_says(host, "Copied translation tables")
    assert devices.poke_edu(host, on.EDU)["master"] is False
