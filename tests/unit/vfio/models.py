# SPDX-License-Identifier: GPL-2.0-only
"""Models of the two devices: registers and DMA, as far as the drivers use them.

They follow the documents that the drivers name, and QEMU's models where those leave a choice.
"""

from __future__ import annotations

from pkernfs.vfio import e1000e_regs as regs
from pkernfs.vfio import edu

MAC = bytes.fromhex("525400123456")


class EduModel:
    """QEMU's edu; DMA ends at the next look at the command register."""

    def __init__(self, memory: bytearray, iova: int) -> None:
        self._memory, self._iova = memory, iova
        self._buffer = bytearray(edu.BUFFER_SIZE)
        self._registers = {edu.ID: 0x010000ED}

    def read32(self, offset: int) -> int:
        value = self._registers.get(offset, 0)
        if offset == edu.DMA_COMMAND and value & edu.DMA_START:
            self._dma(value)
            self._registers[offset] = value & ~edu.DMA_START
        return value

    def write32(self, offset: int, value: int) -> None:
        if offset == edu.LIVENESS:
            value = value ^ 0xFFFFFFFF
        if offset == edu.FACTORIAL:
            product = 1
            for factor in range(2, value + 1):
                product = product * factor & 0xFFFFFFFF
            value = product
        if offset == edu.IRQ_RAISE:
            offset, value = edu.IRQ_STATUS, self._registers.get(edu.IRQ_STATUS, 0) | value
        if offset == edu.IRQ_ACK:
            offset, value = edu.IRQ_STATUS, self._registers.get(edu.IRQ_STATUS, 0) & ~value
        self._registers[offset] = value

    def _dma(self, command: int) -> None:
        source, destination, count = (
            self._registers[offset]
            for offset in (edu.DMA_SOURCE, edu.DMA_DESTINATION, edu.DMA_COUNT)
        )
        if command & edu.DMA_TO_RAM:
            at, data = destination - self._iova, self._buffer[source - edu.BUFFER :][:count]
            self._memory[at : at + count] = data
        else:
            data = self._memory[source - self._iova :][:count]
            at = destination - edu.BUFFER
            self._buffer[at : at + count] = data


class NicModel:
    """An 82574 with legacy descriptors; :meth:`arrive` is the wire."""

    def __init__(self, memory: memoryview, iova: int) -> None:
        self._memory, self._iova = memory, iova
        self.writes: list[tuple[int, int]] = []
        self.sent: list[bytes] = []
        self.registers: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Power-on state."""
        self.registers = {
            regs.STATUS: regs.STATUS_LU,
            regs.RAL0: int.from_bytes(MAC[:4], "little"),
            regs.RAH0: int.from_bytes(MAC[4:], "little") | regs.RAH_AV,
        }

    def read32(self, offset: int) -> int:
        return self.registers.get(offset, 0)

    def write32(self, offset: int, value: int) -> None:
        self.writes.append((offset, value))
        if offset == regs.CTRL and value & regs.CTRL_RST:
            self.reset()
            return
        self.registers[offset] = value
        if offset == regs.TDT:
            self._send()

    def arrive(self, frame: bytes, *, errors: int = 0) -> bool:
        """A frame comes; False if there is no room for it or the device does not receive."""
        head, tail = self.read32(regs.RDH), self.read32(regs.RDT)
        if not self.read32(regs.RCTL) & regs.RCTL_EN or head == tail:
            return False
        size = regs.buffer_size(self.read32(regs.RCTL))
        parts = [frame[at : at + size] for at in range(0, len(frame), size)]
        for number, part in enumerate(parts):
            at = self._at(regs.RDBAL, head)
            buffer = self._offset(int.from_bytes(self._memory[at : at + 8], "little"))
            self._memory[buffer : buffer + len(part)] = part
            end = 2 * (number + 1 == len(parts))
            written = len(part).to_bytes(2, "little") + bytes([0, 0, 1 | end, errors, 0, 0])
            self._memory[at + 8 : at + 16] = written
            head = (head + 1) % (self.read32(regs.RDLEN) // regs.DESCRIPTOR)
        self.registers[regs.RDH] = head
        return True

    def _send(self) -> None:
        head, tail = self.read32(regs.TDH), self.read32(regs.TDT)
        while head != tail:
            at = self._at(regs.TDBAL, head)
            buffer = self._offset(int.from_bytes(self._memory[at : at + 8], "little"))
            length = int.from_bytes(self._memory[at + 8 : at + 10], "little")
            self.sent.append(bytes(self._memory[buffer : buffer + length]))
            self._memory[at + 12] = self._memory[at + 12] | 1
            head = (head + 1) % (self.read32(regs.TDLEN) // regs.DESCRIPTOR)
        self.registers[regs.TDH] = head

    def _at(self, base: int, index: int) -> int:
        ring = self.read32(base) | self.read32(base + 4) << 32
        return self._offset(ring + index * regs.DESCRIPTOR)

    def _offset(self, iova: int) -> int:
        offset = iova - self._iova
        assert 0 <= offset < len(self._memory), f"DMA to {iova:#x}"
        return offset
