# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs script loads the module for an update with devices, and for nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

INITRAMFS = Path(__file__).resolve().parents[3] / "packaging" / "initramfs"
RECORD = "elfcorehdr=0x1000200000"
UPDATE = "pkernfs_update=20261122-130535-c587"


def said(tmp_path: Path, line: str, status: int = 0) -> tuple[str, str]:
    """What modprobe is called with at a boot line, and what goes to the kernel log.

    A modprobe that only notes its arguments is found first; boot line and kernel log are
    files, mounted over those of this machine in a namespace of the script's own.

    :param status: modprobe's exit status.
    """
    (tmp_path / "cmdline").write_text(f"{line}\n")
    for name in ("calls", "kmsg"):
        (tmp_path / name).write_text("")
    modprobe = tmp_path / "modprobe"
    modprobe.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\nexit {status}\n')
    modprobe.chmod(0o755)
    script = (
        'mount --bind "$1/cmdline" /proc/cmdline && mount --bind "$1/kmsg" /dev/kmsg &&'
        ' PATH="$1:$PATH" exec "$2"'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    subprocess.run([*command, str(tmp_path), str(INITRAMFS / "init-top")], check=True)
    return (tmp_path / "calls").read_text(), (tmp_path / "kmsg").read_text()


@pytest.mark.parametrize(
    "line",
    [
        f"BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro {UPDATE} {RECORD}",
        f"{RECORD} {UPDATE} quiet",
        f"root=/dev/sda1 {UPDATE} {RECORD} -- single",
    ],
)
def test_an_update_with_devices(tmp_path: Path, line: str) -> None:
    assert said(tmp_path, line) == ("pkernfs_dma\n", "")


@pytest.mark.parametrize(
    "line",
    [
        "root=/dev/sda1 ro quiet",
        f"root=/dev/sda1 {UPDATE}",
        f"root=/dev/sda1 {RECORD}",
        f"root=/dev/sda1 {UPDATE} elfcorehdr=",
        f"root=/dev/sda1 pkernfs_update= {RECORD}",
        f"root=/dev/sda1 {UPDATE} -- {RECORD}",
        f"root=/dev/sda1 not_{UPDATE} {RECORD}",
        f"root=/* {UPDATE} x{RECORD}",
        "",
    ],
)
def test_anything_else(tmp_path: Path, line: str) -> None:
    assert said(tmp_path, line) == ("", "")


def test_a_module_that_refuses_stops_no_boot(tmp_path: Path) -> None:
    calls, log = said(tmp_path, f"{UPDATE} {RECORD}", status=1)
    assert calls == "pkernfs_dma\n"
    assert log == "pkernfs: the devices of 20261122-130535-c587 are not taken over\n"


@pytest.mark.parametrize("name", ["hook", "init-top"])
def test_no_prerequisites(name: str) -> None:
    """As initramfs-tools asks for them; with none, the order is that of the names."""
    done = subprocess.run([INITRAMFS / name, "prereqs"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
