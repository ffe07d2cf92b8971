# SPDX-License-Identifier: GPL-2.0-only
"""Every failure of an update before the kexec has an answer: all guests run on."""

from __future__ import annotations

import json

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.answers import answers

from . import tick
from .refusal import changed, lines, refused
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@answers(
    phase="check",
    failure="kernel or initrd missing, cut short, or no kernel; boot line too long",
    outcome="refused, nothing touched",
)
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("pkernfs update --kernel /boot/vmlinuz-none", "No such file"),
        ("pkernfs update --kernel /etc/passwd", "not a kernel image"),
        ("pkernfs update --initrd /boot/none", "can't read the initrd"),
        ("pkernfs update --append $(head -c 3000 /dev/zero | tr '\\0' x)", "boot line has"),
        (
            "head -c 300000 $(ls /boot/vmlinuz-7*) >/tmp/cut; pkernfs update --kernel /tmp/cut",
            "is cut short",
        ),
    ],
)
def test_a_kernel_that_can_not_be_loaded_leaves_the_guest_running(
    guest: Tick, command: str, says: str
) -> None:
    refused(guest, command, says)


@answers(
    phase="check",
    failure="a guest's QMP socket is gone",
    outcome="refused, nothing touched; names the guest",
)
def test_a_dead_socket_leaves_the_guest_running(guest: Tick) -> None:
    socket = "/run/pkernfs/tick/qmp.sock"
    guest.host.sh(f"mv {socket} {socket}.away").check()
    try:
        refused(guest, "pkernfs update", "can't be talked to")
    finally:
        guest.host.sh(f"mv {socket}.away {socket}").check()


@answers(
    phase="check",
    failure="a guest's QEMU does not answer",
    outcome="refused, nothing touched; names the guest",
)
def test_a_qemu_that_does_not_answer_leaves_the_other_guest_running(guest: Tick) -> None:
    host = guest.host
    other = tick.start(host, "other")
    host.sh("kill -STOP $(cut -d' ' -f1 /run/pkernfs/other/pid)").check()
    try:
        refused(guest, "pkernfs update", "guest other: its QEMU can't be talked to")
    finally:
        host.sh("kill -CONT $(cut -d' ' -f1 /run/pkernfs/other/pid)").check()
    other.counts_on()
    host.sh("pkernfs vm stop other --force --delete").check()


@answers(
    phase="hand over",
    failure="the running kernel refuses the jump",
    outcome="disks thawed, all guests run on, next kernel unloaded",
)
def test_a_jump_that_the_kernel_refuses_lets_the_guest_run_on(guest: Tick) -> None:
    """All of it is real: guests saved, disks frozen, then no kernel is there to jump to."""
    script = (
        "import sys; sys.path.insert(0, '/usr/lib/pkernfs')\n"
        "from pkernfs.host import kexec\n"
        "jump = kexec.jump\n"
        "kexec.jump = lambda: (kexec.unload(), jump())\n"
        "sys.argv = ['pkernfs', 'update']\n"
        "from pkernfs.cli import main\n"
        "main()\n"
    )
    (guest.host.share / "refused.py").write_text(script)
    refused(guest, "python3 /mnt/share/refused.py", "refuses to start the loaded one")
    report = demo.report_of(guest.host)
    assert report["outcome"] == "rolled back"
    assert "refuses to start" in report["text"]
    # The guest was really stopped and saved before.
    assert {"pause", "save", "hand over"} <= {phase["name"] for phase in report["phases"]}
    (vm,) = report["vms"]
    assert vm["survived"]
    assert 0 < vm["blackout_s"] < 60
    guest.host.sh("echo thawed >/mnt/scratch/thawed && sync -f /mnt/scratch").check()
    _check_terminal(guest)


def _check_terminal(guest: Tick) -> None:
    """The same on a terminal: drawn in place, the outcome and the error below."""
    log = guest.host.share / "terminal.log"
    command = "TERM=xterm script -qefc 'python3 /mnt/share/refused.py' /mnt/share/terminal.log"
    result = guest.host.sh(f"{command} </dev/null")
    screen = log.read_text()
    assert result.status == 1, screen
    assert "\x1b[2K" in screen  # lines are drawn anew
    picture = screen[screen.rindex("phase") :]
    for words in ("hand over", "tick", "32 MiB", "runs again", "given up", "pkernfs: the"):
        assert words in picture, screen
    guest.counts_on()


@answers(
    phase="up to the jump",
    failure="Ctrl-C, SIGTERM or a lost terminal",
    outcome="all guests run on, next kernel unloaded",
)
@pytest.mark.parametrize("number", ["INT", "TERM"])
def test_a_signal_lets_the_guest_run_on(guest: Tick, number: str) -> None:
    command = (
        "pkernfs update & "
        "while kill -0 $! && ! [ -e /mnt/pkernfs/updates/last ]; do sleep 0.05; done; "
        f"kill -{number} $!; wait $!"
    )
    if number == "INT":  # a shell starts background jobs with it ignored
        command = command.replace("pkernfs update &", "setsid env -i PATH=$PATH pkernfs update &")
    refused(guest, command, "interrupted")


def test_a_dry_run_says_what_it_would_do(guest: Tick) -> None:
    plan = json.loads(guest.host.run(["pkernfs", "update", "--dry-run", "--json"]).check().stdout)
    assert plan["kernel_after"].startswith("7.3")
    assert "memmap=" in plan["boot_line"]
    assert f"pkernfs_update={plan['update']}" in plan["boot_line"]
    assert [vm["name"] for vm in plan["guests"]] == ["tick"]
    guest.counts_on()
    assert lines(guest.host, "cat /sys/kernel/kexec_loaded") == ["0"]


@answers(
    phase="check",
    failure="no room in the store for the states",
    outcome="refused, nothing touched",
)
def test_a_full_store_stops_the_update(guest: Tick) -> None:
    """One block is left, 2 MiB, less than any state may take."""
    filler = (
        "import os; room = os.statvfs('/mnt/pkernfs'); fd = os.open('/mnt/pkernfs/filler',"
        " os.O_WRONLY | os.O_CREAT); os.posix_fallocate(fd, 0, (room.f_bavail - 1) * room.f_frsize)"
    )
    guest.host.run(["python3", "-c", filler]).check()
    try:
        refused(guest, "pkernfs update", "free, the state of its guests may take")
        found = {f["id"] for f in _doctor(guest.host) if f["status"] == "blocker"}
        assert found == {"space"}
    finally:
        guest.host.sh("rm /mnt/pkernfs/filler").check()


def _doctor(host: Machine) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(host.run(["pkernfs", "doctor", "--json"]).stdout)[
        "findings"
    ]
    return found


# A change: the guest's QEMU stands still from the pause on, and the update does not wait long.
_STANDS_STILL = """
from pkernfs.update import recover
from pkernfs.vmm.monitor import ANSWER_S, Monitor
pid = int(Path("/run/pkernfs/tick/pid").read_text().split()[0])
mark, undo = Timeline.mark, recover.undo
def hold(self, event, about, *args, **kwargs):
    mark(self, event, about, *args, **kwargs)
    if (event, about) == ("begin", "pause"):
        Monitor.execute.__defaults__ = (None, 1.0)
        os.kill(pid, signal.SIGSTOP)
Timeline.mark = hold
"""


@answers(
    phase="pause, save",
    failure="the store is full when a state is written",
    outcome="all guests run on; QEMU's own words",
)
def test_a_store_that_fills_up_meanwhile_lets_the_guest_run_on(guest: Tick) -> None:
    host = guest.host
    command = changed(
        host,
        """
mark = Timeline.mark
def fill(self, event, about, *args, **kwargs):
    mark(self, event, about, *args, **kwargs)
    if (event, about) == ("begin", "pause"):
        room = os.statvfs("/mnt/pkernfs")
        with open("/mnt/pkernfs/filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
Timeline.mark = fill
""",
    )
    try:
        refused(guest, command, "its state can't be saved")
    finally:
        host.sh("rm -f /mnt/pkernfs/filler").check()
    assert demo.report_of(host)["outcome"] == "rolled back"


@answers(
    phase="pause, save",
    failure="a guest is not paused and saved in time",
    outcome="all guests run on",
)
def test_a_guest_that_is_not_paused_in_time_runs_on(guest: Tick) -> None:
    """Its QEMU stands still, so the update's own way back fails for it as well.

    It works when that is tried once more.
    """
    change = (
        _STANDS_STILL
        + """
def once_more(*args):
    Monitor.execute.__defaults__ = (None, ANSWER_S)
    os.kill(pid, signal.SIGCONT)
    return undo(*args)
recover.undo = once_more
"""
    )
    try:
        refused(guest, changed(guest.host, change), "not every guest runs on")
    finally:
        guest.host.sh("kill -CONT $(cut -d' ' -f1 /run/pkernfs/tick/pid)").check()


@answers(
    phase="pause, save",
    failure="a guest's QEMU does not answer for longer than the update waits for it",
    outcome="given up; its guard lets the guest run on when it answers, by itself",
)
def test_a_guest_that_stands_still_for_long_runs_on_by_itself(guest: Tick) -> None:
    host = guest.host
    change = (
        _STANDS_STILL
        + """
recover._GREET_S = 1.0
"""
    )
    command = changed(host, change)
    try:
        result = host.sh(command)
        assert result.status == 1, result
        assert "not every guest runs on" in result.stderr, result
        assert "tries again for 10 minutes" in result.stderr, result
        again = host.run(["pkernfs", "update", "--recover"])
        assert again.status == 1, again
        assert "another recovery is going on" in again.stderr
    finally:
        host.sh("kill -CONT $(cut -d' ' -f1 /run/pkernfs/tick/pid)").check()
    waiting = (
        "for i in $(seq 300); do [ -e /run/pkernfs/update.journal ] || exit 0; sleep 0.2; done"
    )
    host.sh(f"{waiting}; exit 1").check()
    guest.counts_on()
    assert lines(host, "cat /sys/kernel/kexec_loaded") == ["0"]
    report = demo.report_of(host)
    assert report["outcome"] == "rolled back"
    assert [vm["survived"] for vm in report["vms"]] == [True]


@answers(
    phase="load",
    failure="the running kernel refuses to load the next one",
    outcome="refused, all guests run on",
)
def test_a_kernel_that_the_running_one_does_not_take_leaves_the_guest_running(
    guest: Tick,
) -> None:
    """Whole, by its header, but not one to be loaded above 4 GiB (boot.rst, xloadflags)."""
    script = (
        "cp $(ls /boot/vmlinuz-7*) /tmp/low && printf '\\1' | "
        "dd of=/tmp/low bs=1 seek=$((0x236)) conv=notrunc status=none && "
        "pkernfs update --kernel /tmp/low --initrd $(ls /boot/pkernfs-lab-initrd-7*)"
    )
    refused(guest, script, "refuses to load /tmp/low")


@answers(
    phase="check",
    failure="the module is not installed for the next kernel",
    outcome="refused, unless --override module.next-missing",
)
def test_a_missing_module_stops_the_update_unless_overridden(guest: Tick) -> None:
    host = guest.host
    module = lines(host, "ls /lib/modules/7*/updates/pkernfs.ko")[0]
    host.sh(f"mv {module} /tmp/").check()
    try:
        refused(guest, "pkernfs update", "pkernfs is not installed for the next kernel 7.3")
        host.sh("pkernfs update --dry-run --override module.next-missing").check()
        other = host.sh("pkernfs update --dry-run --override kexec.disabled")
        assert other.status == 2
        assert "doctor finds no such blocker" in other.stderr
    finally:
        host.sh(f"mv /tmp/pkernfs.ko {module}").check()


@answers(
    phase="check",
    failure="--append would give the range to the next kernel, or name other regions",
    outcome="refused, nothing touched",
)
def test_words_that_give_the_range_away_are_refused(guest: Tick) -> None:
    refused(guest, "pkernfs update --append memmap=1G@4G", "for other memory")
    refused(guest, "pkernfs update --append pkernfs.region=512M!4G", "other regions")


@answers(
    phase="input",
    failure="two updates, resumes or recoveries at once",
    outcome="the second is refused and names the first one's process",
)
def test_two_updates_at_once(guest: Tick) -> None:
    host = guest.host
    command = changed(
        host,
        """
mark = Timeline.mark
def wait(self, event, about, *args, **kwargs):
    mark(self, event, about, *args, **kwargs)
    if (event, about) == ("begin", "load"):
        time.sleep(15)
        os.kill(os.getpid(), signal.SIGTERM)
Timeline.mark = wait
""",
    )
    result = host.sh(
        f"{command} >/tmp/first 2>&1 & while kill -0 $! && ! [ -e /mnt/pkernfs/updates/last ]; "
        "do sleep 0.2; done; pkernfs update; echo $? $!; wait $!"
    )
    status, pid = result.stdout.split()[-2:]
    assert status == "1"
    assert f"another update is going on: process {pid}" in result.stderr
    guest.counts_on()
    assert lines(host, "cat /sys/kernel/kexec_loaded") == ["0"]


@answers(
    phase="input",
    failure="config.json of a guest that is off is half-written",
    outcome="listed as broken; all others are updated; vm stop --force --delete removes it",
)
def test_a_half_written_guest_is_in_nobodys_way(guest: Tick) -> None:
    host = guest.host
    host.sh("mkdir /mnt/pkernfs/vms/half; printf '{' >/mnt/pkernfs/vms/half/config.json").check()
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    assert [(vm["name"], vm["state"]) for vm in listed] == [("half", "broken"), ("tick", "running")]
    assert "can't read" in listed[0]["error"]
    host.run(["pkernfs", "update", "--dry-run"]).check()
    host.run(["pkernfs", "vm", "stop", "half", "--force", "--delete"]).check()
    assert lines(host, "ls /mnt/pkernfs/vms") == ["tick"]
    assert [f for f in _doctor(host) if f["status"] == "blocker"] == []


# A filesystem in a file of a filesystem in a file: the inner one has the shorter path.
_NESTED = """
set -e
modprobe loop
mkdir -p /mnt/scratch/deep/er/outer /mnt/inner
truncate -s 96M /mnt/scratch/outer.img
mke2fs -q -F -t ext4 /mnt/scratch/outer.img
mount -o loop /mnt/scratch/outer.img /mnt/scratch/deep/er/outer
truncate -s 32M /mnt/scratch/deep/er/outer/inner.img
mke2fs -q -F -t ext4 /mnt/scratch/deep/er/outer/inner.img
mount -o loop /mnt/scratch/deep/er/outer/inner.img /mnt/inner
"""


def test_filesystems_on_loop_devices_are_frozen_and_thawed(guest: Tick) -> None:
    """All of it is real up to the jump, which the kernel refuses."""
    host = guest.host
    host.sh(_NESTED).check()
    try:
        command = changed(
            host,
            """
from pkernfs.host import kexec
jump = kexec.jump
kexec.jump = lambda: (kexec.unload(), jump())
Path("/mnt/inner/unwritten").write_bytes(bytes(1 << 20))
""",
        )
        refused(guest, command, "refuses to start the loaded one")
        for point in ("/mnt/inner", "/mnt/scratch/deep/er/outer", "/mnt/scratch"):
            host.sh(f"echo thawed >{point}/thawed && sync -f {point}", timeout=60).check()
    finally:
        host.sh(
            "umount /mnt/inner /mnt/scratch/deep/er/outer; rm -rf /mnt/scratch/deep"
            " /mnt/scratch/outer.img"
        )
