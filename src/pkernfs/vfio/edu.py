# SPDX-License-Identifier: GPL-2.0-only
"""A driver of QEMU's educational device: the smallest device with DMA.

Registers and their bits: docs/specs/edu.rst of QEMU, "MMIO area spec" and "DMA controller".
"""

from __future__ import annotations

import time
from typing import Final

from pkernfs.errors import PkernfsError
from pkernfs.vfio.region import Registers

VENDOR: Final = 0x1234
DEVICE: Final = 0x11E8

ID: Final = 0x00
LIVENESS: Final = 0x04
FACTORIAL: Final = 0x08
STATUS: Final = 0x20
IRQ_STATUS: Final = 0x24
IRQ_RAISE: Final = 0x60
IRQ_ACK: Final = 0x64
DMA_SOURCE: Final = 0x80
DMA_DESTINATION: Final = 0x88
DMA_COUNT: Final = 0x90
DMA_COMMAND: Final = 0x98

ID_MASK: Final = 0x0000_00FF  #: the identification is 0xRRrr00ed
ID_VALUE: Final = 0xED
STATUS_COMPUTING: Final = 0x01

DMA_START: Final = 0x1
DMA_TO_RAM: Final = 0x2
DMA_IRQ: Final = 0x4
#: The interrupt status after a DMA with DMA_IRQ.
IRQ_DMA_DONE: Final = 0x100

#: The device's own buffer, in its address space, and its size in bytes.
BUFFER: Final = 0x40000
BUFFER_SIZE: Final = 4096


class Edu:
    """The device behind ``registers`` (BAR 0).

    :raises PkernfsError: this is another device, or it does not answer.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers
        identity = registers.read32(ID)
        if identity & ID_MASK != ID_VALUE:
            raise PkernfsError(f"not QEMU's edu device: identification {identity:#010x}")

    def alive(self, value: int = 0x5AA55AA5) -> bool:
        """Whether the liveness check inverts ``value``."""
        self._registers.write32(LIVENESS, value)
        return self._registers.read32(LIVENESS) == value ^ 0xFFFF_FFFF

    def factorial(self, number: int, *, timeout_s: float = 10) -> int:
        """Let the device compute ``number!`` modulo 2**32."""
        self._registers.write32(FACTORIAL, number)
        self._wait(STATUS, STATUS_COMPUTING, timeout_s)
        return self._registers.read32(FACTORIAL)

    def start_to_ram(self, iova: int, size: int, *, at: int = 0, interrupt: bool = False) -> None:
        """Begin a DMA from the device's buffer to memory; QEMU runs it 100 ms later.

        :param iova: destination. The device has 28 address bits unless ``dma_mask=`` says more.
        :param size: bytes, within the buffer.
        :param at: where in the buffer to begin.
        :param interrupt: raise an interrupt at the end.
        """
        self._start(BUFFER + at, iova, size, at, DMA_TO_RAM | interrupt * DMA_IRQ)

    def start_from_ram(self, iova: int, size: int, *, at: int = 0, interrupt: bool = False) -> None:
        """Begin a DMA from memory to the device's buffer; parameters as above."""
        self._start(iova, BUFFER + at, size, at, interrupt * DMA_IRQ)

    def to_ram(self, iova: int, size: int, *, at: int = 0, timeout_s: float = 10) -> None:
        """A whole DMA to memory. A refused one ends as well: the device can't tell."""
        self.start_to_ram(iova, size, at=at)
        self.wait_dma(timeout_s)

    def from_ram(self, iova: int, size: int, *, at: int = 0, timeout_s: float = 10) -> None:
        """A whole DMA from memory."""
        self.start_from_ram(iova, size, at=at)
        self.wait_dma(timeout_s)

    @property
    def busy(self) -> bool:
        """Whether a DMA is going on."""
        return bool(self._registers.read32(DMA_COMMAND) & DMA_START)

    def wait_dma(self, timeout_s: float = 10) -> None:
        """Wait for the end of a DMA.

        :raises PkernfsError: it did not end in ``timeout_s`` seconds.
        """
        self._wait(DMA_COMMAND, DMA_START, timeout_s)

    def raise_interrupt(self, causes: int = 1) -> None:
        """Let the device raise an interrupt with these status bits."""
        self._registers.write32(IRQ_RAISE, causes)

    def acknowledge(self) -> int:
        """Clear the interrupt; returns its status bits."""
        causes = self._registers.read32(IRQ_STATUS)
        self._registers.write32(IRQ_ACK, causes)
        return causes

    def _start(self, source: int, destination: int, size: int, at: int, command: int) -> None:
        if at < 0 or size <= 0 or at + size > BUFFER_SIZE:
            raise PkernfsError(f"{size} bytes at {at} are not within the device's buffer")
        if self.busy:
            raise PkernfsError("a DMA is going on")
        for offset, value in (
            (DMA_SOURCE, source),
            (DMA_DESTINATION, destination),
            (DMA_COUNT, size),
        ):
            # The registers are 64 bits wide; QEMU takes a 32-bit write as the whole value.
            if value >> 32:
                raise PkernfsError(f"the edu driver writes 32-bit addresses, not {value:#x}")
            self._registers.write32(offset, value)
        self._registers.write32(DMA_COMMAND, command | DMA_START)

    def _wait(self, register: int, bit: int, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while self._registers.read32(register) & bit:
            if time.monotonic() > end:
                raise PkernfsError(f"edu: register {register:#x} busy after {timeout_s} s")
            time.sleep(0.001)
