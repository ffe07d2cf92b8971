# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU's monitor shows of memory, as QEMU 11.1.3 prints it."""

from __future__ import annotations

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.vmm import cpr_memory
from pkernfs.vmm.config import RAM_ID
from pkernfs.vmm.cpr_memory import Piece

#: Shortened; the lines end in CR LF on the wire.
TABLE = """
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
  0000000000000010-000000000000001f (prio 0, container): io @0000000000000010

FlatView #2
 AS "mch", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #3
 AS "memory", root: system
 AS "vfio-pci", root: bus master container
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pkernfs-ram KVM
  00000000000c0000-00000000000c0fff (prio 0, rom): pkernfs-ram @00000000000c0000 KVM
  0000000000100000-000000000fffffff (prio 0, ram): pkernfs-ram @0000000000100000 KVM
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000feb80000-00000000feb9ffff (prio 0, ramd): 0000:01:00.0 BAR 0 mmaps[0] KVM
  00000000febc0000-00000000febc004f (prio 0, i/o): msix-table
  00000000febc0050-00000000febc3fff (prio 0, ramd): 0000:01:00.0 BAR 3 mmaps[0] @0000000000000050
  00000000fee00000-00000000feefffff (prio 4096, i/o): kvm-apic-msi
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM

FlatView #4
 AS "KVM-SMRAM", root: mem-container-smram
 Root memory region: mem-container-smram
  0000000000000000-000000000fffffff (prio 0, ram): pkernfs-ram KVM

"""


def test_the_view_of_devices() -> None:
    assert cpr_memory.view(TABLE.replace("\n", "\r\n")) == [
        Piece(0, 0xC0000, True, RAM_ID, 0),
        Piece(0xC0000, 0x1000, False, RAM_ID, 0xC0000),
        Piece(0x100000, 0xFF00000, True, RAM_ID, 0x100000),
        Piece(0xFFFC0000, 0x40000, False, "pc.bios", 0),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ram): pkernfs-ram KVM", "nvram): pkernfs-ram KVM"),
        ("000000000fffffff (prio 0, ram): pkernfs-ram @", "0000000010000000 (prio 0, ram): x @"),
        ("(prio 0, rom): pc.bios KVM", "rom pc.bios"),
        ('AS "memory"', 'AS "all"'),
        ("FlatView #", "View "),
    ],
)
def test_what_is_not_known_is_refused(old: str, new: str) -> None:
    with pytest.raises(PkernfsError):
        cpr_memory.view(TABLE.replace(old, new))


def test_whose_memory_it_is() -> None:
    def owner(name: str, *blocks: str) -> str:
        return cpr_memory.owner(Piece(0, 4096, True, name, 0), blocks)

    assert owner(RAM_ID, "pc.bios") == RAM_ID
    assert owner("pc.bios", "pc.bios", "pc.rom") == "pc.bios"
    assert owner("vga.vram", "0000:00:01.0/vga.vram") == "0000:00:01.0/vga.vram"
    for blocks in ((), ("a/vga.vram", "b/vga.vram"), ("xvga.vram",)):
        with pytest.raises(PkernfsError):
            owner("vga.vram", *blocks)
