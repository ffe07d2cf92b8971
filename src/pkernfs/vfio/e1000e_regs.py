# SPDX-License-Identifier: GPL-2.0-only
"""Registers of the Intel 82574 (QEMU's e1000e) that the driver uses.

Source: Intel 82574 GbE Controller Family datasheet, chapter 10 "Driver Programming
Interface"; the section of each group is named. QEMU's model (hw/net/e1000e_core.c) behaves
as said where a comment says so.
"""

from __future__ import annotations

from typing import Final

VENDOR: Final = 0x8086
DEVICE: Final = 0x10D3

# General registers ("Device Control Register - CTRL", "Device Status Register - STATUS").
CTRL: Final = 0x0000
CTRL_FD: Final = 1 << 0
CTRL_SLU: Final = 1 << 6  #: set link up
CTRL_RST: Final = 1 << 26  #: device reset, clears itself
STATUS: Final = 0x0008
STATUS_LU: Final = 1 << 1  #: link up

# Interrupts ("Interrupt Cause Read Register - ICR" and following).
ICR: Final = 0x00C0
ITR: Final = 0x00C4
ICS: Final = 0x00C8
IMS: Final = 0x00D0
IMC: Final = 0x00D8
INT_TXDW: Final = 1 << 0  #: transmit descriptor written back
INT_LSC: Final = 1 << 2  #: link status change
INT_RXDMT0: Final = 1 << 4  #: few receive descriptors left
INT_RXO: Final = 1 << 6  #: receiver overrun
INT_RXT0: Final = 1 << 7  #: frame received (not with MSI-X)
INT_RXQ0: Final = 1 << 20  #: frame received in queue 0 (with MSI-X)
IVAR: Final = 0x00E4  #: which MSI-X vector a cause raises ("Interrupt Vector Allocation Registers")
IVAR_RXQ0_VALID: Final = 1 << 3  #: bits 2:0 are the vector of receive queue 0
INT_ALL: Final = 0xFFFF_FFFF

# Receive ("Receive Control Register - RCTL", "Receive Descriptor Base Address Low - RDBAL"...).
RCTL: Final = 0x0100
RCTL_EN: Final = 1 << 1
RCTL_UPE: Final = 1 << 3  #: unicast promiscuous
RCTL_MPE: Final = 1 << 4  #: multicast promiscuous
RCTL_BAM: Final = 1 << 15  #: accept broadcast
RCTL_BSIZE_SHIFT: Final = 16
RCTL_BSEX: Final = 1 << 25  #: buffer size times 16
RCTL_SECRC: Final = 1 << 26  #: strip the frame check sequence
RDBAL: Final = 0x2800
RDBAH: Final = 0x2804
RDLEN: Final = 0x2808
RDH: Final = 0x2810
RDT: Final = 0x2818
RFCTL: Final = 0x5008
RFCTL_EXTEN: Final = 1 << 15  #: extended descriptors instead of legacy ones
RAL0: Final = 0x5400
RAH0: Final = 0x5404
RAH_AV: Final = 1 << 31  #: address valid

# Transmit ("Transmit Control Register - TCTL", "Transmit Descriptor Base Address Low - TDBAL"...).
TCTL: Final = 0x0400
TCTL_EN: Final = 1 << 1
TCTL_PSP: Final = 1 << 3  #: pad short packets
TDBAL: Final = 0x3800
TDBAH: Final = 0x3804
TDLEN: Final = 0x3808
TDH: Final = 0x3810
TDT: Final = 0x3818

# Statistics ("Statistics Registers"); all are cleared by reading.
MPC: Final = 0x4010  #: missed: no room in the packet buffer
GPRC: Final = 0x4074  #: good packets received
GPTC: Final = 0x4080  #: good packets transmitted
RNBC: Final = 0x40A0  #: no receive descriptor was free
ROC: Final = 0x40AC  #: oversized

#: Bytes of a legacy descriptor ("Receive Descriptor (RDESC) Layout").
DESCRIPTOR: Final = 16
#: RDLEN and TDLEN hold bits 19:7 of the ring's size in bytes ("Receive Descriptor Length -
#: RDLEN"): whole blocks of 128 bytes, at most 65528 descriptors.
RING_BLOCK: Final = 128
RING_MAX: Final = 0xFFF80 // DESCRIPTOR

#: RCTL.BSIZE and RCTL.BSEX for a buffer size in bytes ("Receive Control Register - RCTL").
BUFFER_SIZES: Final[dict[int, int]] = {
    2048: 0 << RCTL_BSIZE_SHIFT,
    1024: 1 << RCTL_BSIZE_SHIFT,
    512: 2 << RCTL_BSIZE_SHIFT,
    256: 3 << RCTL_BSIZE_SHIFT,
    16384: 1 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
    8192: 2 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
    4096: 3 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
}
_BSIZE_MASK: Final = 3 << RCTL_BSIZE_SHIFT | RCTL_BSEX


def buffer_size(rctl: int) -> int:
    """Bytes of a receive buffer as RCTL says; 0 for the reserved combination."""
    bits = rctl & _BSIZE_MASK
    return next((size for size, value in BUFFER_SIZES.items() if value == bits), 0)


def mac_from_registers(low: int, high: int) -> bytes:
    """The station address in RAL and RAH ("Receive Address Low - RAL")."""
    return low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little")
