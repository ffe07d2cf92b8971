# SPDX-License-Identifier: GPL-2.0-only
"""Modules in an initrd, by what the distribution's tools print."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.host import initrd


def tool(home: Path, name: str, script: str) -> None:
    """Make a program that stands for a tool of the distribution."""
    path = home / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that programs are looked for in."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_names_of_modules_in_both_tools_lists(home: Path) -> None:
    tool(home, "lsinitramfs", 'echo "usr/lib/modules/7.3/kernel/net/9p/9pnet-virtio.ko.xz\nbin/sh"')
    assert initrd.modules(home / "initrd") == frozenset({"9pnet_virtio"})
    tool(home, "lsinitramfs", "exit 1")
    tool(
        home,
        "lsinitrd",
        'echo "-rw-r--r-- 1 root root 9 Jan 1 2026 usr/lib/modules/7.3/e1000e.ko\nfoo.kong"',
    )
    assert initrd.modules(home / "initrd") == frozenset({"e1000e"})


def test_without_a_tool_nothing_is_known(home: Path) -> None:
    assert initrd.modules(home / "initrd") is None
    assert initrd.drivers("pci:v00008086d000010D3", "7.3") == frozenset()


def test_drivers_are_those_of_the_next_kernel(home: Path) -> None:
    tool(home, "modprobe", 'test "$1 $3" = "--set-version=7.3 pci:x" && echo "e1000e\nvfio-pci"')
    assert initrd.drivers("pci:x", "7.3") == {"e1000e", "vfio_pci"}
    assert initrd.drivers("pci:x", "6.12") == frozenset()
