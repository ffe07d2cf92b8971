# SPDX-License-Identifier: GPL-2.0-only
"""Which processes are virtual machines that are no guests of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pkernfs.host.machine import Machine
from pkernfs.vmm.census import Census, Outsider

_QEMU = "/usr/bin/qemu-system-x86_64"
_MOUNTS = (
    "22 1 0:20 / /mnt/pkernfs rw - pkernfs none rw\n23 1 0:33 / /mnt/pkernfs-b rw - pkernfs b rw\n"
)
_MAPS = "7f0000000000-7f0040000000 rw-s 00000000 {device} 5                  {path}\n"


def add(
    root: Path,
    pid: int,
    program: str,
    words: Sequence[str] = (),
    *,
    maps: str = "",
    opened: str = "/dev/null",
) -> None:
    """Have a process in a host's tree."""
    home = root / "proc" / str(pid)
    (home / "fd").mkdir(parents=True)
    if program:
        (home / "exe").symlink_to(program)
        (home / "cmdline").write_text("\0".join((program, *words)) + "\0")
    else:
        (home / "cmdline").write_text("")
    (home / "fd" / "3").symlink_to(opened)
    (home / "maps").write_text(maps)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(_MOUNTS)
    return tmp_path


def _found(root: Path, *own: int) -> list[Outsider]:
    return Census(Machine(root)).outsiders(own)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("-name", "guest=web,debug-threads=on", "-S"), "web"),
        (("-id", "100", "-name", "web,debug-threads=on"), "web"),
        (("--name", "web"), "web"),
        (("-m", "1G"), ""),
    ],
)
def test_qemu_is_found_by_its_program(root: Path, words: tuple[str, ...], name: str) -> None:
    add(root, 100, _QEMU, words)
    assert _found(root) == [Outsider(100, name, "qemu-system-x86_64")]
    assert _found(root, 100) == []


@pytest.mark.parametrize("program", ["/usr/libexec/qemu-kvm", f"{_QEMU} (deleted)"])
def test_qemu_by_other_names(root: Path, program: str) -> None:
    add(root, 100, program)
    (found,) = _found(root)
    assert found.program in ("qemu-kvm", "qemu-system-x86_64")


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("-machine", "help"),
        ("-M", "none,accel=kvm:tcg", "-qmp", "unix:/x"),
        ("-device", "?"),
    ],
)
def test_a_qemu_that_is_only_asked_is_no_machine(root: Path, words: tuple[str, ...]) -> None:
    add(root, 100, _QEMU, words)
    assert _found(root) == []


def test_who_has_a_machine_of_kvm_is_found_whatever_it_is_called(root: Path) -> None:
    add(root, 100, "/opt/bin/firecracker", opened="anon_inode:kvm-vm")
    add(root, 101, "/usr/sbin/libvirtd", opened="/dev/kvm")
    add(root, 102, "/usr/bin/qemu-img", ("convert", "a", "b"))
    add(root, 103, "")
    assert _found(root) == [Outsider(100, "", "firecracker")]


@pytest.mark.parametrize(
    ("device", "store"),
    [("00:14", "/mnt/pkernfs"), ("00:21", "/mnt/pkernfs-b"), ("fe:00", None)],
)
def test_memory_of_a_store_is_seen(root: Path, device: str, store: str | None) -> None:
    add(root, 100, _QEMU, maps=_MAPS.format(device=device, path="/mnt/x/y ram"))
    (found,) = _found(root)
    assert found.store == (Path(store) if store else None)


def test_a_second_look_sees_who_came_and_what_a_process_became(root: Path) -> None:
    add(root, 100, "/bin/sh")
    census = Census(Machine(root))
    assert census.outsiders(()) == []
    (root / "proc/100/exe").unlink()
    (root / "proc/100/exe").symlink_to(_QEMU)  # exec
    add(root, 200, "/usr/bin/cloud-hypervisor", opened="anon_inode:kvm-vm")
    assert [it.pid for it in census.outsiders(())] == [100, 200]
