# SPDX-License-Identifier: GPL-2.0-only
"""Devices of a virtual host by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.errors import UsageError
from pkernfs.lab import devices, hardware
from pkernfs.lab.hardware import HARDWARE
from pkernfs.lab.machine import HostConfig


def test_all_at_once_are_in_places_of_their_own() -> None:
    names = tuple(HARDWARE)
    assert HostConfig(devices=names).devices == names
    words = hardware.arguments(names, Path("/home"))
    slots = [part for word in words for part in word.split(",") if part.startswith("addr=")]
    assert len(set(slots)) == len(slots) == len(names)
    taken = {f"addr=0x{bdf[8:10]}" for bdf in (devices.BYSTANDER, "0000:00:10.0")}
    assert not taken & set(slots)
    # What a device refers to comes first.
    for word in words:
        for part in word.split(","):
            key, _, value = part.partition("=")
            if key in ("bus", "netdev", "drive"):
                owner = f"id={value.removesuffix('.0')}"
                before = words[: words.index(word)]
                assert any(owner in other.split(",") for other in before), word


def test_a_device_with_a_disk_has_a_file(tmp_path: Path) -> None:
    hardware.prepare(("edu", "nvme"), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file == hardware.disk("nvme", tmp_path)
    assert file.stat().st_size > 0
    assert f"file={file}" in " ".join(hardware.arguments(("nvme",), tmp_path))


@pytest.mark.parametrize("names", [("floppy",), ("edu", "igb", "edu")])
def test_others_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        HostConfig(devices=names)
