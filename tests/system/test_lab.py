# SPDX-License-Identifier: GPL-2.0-only
"""The lab itself: what every other system test relies on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.lab.machine import HostConfig, Machine, poll
from tests.conftest import HostFactory

pytestmark = pytest.mark.system
_CLI = [sys.executable, "-c", "from pkernfs.cli import main; main()"]


def test_host_runs_the_stock_kernel_with_a_store(each_host: Machine) -> None:
    release = each_host.run(["uname", "-r"]).check().stdout.strip()
    assert release == each_host.version
    assert each_host.config.kernel in release
    mounts = each_host.sh("findmnt -n -o FSTYPE /mnt/pkernfs").check().stdout
    assert mounts.strip() == "pkernfs"
    # The kernel is the distribution's, byte by byte; only modules were added.
    image = each_host.stack.host.vmlinuz(release)
    inside = each_host.run(["sha256sum", f"/boot/{image.name}"]).check().stdout.split()[0]
    assert inside == hashlib.sha256(image.read_bytes()).hexdigest()


def test_command_in_a_host(host: Machine) -> None:
    result = host.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"in\n")
    assert (result.status, result.stdout, result.stderr) == (3, "in\n", "err\n")
    assert host.run(["sh", "-c", "kill -9 $$"]).status == -9


def test_share_goes_both_ways(host: Machine, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(100_000))
    inside = host.upload(source, "up")
    host.run(["cp", inside, "/mnt/share/down"]).check()
    assert (host.share / "down").read_bytes() == source.read_bytes()


def test_range_is_read_from_outside_at_any_moment(host: Machine) -> None:
    host.sh("mkdir /mnt/pkernfs/lab-test && echo text > /mnt/pkernfs/lab-test/file").check()
    try:
        place = host.range_file
        target = [f"{place.file}@{place.offset}", "--size", str(place.size)]
        checked = subprocess.run([*_CLI, "check", *target], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        listed = subprocess.run([*_CLI, "ls", *target], capture_output=True, text=True, check=True)
        assert "lab-test" in listed.stdout.split()
    finally:
        host.sh("rm -r /mnt/pkernfs/lab-test").check()


def test_warning_in_the_kernel_log_fails_the_run(new_host: HostFactory) -> None:
    machine = new_host(store=False)
    machine.sh("echo 'WARNING: made up by a test' > /dev/kmsg").check()
    poll(lambda: bool(machine.problems), 10, "the line on the console")
    with pytest.raises(PkernfsError, match="made up by a test"):
        machine.check_log()
    machine.allow("made up by a test")
    machine.check_log()


def test_end_of_a_host_leaves_nothing(new_host: HostFactory) -> None:
    with Machine(HostConfig(store=False)) as machine:
        process = machine._process
        assert process is not None
        ram = machine.ram_dir
        assert machine.ram_file.stat().st_size == machine.config.layout.ram
        # Not a byte of it is allocated before the host touches it.
        assert machine.ram_file.stat().st_blocks * 512 < machine.config.layout.ram
        process.kill()
        process.wait()
        with pytest.raises(PkernfsError, match="QEMU ended with status"):
            machine.run(["true"])
    assert not ram.exists()


def test_kexec_is_noticed(new_host: HostFactory) -> None:
    machine = new_host(kernel="7.3")
    before = machine.hello
    machine.sh("echo kept > /mnt/scratch/file; sync").check()
    version = machine.stack.host.kernel("6.12")
    files = f"/boot/vmlinuz-{version} --initrd=/boot/pkernfs-lab-initrd-{version}"
    machine.sh(f"kexec -s -l {files} --reuse-cmdline").check()
    assert machine.run(["kexec", "-e"]).status is None
    after = machine.wait_reboot()
    assert after.boot_id != before.boot_id
    assert (before.kernel, after.kernel) == (machine.version, version)
    assert machine.run(["cat", "/mnt/scratch/file"]).stdout == "kept\n"
    assert machine.sh("findmnt -n -o FSTYPE /mnt/pkernfs").stdout.strip() == "pkernfs"


def test_systemd_boots(new_host: HostFactory) -> None:
    machine = new_host(systemd=True)
    poll(
        lambda: "starting" not in machine.run(["systemctl", "is-system-running"]).stdout,
        120,
        "systemd is up",
    )
    failed = machine.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
    assert failed == ""
    assert machine.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    assert machine.sh("findmnt -n -o FSTYPE /mnt/pkernfs").stdout.strip() == "pkernfs"


def test_lab_run_gives_output_and_status(tmp_path: Path) -> None:
    (tmp_path / "word").write_text("shared\n")
    script = "cat /mnt/share/word; uname -r; exit 7"
    options = ["--kernel", "7.3", "--region", "512M", "--share", str(tmp_path)]
    command = [*_CLI, "lab", "run", *options, "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 7, done.stderr
    shared, release = done.stdout.splitlines()
    assert shared == "shared"
    assert release.startswith("7.3")
