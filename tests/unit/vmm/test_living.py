# SPDX-License-Identifier: GPL-2.0-only
"""What a running QEMU has that its successor would not: QEMU 11.1's answers, and edited ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pkernfs.vmm import living
from pkernfs.vmm.differences import differences, replaced
from pkernfs.vmm.living import Block, Contents, Device, Disk, Image

_RAW = {
    "device": "virtio0",
    "qdev": "/machine/peripheral-anon/device[1]/virtio-backend",
    "removable": False,
    "inserted": {
        "file": "base.raw",
        "drv": "raw",
        "ro": False,
        "node-name": "#block170",
        "iops": 0,
        "bps": 0,
        "image": {"filename": "base.raw", "format": "raw", "virtual-size": 8388608},
    },
}
_BLOCKDEV = {**_RAW, "device": "", "qdev": "sd2"}
_EMPTY = {"device": "ide0-cd0", "qdev": "/machine/unattached/device[16]", "removable": True}
_OVERLAY: dict[str, Any] = {
    **_RAW,
    "inserted": {
        "file": "/v/snap.qcow2",
        "drv": "qcow2",
        "ro": False,
        "image": {
            "filename": "/v/snap.qcow2",
            "format": "qcow2",
            "backing-image": {"filename": "base.raw", "format": "raw"},
        },
    },
}
_TABLE = """\
              Block Name    PSize              Offset               Used              Total  HVA  RO
             pkernfs-ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000  0x7  rw
    /rom@etc/acpi/tables    4 KiB  0x00000000040c0000 0x0000000000020000 0x0000000000200000  0x7  ro
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x4080000 0x0000000000040000 0x0000000000040000  0x7  ro
"""


def _texts(running: Contents, next_one: Contents, directory: str = "/v") -> list[str]:
    return [it.text for it in differences(running, next_one, directory)]


def test_disks_are_known_by_their_name_or_their_device() -> None:
    found = living.read_disks([_RAW, _BLOCKDEV, _EMPTY])
    assert found["virtio0"] == Disk((Image("raw", "base.raw"),), False, {"bps": 0, "iops": 0})
    assert found["sd2"].images == (Image("raw", "base.raw"),)
    assert found["ide0-cd0"] == Disk(())


def test_the_same_is_no_difference() -> None:
    has = Contents(
        disks=living.read_disks([_OVERLAY, _EMPTY]), blocks=living.read_blocks(_TABLE), cpus=2
    )
    assert _texts(has, has) == []


def test_another_image_is_named() -> None:
    running, written = (Contents(disks=living.read_disks([it])) for it in (_OVERLAY, _RAW))
    assert _texts(running, written) == [
        "disk virtio0: the running QEMU has /v/snap.qcow2 on base.raw, "
        "its command line names base.raw"
    ]
    (found,) = differences(running, written)
    assert "block-commit" in found.hint


def test_the_same_file_by_another_name_is_no_difference(tmp_path: Path) -> None:
    (tmp_path / "base.raw").touch()
    (tmp_path / "link").symlink_to("base.raw")
    names = ["base.raw", str(tmp_path / "base.raw"), "link"]
    names.append('json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}')
    disks = [Contents(disks={"d": Disk((Image("raw", name),))}) for name in names]
    for one in disks:
        assert _texts(disks[0], one, str(tmp_path)) == []
    other = Contents(disks={"d": Disk((Image("qcow2", "base.raw"),))})
    assert len(_texts(disks[0], other, str(tmp_path))) == 1


_NIC = Device("nic0", "virtio-net-pci", (("addr", "02.0"), ("mac", "52:54:00:12:34:56")))
_CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"disks": {"cd": Disk(())}},
        {"disks": {"cd": Disk((Image("raw", "/v/cd.iso"),))}},
        "disk cd: the running QEMU has no medium, its command line names /v/cd.iso",
    ),
    (
        {"disks": {"x": Disk((Image("raw", "/v/x"),))}},
        {},
        "disk x: the running QEMU has it with /v/x, its command line does not",
    ),
    ({}, {"disks": {"x": Disk(())}}, "disk x: its command line has it, the running QEMU does not"),
    (
        {"disks": {"x": Disk((Image("raw", "/v/x"),), True)}},
        {"disks": {"x": Disk((Image("raw", "/v/x"),))}},
        "disk x: the running QEMU has it read-only, its command line makes it writable",
    ),
    (
        {"disks": {"x": Disk((Image("raw", "/v/x"),), limits={"iops": 100})}},
        {"disks": {"x": Disk((Image("raw", "/v/x"),), limits={"iops": 0})}},
        "disk x: iops is 100 now, 0 by its command line",
    ),
    (
        {"jobs": (("mirror", "j"),)},
        {},
        "job j (mirror) is under way on a disk, and ends with this QEMU",
    ),
    (
        {"devices": (_NIC, Device("", "virtio-rng-pci"))},
        {"devices": (_NIC,)},
        "device virtio-rng-pci: the running QEMU has it, its command line does not",
    ),
    (
        {},
        {"devices": (_NIC,)},
        "device nic0 (virtio-net-pci): its command line has it, the running QEMU does not",
    ),
    (
        {"devices": (replace(_NIC, properties=(("addr", "02.0"), ("mac", "aa"))),)},
        {"devices": (_NIC,)},
        "device nic0 (virtio-net-pci): mac is aa now, 52:54:00:12:34:56 by its command line",
    ),
    (
        {"objects": {"io1": "iothread"}},
        {},
        "object io1 (iothread): the running QEMU has it, its command line does not",
    ),
    ({"cpus": 3}, {"cpus": 2}, "the running QEMU has 3 processors, its command line 2"),
    (
        {"memory": {"d1": 64 << 20}},
        {},
        "memory d1: 64 MiB in the running QEMU, 0 MiB by its command line",
    ),
    (
        {"blocks": {"nic.rom": Block(256 << 10, 256 << 10)}},
        {"blocks": {"nic.rom": Block(512 << 10, 512 << 10)}},
        "memory block nic.rom: 256 KiB in the running QEMU, 512 KiB with the files of today",
    ),
    (
        {"blocks": {"old.rom": Block(4096, 4096)}},
        {},
        "memory block old.rom: its command line does not make it",
    ),
    (
        {"version": (11, 1, 3)},
        {"version": (10, 0, 8)},
        "the running QEMU is version 11.1.3, the program is 10.0.8 by now, which is older",
    ),
]


@pytest.mark.parametrize(("running", "written", "says"), _CHANGES)
def test_each_kind_of_difference_is_named(
    running: dict[str, Any], written: dict[str, Any], says: str
) -> None:
    (found,) = differences(Contents(**running), Contents(**written))
    assert found.text == says
    assert found.hint


def test_what_does_not_matter_is_no_difference() -> None:
    running = Contents(
        version=(11, 1, 2),
        objects={"ram": "memory-backend-file"},
        devices=(_NIC, Device("", "a"), Device("", "b")),
        blocks={"/rom@etc/acpi/tables": Block(0x20000, 0x200000)},
    )
    written = Contents(
        version=(11, 1, 3),
        objects={"ram": "memory-backend-ram"},
        devices=(Device("", "b"), Device("", "a"), _NIC),
        # It may grow while a guest runs, and when its state is loaded.
        blocks={"/rom@etc/acpi/tables": Block(0x1000, 0x200000)},
    )
    assert _texts(running, written) == []


def test_blocks_are_read_with_both_sizes() -> None:
    assert living.read_blocks(_TABLE) == {
        "pkernfs-ram": Block(64 << 20, 64 << 20),
        "/rom@etc/acpi/tables": Block(128 << 10, 2 << 20),
        "0000:00:02.0/virtio-net-pci.rom": Block(256 << 10, 256 << 10),
    }


def test_a_file_that_was_replaced_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_text("first")
    with image.open():
        assert replaced(["disk.img"], living.opened(os.getpid()), str(tmp_path)) == []
        (tmp_path / "new").write_text("second")
        (tmp_path / "new").rename(image)
        (found,) = replaced(["disk.img"], living.opened(os.getpid()), str(tmp_path))
        assert found.text == f"{image} is not the file any more that the running QEMU has open"
        image.unlink()
        # That it is gone, QEMU says by itself.
        assert replaced(["disk.img"], living.opened(os.getpid()), str(tmp_path)) == []
