# SPDX-License-Identifier: GPL-2.0-only
"""A reset that leaves memory as it was, or nearly: the ordinary boot after it goes on or says why.

The hosts' machine resets itself, as hardware does; their memory stays, and what the firmware
does not need of it is not touched.
"""

from __future__ import annotations

import json

import pytest

from pkernfs.errors import PARTLY
from pkernfs.lab import demo
from pkernfs.lab.machine import Machine, poll
from pkernfs.store.check import check
from pkernfs.store.image import open_image
from pkernfs.store.layout import BLOCK_SHIFT
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick
from .refusal import lines

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

_ACTION = ("-action", "reboot=reset")
_RESETS = {"units": True, "extra": _ACTION, "allowed": ("Kernel panic",)}
#: A kernel that panics before its first program, for there is none; and after so many seconds
#: it resets the machine.
_PANICS = "rdinit=/none panic=20"


def _panic(host: Machine) -> None:
    """Update to a kernel that panics, and wait until it has."""
    seen = len(host.console.lines)
    host.sh(f"pkernfs update --append '{_PANICS}' >/mnt/share/update.log 2>&1 &").check()
    said = "Kernel panic - not syncing"
    poll(lambda: any(said in it.text for it in host.console.lines[seen:]), 400, "the panic")


def _resumed(host: Machine) -> tuple[int, str]:
    """The status with which the ordinary boot's resume ended, and what it said."""
    unit = "pkernfs-resume.service"

    def ended() -> bool:
        return host.run(["systemctl", "is-active", unit]).stdout.strip() in ("active", "failed")

    poll(ended, 240, "the resume of an ordinary boot")
    shown = host.run(["systemctl", "show", "--value", "-p", "ExecMainStatus", unit])
    said = host.run(["journalctl", "--no-pager", "-o", "cat", "-u", unit]).check().stdout
    return int(shown.check().stdout), said


def _states(host: Machine) -> dict[str, str]:
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    return {vm["name"]: vm["state"] for vm in listed}


def _scribble(host: Machine, path: str) -> None:
    """Somebody else writes into a file's part of the range: all of its first extent."""
    where = host.range_file
    with open_image(where.file, where.offset, where.size) as image:
        tree = check(image).tree
        assert tree is not None
        extent = tree.lookup(path).extents[0]
    with where.file.open("r+b") as ram:
        ram.seek(where.offset + (extent.block << BLOCK_SHIFT))
        ram.write(b"\xa5" * min(extent.count << BLOCK_SHIFT, 1 << 20))


@answers(
    phase="next kernel",
    failure="it panics or hangs, and the host is reset; its memory stays",
    outcome="an ordinary boot checks the guests' fingerprints and resumes them",
)
@answers(
    phase="next kernel",
    failure="it panics or hangs, the host is reset, and memory is not what it was",
    outcome="those guests stay saved, the others run; vm start --anew boots them from their disks",
)
@answers(
    phase="up to the jump",
    failure="the host is reset while guests run, and its memory stays",
    outcome="vm list, doctor, resume and vm start say that they were cut off; vm start boots them"
    " from their disks",
)
def test_an_ordinary_boot_after_a_reset_goes_on_with_what_is_whole(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12", **_RESETS)
    one, two = tick.start(host, "one"), tick.start(host, "two")
    counts = one.count(), two.count()
    _panic(host)
    hello = host.wait_reboot()
    assert hello.kernel.startswith("6.12")
    assert lines(host, "grep -c pkernfs_update= /proc/cmdline || :") == ["0"]
    status, said = _resumed(host)
    assert status == 0, said
    for guest, count in zip((one, two), counts, strict=True):
        assert count < guest.wait_count(count + 1) < count + 20000
    report = demo.report_of(host)
    assert (report["outcome"], report["text"][:18]) == ("went back", "the host was reset")

    counts = one.count(), two.count()
    _panic(host)
    _scribble(host, "vms/two/ram")
    host.wait_reboot()
    status, said = _resumed(host)
    assert status == PARTLY, said
    assert counts[0] < one.wait_count(counts[0] + 1) < counts[0] + 20000
    assert _states(host) == {"one": "running", "two": "saved"}
    again = host.run(["pkernfs", "resume"])
    assert again.status == 1
    assert "guest two: its memory or state is not what update" in again.stderr
    assert "pkernfs vm start two --anew" in again.stderr
    # It counts from nothing again.
    host.sh(f": >{two.disks}/two.log").check()
    host.run(["pkernfs", "vm", "start", "two", "--anew"]).check()
    two.counts_on()

    host.sh("(sleep 0.2; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.wait_reboot()
    status, said = _resumed(host)
    assert status == 0, said
    assert "guest one was on when its kernel ended without an update" in said
    assert _states(host) == {"one": "lost", "two": "lost"}
    found = json.loads(host.run(["pkernfs", "doctor", "--json"]).stdout)["findings"]
    texts = [it["text"] for it in found if it["id"] == "guest.one"]
    assert "was on when its kernel ended without an update" in texts[0]
    host.sh(f": >{one.disks}/one.log").check()
    started = host.run(["pkernfs", "vm", "start", "one"]).check()
    assert "it boots from its disks" in started.stderr
    assert one.wait_count(3) < 2000
    host.run(["pkernfs", "check"]).check()


@answers(
    phase="next kernel",
    failure="it hangs before its first program, and the machine has a watchdog",
    outcome="the machine is reset; an ordinary boot resumes the guests if memory was kept",
)
def test_a_next_kernel_that_hangs_is_reset_by_the_hardware(new_host: HostFactory) -> None:
    host = new_host(
        kernel="6.12",
        append=("watchdog.stop_on_reboot=0",),
        extra=("-device", "i6300esb", *_ACTION),
        allowed=("Kernel panic",),
    )
    host.run(["modprobe", "i6300esb"]).check()
    guest = tick.start(host, "tick")
    count = guest.count()
    demo.update(host)
    assert lines(host, "cat /sys/class/watchdog/watchdog0/state") == ["inactive"]
    assert count < guest.wait_count(count + 1) < count + 20000

    count = guest.count()
    # It panics as well, and stays so: nothing but the hardware gets it out of there.
    back = ["pkernfs", "update", "--kernel", "/boot/vmlinuz-7.3*", "--watchdog", "30"]
    command = " ".join([*back, "--initrd /boot/pkernfs-lab-initrd-7.3*"])
    assert host.sh(f"{command} --append 'rdinit=/none panic=0'").status is None
    hello = host.wait_reboot()
    assert hello.kernel.startswith("6.12")
    assert lines(host, "grep -c pkernfs_update= /proc/cmdline || :") == ["0"]
    host.run(["pkernfs", "resume"]).check()
    assert count < guest.wait_count(count + 1) < count + 20000
