# SPDX-License-Identifier: GPL-2.0-only
"""What fails in the next kernel: guests are set aside, or another kernel resumes them."""

from __future__ import annotations

import json
import struct

import pytest

from pkernfs.errors import PARTLY
from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from pkernfs.store import layout
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick
from .refusal import lines, refused
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@answers(
    phase="input",
    failure="a store from a newer format version",
    outcome="not mounted, not changed; pkernfs check names the version",
)
@answers(
    phase="resume",
    failure="a guest's QEMU does not start",
    outcome="set aside with its files, the others run; resume tries again",
)
@answers(
    phase="resume",
    failure="a guest's state does not load",
    outcome="set aside with its files, the others run; exit status 3; resume tries again",
)
def test_a_guest_that_does_not_come_back_can_be_tried_again(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    bad, good = tick.start(host, "bad"), tick.start(host, "good")
    # The directory is in this kernel's memory only.
    host.sh("mkdir /tmp/lost").check()
    file = ("-chardev", "file,id=lost,path=/tmp/lost/log,append=on")
    unlucky = tick.start(host, "unlucky", arguments=file)
    counts = bad.count(), good.count(), unlucky.count()
    later = ["--append", "pkernfs_lab_resume=no", "--watchdog", "0"]
    result = host.run(["pkernfs", "update", *later])
    assert result.status is None
    host.wait_reboot()
    state = f"{bad.directory}/state"
    host.sh(f"cp {state} /mnt/scratch/kept; dd if=/dev/zero of={state} bs=4k count=1 conv=notrunc")
    first = host.run(["pkernfs", "resume", "--json"])
    assert first.status == PARTLY
    results = {vm["name"]: vm["error"] for vm in json.loads(first.stdout)["vms"]}
    assert results["good"] == ""
    # QEMU's own words.
    assert "state can't be loaded" in results["bad"]
    assert "ection" in results["bad"] or "migration" in results["bad"]
    assert counts[1] < good.wait_count(counts[1] + 1) < counts[1] + 2000
    assert demo.report_of(host)["outcome"] == "partial"
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    states = {vm["name"]: vm["state"] for vm in listed}
    assert states == {"bad": "saved", "good": "running", "unlucky": "saved"}
    assert "/tmp/lost/log" in results["unlucky"]
    host.sh(f"mkdir /tmp/lost; cp /mnt/scratch/kept {state}").check()
    told = host.run(["pkernfs", "resume", "--events"]).check().stdout
    events = [json.loads(line) for line in told.splitlines()]
    assert {event["schema"] for event in events} == {"pkernfs-event/1"}
    order = [(event["event"], event["subject"], event["guest"]) for event in events]
    assert order.index(("end", "mount", None)) < order.index(("moment", "running", "bad"))
    assert ("result", "ok", "bad") in order
    assert counts[0] < bad.wait_count(counts[0] + 1) < counts[0] + 2000
    assert counts[2] < unlucky.wait_count(counts[2] + 1) < counts[2] + 2000
    assert demo.report_of(host)["outcome"] == "completed"
    for name in ("bad", "good", "unlucky"):
        host.run(["pkernfs", "vm", "stop", name, "--force"]).check()
    _of_another_version(host)


def _of_another_version(host: Machine) -> None:
    """Both super blocks get a version that is not known, from outside of the host."""
    host.sh("umount /mnt/pkernfs").check()
    with host.ram_file.open("r+b") as ram:
        kept = {}
        for slot in layout.SUPER_SLOTS:
            at = host.range_file.offset + slot * layout.SLOT_SIZE
            ram.seek(at)
            kept[at] = ram.read(layout.SLOT_SIZE)
            newer = bytearray(kept[at])
            struct.pack_into("<I", newer, layout.SUPER.offsets["version"], layout.VERSION + 1)
            checksum = layout.super_checksum(newer)
            struct.pack_into("<I", newer, layout.SUPER.offsets["checksum"], checksum)
            ram.seek(at)
            ram.write(newer)
        ram.flush()
        result = host.run(["pkernfs", "resume"])
        assert result.status == 1
        assert "a newer version of pkernfs made it" in result.stderr
        assert f"format version {layout.VERSION + 1}" in host.run(["pkernfs", "check"]).stdout
        for at, slot_content in kept.items():
            ram.seek(at)
            ram.write(slot_content)
    host.run(["pkernfs", "mount"]).check()
    assert lines(host, "ls /mnt/pkernfs/vms") == ["bad", "good", "unlucky"]
    host.run(["pkernfs", "check"]).check()


# Runs "pkernfs resume", which is killed when the first guest is about to run.
_KILLED = """
import os, signal, sys
sys.path.insert(0, "/usr/lib/pkernfs")
from pkernfs.vmm.launch import Attempt
def die(self):
    os.rename(f"{self.launch.files}/saved.json", f"{self.launch.files}/started.json")
    os.kill(os.getpid(), signal.SIGKILL)
Attempt._let_run = die
sys.argv = ["pkernfs", "resume"]
from pkernfs.cli import main
main()
"""


@answers(
    phase="resume",
    failure="killed just before a guest runs",
    outcome="resume again lets it run; what was saved is not loaded a second time",
)
def test_a_guest_that_was_about_to_run_is_let_run(new_host: HostFactory) -> None:
    """Of two guests; the other one is at whatever point it has come to by then."""
    host = new_host(kernel="6.12")
    guests = [tick.start(host, name) for name in ("one", "two")]
    counts = [guest.count() for guest in guests]
    result = host.run(["pkernfs", "update", "--append", "pkernfs_lab_resume=no", "--watchdog", "0"])
    assert result.status is None
    host.wait_reboot()
    (host.share / "killed.py").write_text(_KILLED)
    assert host.sh("python3 /mnt/share/killed.py; echo $?").stdout.splitlines()[-1] == "137"
    (started,) = lines(host, "ls /mnt/pkernfs/vms/*/started.json")
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    states = {vm["name"]: vm["state"] for vm in listed}
    assert states[started.split("/")[-2]] == "paused", states
    assert "running" not in states.values(), states
    host.run(["pkernfs", "resume"]).check()
    for guest, count in zip(guests, counts, strict=True):
        assert count < guest.wait_count(count + 1) < count + 2000
        guest.counts_on()
        assert lines(host, f"ls {guest.directory}/s* 2>/dev/null || :") == []
    host.run(["pkernfs", "check"]).check()


@answers(
    phase="load",
    failure="the running kernel asks for signatures, and the next one has none",
    outcome="doctor says so of its module; the load is refused; all guests run on",
)
@answers(
    phase="next kernel",
    failure="it has no module or does not mount the store",
    outcome="the watchdog goes back to the kernel before, which resumes",
)
@answers(
    phase="next kernel",
    failure="it has no module or does not mount the store, and there is no watchdog",
    outcome="the store is untouched; the next kernel that has both resumes",
)
def test_a_next_kernel_without_the_store_goes_back_and_the_right_one_resumes(
    new_host: HostFactory,
) -> None:
    """First the watchdog goes back, then somebody loads the next kernel as it should be."""
    host = new_host(kernel="6.12")
    guest = tick.start(host, "tick")
    count = guest.count()
    lost = "pkernfs_lab_store=no pkernfs_lab_resume=no"
    update = ["pkernfs", "update", "--append", lost]
    assert host.run([*update, "--watchdog", "40"]).status is None
    host.wait_reboot()
    assert lines(host, "uname -r")[0].startswith("7.3")
    assert lines(host, "grep -c pkernfs /proc/filesystems || :") == ["0"]
    hello = host.wait_reboot()
    assert lines(host, "uname -r")[0].startswith("6.12")
    assert hello.resume == 0
    assert count < guest.wait_count(count + 1) < count + 2000
    report = demo.report_of(host)
    assert report["outcome"] == "went back"
    assert "the watchdog left 7.3" in report["text"]
    assert report["host"]["kernel_after"] == report["host"]["kernel_before"]
    host.run(["pkernfs", "check"]).check()

    count = guest.count()
    assert host.run([*update, "--watchdog", "0"]).status is None
    host.wait_reboot()
    script = (
        f"line=$(sed 's/{lost}//' /proc/cmdline); kexec -s -l /boot/vmlinuz-$(uname -r)"
        ' --initrd /boot/pkernfs-lab-initrd-$(uname -r) --command-line "$line" && kexec -e'
    )
    assert host.sh(script).status is None
    hello = host.wait_reboot()
    assert hello.resume == 0
    assert lines(host, "uname -r")[0].startswith("7.3")
    assert count < guest.wait_count(count + 1) < count + 2000
    assert demo.report_of(host)["outcome"] == "completed"
    guest.counts_on()

    _under_lockdown(host, guest)


#: A QEMU that in the next kernel finds its guest's state in a pipe into which nobody writes.
_NO_DATA = """#!/bin/sh
case $(uname -r) in
7.3*)
	if mkfifo /run/no-data; then
		mount --bind /run/no-data /mnt/pkernfs/vms/tick/state
		exec 9<>/run/no-data
	fi
esac
exec qemu-system-x86_64 "$@"
"""


@answers(
    phase="next kernel",
    failure="pkernfs resume does not report in time",
    outcome="the watchdog goes back to the kernel before, which resumes; the report says went back",
)
def test_a_state_that_does_not_end_goes_back(new_host: HostFactory) -> None:
    """A resume that hangs, because a guest's QEMU waits for ever for its state."""
    host = new_host(kernel="6.12")
    (host.share / "no-data").write_text(_NO_DATA)
    host.sh("install -m 755 /mnt/share/no-data /mnt/scratch/no-data").check()
    guest = tick.start(host, "tick", options=["--qemu", "/mnt/scratch/no-data"])
    count = guest.count()
    assert host.run(["pkernfs", "update", "--watchdog", "60"]).status is None
    hello = host.wait_reboot()
    if hello.kernel.startswith("7.3"):  # resume was ended, and the lab's agent came just in time
        hello = host.wait_reboot()
    assert hello.kernel.startswith("6.12")
    assert hello.resume == 0
    assert count < guest.wait_count(count + 1) < count + 2000
    report = demo.report_of(host)
    assert report["outcome"] == "went back"
    assert "pkernfs resume did not report within 60 s" in report["text"]
    assert [line for line in host.console.lines if "Linux version 7.3" in line.text]
    guest.counts_on()
    host.run(["pkernfs", "check"]).check()


def _under_lockdown(host: Machine, guest: Tick) -> None:
    """Debian's kernels are signed, and one loses its signature here; the lab's modules have none.

    Lockdown can't be taken back, so this is the last thing to do with a host.
    """
    security = "/sys/kernel/security"
    host.sh(f"mountpoint -q {security} || mount -t securityfs none {security}").check()
    host.sh(f"echo integrity >{security}/lockdown").check()
    host.allow("Lockdown: .* see man kernel_lockdown")
    back = "pkernfs update --kernel /boot/vmlinuz-6.12*"
    refused(guest, back, "is not signed, and this machine loads signed modules only")
    # The size of the certificate table, in the fifth data directory of the PE header.
    host.sh(
        "cp /boot/vmlinuz-6.12* /tmp/unsigned && dd if=/dev/zero of=/tmp/unsigned bs=1 count=4"
        " seek=$((0xec)) conv=notrunc status=none"
    ).check()
    unsigned = (
        "pkernfs update --kernel /tmp/unsigned --initrd /boot/pkernfs-lab-initrd-6.12*"
        " --override module.next-unsigned"
    )
    refused(guest, unsigned, "/tmp/unsigned is not signed")
    # What the kernel itself says to that. In this host, which has no UEFI and so none of its
    # keys, it refuses Debian's signed kernels too: it has to trust the key.
    refused(guest, f"{unsigned} --override kernel.unsigned", "refuses to load /tmp/unsigned")
