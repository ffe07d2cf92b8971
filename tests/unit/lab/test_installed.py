# SPDX-License-Identifier: GPL-2.0-only
"""An installed host: its disk, and what QEMU is told of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import UsageError
from pkernfs.lab import installed
from pkernfs.lab.image import HostImage
from pkernfs.lab.layer import Stack
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.paths import source_tree
from pkernfs.lab.qemu import LINES, Disk, Plan


def _command(disk: Disk) -> list[str]:
    unused = Path("/unused")
    return Plan(
        config=HostConfig(installed=True),
        program=("qemu",),
        kernel=unused,
        initrd=unused,
        base=unused,
        layer=unused,
        scratch=unused,
        ram=Path("/ram"),
        share=unused,
        lines=dict.fromkeys(LINES, 10),
        disk=disk,
    ).command()


def test_an_installed_host_has_its_disk_and_nothing_of_the_labs() -> None:
    command = _command(Disk(Path("/disk")))
    drives = [word for word in command if word.startswith("if=none")]
    assert drives == ["if=none,id=disk,format=raw,file=/disk,cache=unsafe,snapshot=on"]
    # The boot loader starts what it has, again and again.
    assert not {"-kernel", "-append", "-no-reboot"} & set(command)
    assert "/unused" not in " ".join(command)


def test_a_disk_that_is_being_made_is_written_to() -> None:
    start = (Path("/vmlinuz"), Path("/initrd"), "root=/dev/vda1")
    command = _command(Disk(Path("/disk"), keep=True, start=start))
    assert "snapshot" not in " ".join(command)
    for option, value in zip(("-kernel", "-initrd", "-append"), map(str, start), strict=True):
        assert command[command.index(option) + 1] == value


@pytest.mark.parametrize(
    "fields",
    [{"append": ("quiet",)}, {"systemd": True}, {"units": True}, {"share": Path("/")}],
)
def test_what_an_installed_host_does_not_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="on its disk"):
        HostConfig(installed=True, **fields)


def test_it_starts_the_kernel_that_its_boot_loader_has(tmp_path: Path) -> None:
    host = HostImage(tmp_path, tmp_path / "root.ext4", ("6.12.1-amd64", "7.3.4-amd64"))
    with pytest.raises(UsageError, match=r"starts 6\.12\.1-amd64"):
        Machine(HostConfig(installed=True, kernel="7.3"), on=Stack(host, tmp_path / "layer"))


def test_the_partition_takes_all_but_the_boot_loaders_room() -> None:
    table = installed.partition_table(1 << 30)
    assert len(table) == 512
    assert table[510:] == b"\x55\xaa"
    active, kind, first, count = struct.unpack("<B3xB3xII", table[446:462])
    assert (active, kind) == (0x80, 0x83)
    assert first == 2048
    assert first + count == (1 << 30) // 512
    assert not any(table[:446]) and not any(table[462:510])


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        (
            "install-modules.sh",
            (
                "dkms install",
                "packaging/initramfs/hook /etc/initramfs-tools/hooks/pkernfs",
                "packaging/initramfs/init-top /etc/initramfs-tools/scripts/init-top/pkernfs",
                "update-initramfs -u -k all",
            ),
        ),
        (
            "install-program.sh",
            (
                "python3 -m venv /opt/pkernfs",
                "/opt/pkernfs/bin/pip install",
                "ln -s /opt/pkernfs/bin/pkernfs /usr/local/bin",
                "make install-units",
                "systemctl enable pkernfs.target",
            ),
        ),
    ],
)
def test_it_is_installed_as_the_documents_say(script: str, steps: tuple[str, ...]) -> None:
    tree = source_tree()
    documents = [tree / "README.md", tree / "kernel/README.md", tree / "docs/handover.md"]
    told = "\n".join(path.read_text() for path in documents)
    text = (tree / "src/pkernfs/lab/inside" / script).read_text()
    for step in steps:
        assert step in told
        assert step in text
