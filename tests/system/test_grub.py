# SPDX-License-Identifier: GPL-2.0-only
"""GRUB itself reads what pkernfs reserve wrote, and says what it makes of it."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from pkernfs.host import grub
from pkernfs.host.ranges import Range, Region
from pkernfs.host.reserve import boot_words
from pkernfs.lab.emulator import program

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

_MODULES = ("biosdisk", "echo", "halt", "memdisk", "normal", "serial", "tar", "terminal")
_PLATFORM = Path("/usr/lib/grub/i386-pc")
# As 10_linux of grub-common writes the line "linux ..." into grub.cfg: a here-document.
_MKCONFIG = r"""
GRUB_CMDLINE_LINUX=quiet
. "$1"
args="${GRUB_CMDLINE_LINUX} ${GRUB_CMDLINE_LINUX_DEFAULT}"
cat <<EOF
serial --unit=0
terminal_output serial
for word in ro ${args}; do echo "word:\$word"; done
halt
EOF
"""


def _disk(home: Path, config: str) -> Path:
    """A disk that starts GRUB, with this grub.cfg within it."""
    (home / "grub.cfg").write_text(config)
    with tarfile.open(home / "files.tar", "w") as files:
        files.add(home / "grub.cfg", "grub.cfg")
    (home / "early.cfg").write_text("normal (memdisk)/grub.cfg\n")
    command = ["grub-mkimage", "-O", "i386-pc", "-p", "(memdisk)", "-m", f"{home}/files.tar"]
    command += ["-c", f"{home}/early.cfg", "-o", f"{home}/core.img", *_MODULES]
    subprocess.run(command, check=True)
    disk = home / "disk"
    image = (_PLATFORM / "boot.img").read_bytes() + (home / "core.img").read_bytes()
    disk.write_bytes(image.ljust(4 << 20, b"\0"))
    return disk


def test_grub_reads_the_words_as_they_were_meant(tmp_path: Path) -> None:
    regions = [
        Region("node0", Range(4 << 30, 64 << 30)),
        Region("node1", Range(0x200 << 30, 64 << 30)),
    ]
    words = boot_words(regions)
    file = tmp_path / "pkernfs.cfg"
    file.write_text(grub.render(words))
    command = ["sh", "-ec", _MKCONFIG, "sh", str(file)]
    config = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    qemu = [*program(), "-nodefaults", "-display", "none", "-serial", "stdio"]
    qemu += ["-drive", f"file={_disk(tmp_path, config)},format=raw", "-no-reboot"]
    said = subprocess.run(qemu, capture_output=True, text=True, check=True, timeout=60).stdout
    heard = [line.partition("word:")[2].strip() for line in said.splitlines() if "word:" in line]
    assert heard == ["ro", "quiet", *words]
