# SPDX-License-Identifier: GPL-2.0-only
"""The update on real kernels: what it keeps, and that every failure leaves the guests running."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

from . import tick
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

# A tree with files around the borders of pages and blocks, and every kind of entry.
_MAKE_TREE = r"""
import os
os.chdir("/mnt/pkernfs")
os.makedirs("tree/a/b/c")
os.makedirs("tree/a/with space")
os.mkdir("tree/empty")
def fill(path, size):
    with open(path, "wb") as file:
        file.write(os.urandom(size))
for size in (0, 1, 4095, 4096, 4097, 2097151, 2097152, 2097153, 7340033):
    fill(f"tree/a/{size}", size)
fill("large", 40 << 20)
with open("tree/sparse", "wb") as file:
    file.truncate(9437184)
    file.seek(9437181)
    file.write(b"end")
os.symlink("../a/4096", "tree/a/link")
os.chmod("tree/a/1", 0o640)
os.chown("tree/a/b", 12, 34)
os.utime("tree/a/b/c", ns=(981_173_106_789_000_000, 981_173_106_789_000_001))
for number in range(40):
    fill(f"tree/a/b/file{number}", number)
os.rename("tree/a/4097", "tree/renamed")
os.remove("tree/a/b/file7")
"""

_DESCRIBE_TREE = r"""
import hashlib, os, stat
os.chdir("/mnt/pkernfs")
paths = ["large"]
for top, names, files in os.walk("tree"):
    paths += [os.path.join(top, name) for name in names + files]
for path in sorted(paths):
    found = os.lstat(path)
    content = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    owner = (found.st_uid, found.st_gid)
    print(path, oct(found.st_mode), owner, found.st_size, found.st_mtime_ns, content)
"""

# Random bytes where the guest's own code never writes.
_FILL_RAM = (
    "dd if=/dev/urandom of={0}/ram bs=1M seek=8 count=16 conv=notrunc status=none && "
    "dd if={0}/ram bs=1M skip=8 count=16 status=none | sha256sum"
)
_DIGEST_RAM = "dd if={0}/ram bs=1M skip=8 count=16 status=none | sha256sum"


def _lines(host: Machine, script: str) -> list[str]:
    return host.sh(script).check().stdout.splitlines()


def _python(host: Machine, script: str) -> list[str]:
    return host.run(["python3", "-I", "-S", "-c", script]).check().stdout.splitlines()


def test_an_update_keeps_files_guests_and_tells_the_truth(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    _python(host, _MAKE_TREE)
    tree = _python(host, _DESCRIBE_TREE)
    assert len(tree) > 50
    guests = [tick.start(host, "one", "32M"), tick.start(host, "two", "64M")]
    digests = [_lines(host, _FILL_RAM.format(guest.directory)) for guest in guests]
    before = [guest.count() for guest in guests]
    boot_ids = [_lines(host, "cat /proc/sys/kernel/random/boot_id")[0]]
    kernels = [_lines(host, "uname -r")[0]]

    demo.update(host)

    boot_ids.append(_lines(host, "cat /proc/sys/kernel/random/boot_id")[0])
    kernels.append(_lines(host, "uname -r")[0])
    assert boot_ids[0] != boot_ids[1]
    assert kernels[1].startswith("7.3")
    for guest, count, digest in zip(guests, before, digests, strict=True):
        after = guest.wait_count(count + 1)
        # A guest that had started anew would count from the beginning.
        assert count < after < count + 2000
        assert _lines(host, _DIGEST_RAM.format(guest.directory)) == digest
        guest.counts_on()
    assert _python(host, _DESCRIBE_TREE) == tree
    host.run(["pkernfs", "check"]).check()
    _check_report(host, kernels, boot_ids)
    assert "pkernfs_update=" in host.sh("cat /proc/cmdline").stdout
    assert _lines(host, "ls /mnt/pkernfs/vms/*/state /mnt/pkernfs/vms/*/saved.json || :") == []


def _check_report(host: Machine, kernels: list[str], boot_ids: list[str]) -> None:
    report = demo.report_of(host)
    assert report["outcome"] == "completed"
    assert report["store"] == "clean"
    assert report["host"] == {
        "kernel_before": kernels[0],
        "kernel_after": kernels[1],
        "boot_id_before": boot_ids[0],
        "boot_id_after": boot_ids[1],
    }
    assert [(vm["name"], vm["ram_bytes"], vm["survived"]) for vm in report["vms"]] == [
        ("one", 32 << 20, True),
        ("two", 64 << 20, True),
    ]
    phases = {phase["name"]: phase for phase in report["phases"]}
    assert list(phases)[:2] == ["check", "load"]
    assert all(phase["start_s"] <= phase["end_s"] for phase in report["phases"])
    # What can be done before the pause is done before it.
    assert phases["load"]["end_s"] <= phases["pause"]["start_s"]
    for vm in report["vms"]:
        # The memory is not in the state.
        assert 0 < vm["state_bytes"] < 8 << 20
        blackout = phases["run"]["end_s"] - phases["pause"]["start_s"]
        assert phases["kernel"]["end_s"] - phases["kernel"]["start_s"] < vm["blackout_s"]
        assert vm["blackout_s"] <= blackout + 0.1
    assert report["clock"]["name"] == "tsc"
    assert report["clock"]["exact_to_s"] < 0.1
    stored = host.sh("cat /mnt/pkernfs/updates/*/report.json").check().stdout
    assert json.loads(stored) == report
    table = host.run(["pkernfs", "report"]).check().stdout
    assert all(word in table for word in ("hand over", "blackout", "one", "two", "stamp counter"))


@pytest.fixture(scope="module")
def counting(shared_host: Callable[[str], Machine]) -> Iterator[Tick]:
    """A counting guest on the shared host, for all tests that leave it running."""
    host = shared_host("6.12")
    yield tick.start(host, "tick")
    host.sh("pkernfs vm stop tick --force --delete; rm -rf /mnt/pkernfs/updates").check()


@pytest.fixture
def guest(host: Machine, counting: Tick) -> Tick:
    """The guest, running, and no trace of an earlier update."""
    host.sh("rm -rf /mnt/pkernfs/updates").check()
    counting.counts_on()
    return counting


def _refused(guest: Tick, command: str, says: str) -> None:
    """An update fails with these words, nothing is left of it, and the guest counts on."""
    boot_id = _lines(guest.host, "cat /proc/sys/kernel/random/boot_id")
    result = guest.host.sh(command)
    assert result.status == 1, result
    assert says in result.stderr
    guest.counts_on()
    assert _lines(guest.host, "cat /proc/sys/kernel/random/boot_id") == boot_id
    assert _lines(guest.host, "cat /sys/kernel/kexec_loaded") == ["0"]
    left = f"ls {guest.directory}/state {guest.directory}/saved.json 2>/dev/null || :"
    assert _lines(guest.host, left) == []


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
    _refused(guest, command, says)


def test_a_dead_socket_leaves_the_guest_running(guest: Tick) -> None:
    socket = "/run/pkernfs/tick/qmp.sock"
    guest.host.sh(f"mv {socket} {socket}.away").check()
    try:
        _refused(guest, "pkernfs update", "can't be talked to")
    finally:
        guest.host.sh(f"mv {socket}.away {socket}").check()


def test_a_qemu_that_does_not_answer_leaves_the_other_guest_running(guest: Tick) -> None:
    host = guest.host
    other = tick.start(host, "other")
    host.sh("kill -STOP $(cut -d' ' -f1 /run/pkernfs/other/pid)").check()
    try:
        _refused(guest, "pkernfs update", "guest other: its QEMU can't be talked to")
    finally:
        host.sh("kill -CONT $(cut -d' ' -f1 /run/pkernfs/other/pid)").check()
    other.counts_on()
    host.sh("pkernfs vm stop other --force --delete").check()


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
    _refused(guest, "python3 /mnt/share/refused.py", "refuses to start the loaded one")
    report = demo.report_of(guest.host)
    assert report["outcome"] == "rolled back"
    assert "refuses to start" in report["text"]
    # The guest was really stopped and saved before.
    assert {"pause", "save", "hand over"} <= {phase["name"] for phase in report["phases"]}
    guest.host.sh("echo thawed >/mnt/scratch/thawed && sync -f /mnt/scratch").check()


@pytest.mark.parametrize("number", ["INT", "TERM"])
def test_a_signal_lets_the_guest_run_on(guest: Tick, number: str) -> None:
    command = (
        "pkernfs update & until [ -e /mnt/pkernfs/updates/last ]; do sleep 0.05; done; "
        f"kill -{number} $!; wait $!"
    )
    if number == "INT":  # a shell starts background jobs with it ignored
        command = command.replace("pkernfs update &", "setsid env -i PATH=$PATH pkernfs update &")
    _refused(guest, command, "interrupted")


def test_a_dry_run_says_what_it_would_do(guest: Tick) -> None:
    plan = json.loads(guest.host.run(["pkernfs", "update", "--dry-run", "--json"]).check().stdout)
    assert plan["kernel_after"].startswith("7.3")
    assert "memmap=" in plan["boot_line"]
    assert f"pkernfs_update={plan['update']}" in plan["boot_line"]
    assert [vm["name"] for vm in plan["guests"]] == ["tick"]
    guest.counts_on()
    assert _lines(guest.host, "cat /sys/kernel/kexec_loaded") == ["0"]


def test_a_guest_that_does_not_come_back_can_be_tried_again(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    bad, good = tick.start(host, "bad"), tick.start(host, "good")
    counts = bad.count(), good.count()
    result = host.run(["pkernfs", "update", "--append", "pkernfs_lab_resume=no"])
    assert result.status is None
    host.wait_reboot()
    state = f"{bad.directory}/state"
    host.sh(f"cp {state} /mnt/scratch/kept; dd if=/dev/zero of={state} bs=4k count=1 conv=notrunc")
    first = host.run(["pkernfs", "resume", "--json"])
    assert first.status == 1
    results = {vm["name"]: vm["error"] for vm in json.loads(first.stdout)["vms"]}
    assert results["good"] == ""
    # QEMU's own words.
    assert "state can't be loaded" in results["bad"]
    assert "ection" in results["bad"] or "migration" in results["bad"]
    assert counts[1] < good.wait_count(counts[1] + 1) < counts[1] + 2000
    assert demo.report_of(host)["outcome"] == "partial"
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    assert [(vm["name"], vm["state"]) for vm in listed] == [("bad", "saved"), ("good", "running")]
    host.sh(f"cp /mnt/scratch/kept {state}").check()
    host.run(["pkernfs", "resume"]).check()
    assert counts[0] < bad.wait_count(counts[0] + 1) < counts[0] + 2000
    assert demo.report_of(host)["outcome"] == "completed"
