# SPDX-License-Identifier: GPL-2.0-only
"""A driver of the Intel 82574 (QEMU's e1000e): receive, transmit, and taking over while it runs.

Facts of the device: Intel 82574 datasheet, sections named at each place. The state of the
receive ring lies in the device and in memory alone:

* RDH is where the device writes next, RDT one before the first descriptor that this driver
  has not read (it gives descriptors back in order and at once). So a later driver starts to
  read at RDT + 1.
* A descriptor with status RX_DONE holds a frame. One without, between RDT + 1 and RDH, was
  read but not given back when its driver ended; it is skipped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pkernfs.errors import PkernfsError
from pkernfs.vfio import e1000e_regs as regs
from pkernfs.vfio.e1000e_ring import RX_END, TX_BUFFER, TX_DONE, RingMemory
from pkernfs.vfio.region import Registers

LINK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Received:
    """A frame that the device has put into memory.

    :ivar slot: index of its descriptor.
    :ivar data: the frame, without its check sequence.
    :ivar errors: the descriptor's errors field; 0 for a good frame.
    """

    slot: int
    data: bytes
    errors: int


@dataclass(frozen=True)
class RingState:
    """Receive ring at one moment.

    :ivar head: RDH, where the device writes next.
    :ivar tail: RDT, the last descriptor that the device may use.
    :ivar waiting: filled descriptors that no driver has read.
    """

    head: int
    tail: int
    waiting: int


class E1000e:
    """A running device. Made by :meth:`start` or :meth:`adopt`, not directly."""

    def __init__(self, registers: Registers, memory: RingMemory, read: int, write: int) -> None:
        self.registers = registers
        self.memory = memory
        self._read = read  # next receive descriptor to look at
        self._write = write  # next transmit descriptor to fill

    @classmethod
    def start(cls, registers: Registers, memory: RingMemory, *, promiscuous: bool = True) -> E1000e:
        """Bring a device up from reset ("Software Initialization and Diagnostics").

        Bus master must be on.

        :param memory: fresh rings, mapped for the device at ``memory.iova``.
        :param promiscuous: take every frame, not only those to the device and to all.
        :raises PkernfsError: no link.
        """
        _reset(registers)
        _program_receive(registers, memory)
        _program_transmit(registers, memory)
        rctl = regs.RCTL_EN | regs.RCTL_BAM | regs.RCTL_SECRC
        rctl |= regs.BUFFER_SIZES[memory.geometry.buffer]
        if promiscuous:
            rctl |= regs.RCTL_UPE | regs.RCTL_MPE
        registers.write32(regs.RCTL, rctl)
        registers.write32(regs.TCTL, regs.TCTL_EN | regs.TCTL_PSP)
        return cls(registers, memory, read=0, write=0)

    @classmethod
    def adopt(cls, registers: Registers, memory: RingMemory) -> E1000e:
        """Go on with a device that runs. Reads registers and memory, writes nothing.

        :param memory: the rings that it runs on (:meth:`RingMemory.read`).
        :raises PkernfsError: it does not run on these rings (it was reset, or another driver
            has it).
        """
        _check_running(registers, memory)
        count = memory.geometry.receive
        head = registers.read32(regs.RDH)
        read = (registers.read32(regs.RDT) + 1) % count
        while read != head and not memory.rx_done(read):
            read = (read + 1) % count
        return cls(registers, memory, read, write=registers.read32(regs.TDT))

    @property
    def mac(self) -> bytes:
        """Station address, 6 bytes."""
        low = self.registers.read32(regs.RAL0)
        return regs.mac_from_registers(low, self.registers.read32(regs.RAH0))

    @property
    def link_up(self) -> bool:
        """Whether there is a link."""
        return bool(self.registers.read32(regs.STATUS) & regs.STATUS_LU)

    def ring_state(self) -> RingState:
        """Where the receive ring stands. Counts filled descriptors from the next to be read."""
        count = self.memory.geometry.receive
        waiting = 0
        while waiting < count and self.memory.rx_done((self._read + waiting) % count):
            waiting += 1
        head = self.registers.read32(regs.RDH)
        return RingState(head, self.registers.read32(regs.RDT), waiting)

    def poll(self, limit: int = 64) -> list[Received]:
        """Frames that have arrived and were not given back, in order; changes nothing.

        :param limit: at most so many.
        :raises PkernfsError: a frame did not fit into one buffer.
        """
        count = self.memory.geometry.receive
        frames: list[Received] = []
        slot = self._read
        while len(frames) < limit and self.memory.rx_done(slot):
            frames.append(self._frame(slot))
            slot = (slot + 1) % count
        return frames

    def give_back(self, frames: list[Received]) -> None:
        """Return the descriptors of what :meth:`poll` gave, all of them, to the device."""
        for frame in frames:
            self.memory.recycle(frame.slot)
        if frames:
            # One register write for all: under emulation each one costs an exit.
            self.registers.write32(regs.RDT, frames[-1].slot)
            self._read = (frames[-1].slot + 1) % self.memory.geometry.receive

    def receive(self, limit: int = 64) -> list[Received]:
        """:meth:`poll` and :meth:`give_back` in one."""
        frames = self.poll(limit)
        self.give_back(frames)
        return frames

    def transmit(self, frame: bytes, *, timeout_s: float = 5) -> None:
        """Send a frame and wait until the device has read it.

        :param frame: from the destination address on, without check sequence.
        :raises PkernfsError: too long for a buffer, or not sent in ``timeout_s`` seconds.
        """
        if len(frame) > TX_BUFFER:
            raise PkernfsError(f"a frame of {len(frame)} bytes is too long")
        slot = self._write
        self.memory.put_tx(slot, frame)
        self._write = (slot + 1) % self.memory.geometry.transmit
        self.registers.write32(regs.TDT, self._write)
        end = time.monotonic() + timeout_s
        while not self.memory.tx(slot).status & TX_DONE:
            if time.monotonic() > end:
                raise PkernfsError(f"frame not sent after {timeout_s} s")
            time.sleep(0.001)

    def enable_interrupts(self, causes: int = regs.INT_RXT0 | regs.INT_RXDMT0) -> None:
        """Let these causes raise an interrupt (INTx or MSI)."""
        self.registers.write32(regs.IMS, causes)

    def enable_msix_receive(self, vector: int) -> None:
        """Let a received frame raise an MSI-X vector, 0 to 4.

        With MSI-X the device has causes of their own for its queues ("MSI-X Mode").
        """
        self.registers.write32(regs.IVAR, regs.IVAR_RXQ0_VALID | vector)
        self.registers.write32(regs.IMS, regs.INT_RXQ0)

    def disable_interrupts(self) -> None:
        """No interrupts any more."""
        self.registers.write32(regs.IMC, regs.INT_ALL)

    def acknowledge(self) -> int:
        """Read and clear the interrupt causes."""
        causes = self.registers.read32(regs.ICR)
        # QEMU clears ICR on read only when nothing is enabled; writing ones always does.
        self.registers.write32(regs.ICR, causes)
        return causes

    def missed(self) -> int:
        """Frames that the device had no room for since the last call (MPC and RNBC)."""
        return self.registers.read32(regs.MPC) + self.registers.read32(regs.RNBC)

    def stop(self) -> None:
        """Stop receiving and transmitting; interrupts off."""
        self.disable_interrupts()
        self.registers.write32(regs.RCTL, 0)
        self.registers.write32(regs.TCTL, 0)

    def _frame(self, slot: int) -> Received:
        descriptor = self.memory.rx(slot)
        if not descriptor.status & RX_END:
            raise PkernfsError(
                f"a frame is longer than a buffer of {self.memory.geometry.buffer} bytes",
                "take bigger receive buffers",
            )
        return Received(slot, self.memory.frame(slot, descriptor.length), descriptor.errors)


def _reset(registers: Registers) -> None:
    """Software reset and link ("Initialization Sequence", "Global Reset and General
    Configuration"): interrupts off before and after, then CTRL.RST, then the link."""
    registers.write32(regs.IMC, regs.INT_ALL)
    registers.write32(regs.RCTL, 0)
    registers.write32(regs.TCTL, 0)
    registers.write32(regs.CTRL, registers.read32(regs.CTRL) | regs.CTRL_RST)
    # "Device Control Register - CTRL": wait at least 1 us before the next access.
    time.sleep(0.001)
    registers.write32(regs.IMC, regs.INT_ALL)
    registers.read32(regs.ICR)
    registers.write32(regs.CTRL, registers.read32(regs.CTRL) | regs.CTRL_SLU | regs.CTRL_FD)
    end = time.monotonic() + LINK_TIMEOUT_S
    while not registers.read32(regs.STATUS) & regs.STATUS_LU:
        if time.monotonic() > end:
            raise PkernfsError(f"the network device has no link after {LINK_TIMEOUT_S:.0f} s")
        time.sleep(0.01)


def _program_receive(registers: Registers, memory: RingMemory) -> None:
    """Receive ring ("Receive Initialization"): all descriptors but one are the device's."""
    geometry = memory.geometry
    registers.write32(regs.RFCTL, registers.read32(regs.RFCTL) & ~regs.RFCTL_EXTEN)
    _program_ring(registers, regs.RDBAL, memory.iova + geometry.receive_ring, geometry.receive)
    registers.write32(regs.RDH, 0)
    registers.write32(regs.RDT, geometry.receive - 1)


def _program_transmit(registers: Registers, memory: RingMemory) -> None:
    """Transmit ring ("Transmit Initialization"): empty."""
    geometry = memory.geometry
    _program_ring(registers, regs.TDBAL, memory.iova + geometry.transmit_ring, geometry.transmit)
    registers.write32(regs.TDH, 0)
    registers.write32(regs.TDT, 0)


def _program_ring(registers: Registers, base: int, iova: int, count: int) -> None:
    """Address and length: three registers in a row, for both rings."""
    registers.write32(base, iova & 0xFFFF_FFFF)
    registers.write32(base + 4, iova >> 32)
    registers.write32(base + 8, count * regs.DESCRIPTOR)


def _ring_registers(registers: Registers, base: int) -> tuple[int, int]:
    """Address and number of descriptors of a ring."""
    iova = registers.read32(base) | registers.read32(base + 4) << 32
    return iova, registers.read32(base + 8) // regs.DESCRIPTOR


def _check_running(registers: Registers, memory: RingMemory) -> None:
    geometry = memory.geometry
    rctl = registers.read32(regs.RCTL)
    found = (
        _ring_registers(registers, regs.RDBAL),
        _ring_registers(registers, regs.TDBAL),
        regs.buffer_size(rctl),
    )
    wanted = (
        (memory.iova + geometry.receive_ring, geometry.receive),
        (memory.iova + geometry.transmit_ring, geometry.transmit),
        geometry.buffer,
    )
    if not rctl & regs.RCTL_EN:
        raise PkernfsError("the network device does not receive: it was reset")
    if found != wanted:
        raise PkernfsError(f"the network device runs on other rings: {found}, not {wanted}")
    if registers.read32(regs.RDH) >= geometry.receive:
        raise PkernfsError("the network device's receive head is outside of its ring")
