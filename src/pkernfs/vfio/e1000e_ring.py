# SPDX-License-Identifier: GPL-2.0-only
"""Rings and buffers of the 82574 in one piece of memory, and its legacy descriptors.

Everything the device reads or writes lies here, at fixed places for a given geometry. In a
pkernfs file it outlives the process and the kernel: the next driver reads the geometry from
the first page and the state from the descriptors and registers. Nothing is stored twice.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pkernfs.errors import PkernfsError
from pkernfs.vfio import e1000e_regs as regs

_PAGE: Final = 4096
_MAGIC: Final = b"PKNICRNG"
_HEAD: Final = struct.Struct("<8sIIIIQ")  # magic, version, receive, size, transmit, iova
_VERSION: Final = 1

#: Legacy receive descriptor ("Legacy Receive Descriptor Format"): address, length, checksum,
#: status, errors, VLAN tag.
_RX: Final = struct.Struct("<QHHBBH")
#: Legacy transmit descriptor ("Legacy Transmit Descriptor Format"): address, length, checksum
#: offset, command, status, checksum start, VLAN tag.
_TX: Final = struct.Struct("<QHBBBBH")

RX_DONE: Final = 1 << 0
RX_END: Final = 1 << 1
TX_END: Final = 1 << 0
TX_INSERT_FCS: Final = 1 << 1
TX_REPORT: Final = 1 << 3
TX_DONE: Final = 1 << 0
#: Buffer of one transmit descriptor, bytes.
TX_BUFFER: Final = 2048


@dataclass(frozen=True)
class RxDescriptor:
    """A legacy receive descriptor, as the device left it.

    :ivar buffer: IOVA of its buffer.
    :ivar length: bytes received.
    :ivar status: ``RX_DONE``, ``RX_END``.
    :ivar errors: non-zero for a damaged frame.
    """

    buffer: int
    length: int = 0
    status: int = 0
    errors: int = 0

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return _RX.pack(self.buffer, self.length, 0, self.status, self.errors, 0)

    @classmethod
    def unpack(cls, data: memoryview | bytes, offset: int = 0) -> RxDescriptor:
        """Read 16 bytes at ``offset``."""
        buffer, length, _, status, errors, _ = _RX.unpack_from(data, offset)
        return cls(buffer, length, status, errors)


@dataclass(frozen=True)
class TxDescriptor:
    """A legacy transmit descriptor.

    :ivar buffer: IOVA of the frame.
    :ivar length: bytes.
    :ivar command: ``TX_END``, ``TX_INSERT_FCS``, ``TX_REPORT``.
    :ivar status: ``TX_DONE`` once sent, if asked to report.
    """

    buffer: int
    length: int
    command: int = TX_END | TX_INSERT_FCS | TX_REPORT
    status: int = 0

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return _TX.pack(self.buffer, self.length, 0, self.command, self.status, 0, 0)

    @classmethod
    def unpack(cls, data: memoryview | bytes, offset: int = 0) -> TxDescriptor:
        """Read 16 bytes at ``offset``."""
        buffer, length, _, command, status, _, _ = _TX.unpack_from(data, offset)
        return cls(buffer, length, command, status)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


@dataclass(frozen=True)
class Geometry:
    """Sizes of rings and buffers, and from them where everything lies.

    A ring of n descriptors holds n - 1 frames: head equal to tail means empty ("Receive
    Descriptor Queue Structure"). While no driver runs nothing is given back, so the ring must
    hold what arrives in that time: 32768 descriptors last 163 s at a frame every 5 ms.

    :ivar receive: receive descriptors, a multiple of 8, at most 65528.
    :ivar buffer: bytes of a receive buffer, a size that RCTL knows; bigger than any frame.
    :ivar transmit: transmit descriptors, a multiple of 8.
    """

    receive: int = 32768
    buffer: int = 256
    transmit: int = 64

    def __post_init__(self) -> None:
        for count in (self.receive, self.transmit):
            size = count * regs.DESCRIPTOR
            if size % regs.RING_BLOCK or not 0 < count <= regs.RING_MAX:
                raise PkernfsError(
                    f"a ring of {count} descriptors is not possible",
                    f"take a multiple of 8 up to {regs.RING_MAX}",
                )
        if self.buffer not in regs.BUFFER_SIZES:
            raise PkernfsError(
                f"the 82574 has no receive buffers of {self.buffer} bytes",
                f"take one of {sorted(regs.BUFFER_SIZES)}",
            )

    @property
    def receive_ring(self) -> int:
        """Offset of the receive ring."""
        return _PAGE

    @property
    def transmit_ring(self) -> int:
        """Offset of the transmit ring."""
        return self.receive_ring + _pages(self.receive * regs.DESCRIPTOR)

    @property
    def transmit_buffers(self) -> int:
        """Offset of the transmit buffers."""
        return self.transmit_ring + _pages(self.transmit * regs.DESCRIPTOR)

    @property
    def receive_buffers(self) -> int:
        """Offset of the receive buffers."""
        return self.transmit_buffers + _pages(self.transmit * TX_BUFFER)

    @property
    def size(self) -> int:
        """Bytes of memory in all, whole pages."""
        return self.receive_buffers + _pages(self.receive * self.buffer)


class RingMemory:
    """The memory that a device and its driver share.

    :param view: its bytes, at least ``geometry.size`` of them.
    :param iova: where the device sees it.
    """

    def __init__(self, view: memoryview, iova: int, geometry: Geometry) -> None:
        if len(view) < geometry.size:
            raise PkernfsError(f"{len(view)} bytes are too few for the rings ({geometry.size})")
        self.view = view
        self.iova = iova
        self.geometry = geometry

    @classmethod
    def format(cls, view: memoryview, iova: int, geometry: Geometry) -> RingMemory:
        """Lay out fresh rings: every receive descriptor with its buffer, nothing received."""
        memory = cls(view, iova, geometry)
        first = iova + geometry.receive_buffers
        ring = b"".join(
            _RX.pack(first + index * geometry.buffer, 0, 0, 0, 0, 0)
            for index in range(geometry.receive)
        )
        view[geometry.receive_ring : geometry.receive_ring + len(ring)] = ring
        size = geometry.transmit * regs.DESCRIPTOR
        view[geometry.transmit_ring : geometry.transmit_ring + size] = bytes(size)
        # The head goes last: a memory with a head has complete rings.
        head = _HEAD.pack(
            _MAGIC, _VERSION, geometry.receive, geometry.buffer, geometry.transmit, iova
        )
        view[: _HEAD.size + 4] = head + zlib.crc32(head).to_bytes(4, "little")
        return memory

    @classmethod
    def read(cls, view: memoryview) -> RingMemory:
        """Find the rings that another driver left.

        :raises PkernfsError: there are none, or the head is damaged.
        """
        head = bytes(view[: _HEAD.size])
        check = int.from_bytes(view[_HEAD.size : _HEAD.size + 4], "little")
        magic, version, receive, buffer, transmit, iova = _HEAD.unpack(head)
        if magic != _MAGIC or version != _VERSION or zlib.crc32(head) != check:
            raise PkernfsError("no rings of an e1000e in this memory")
        return cls(view, iova, Geometry(receive, buffer, transmit))

    def rx(self, index: int) -> RxDescriptor:
        """Receive descriptor ``index``."""
        return RxDescriptor.unpack(self.view, self._rx_offset(index))

    def rx_done(self, index: int) -> bool:
        """Whether the device has filled receive descriptor ``index``."""
        return bool(self.view[self._rx_offset(index) + 12] & RX_DONE)

    def frame(self, index: int, length: int) -> bytes:
        """The first ``length`` bytes of receive buffer ``index``."""
        start = self.geometry.receive_buffers + index * self.geometry.buffer
        return bytes(self.view[start : start + length])

    def recycle(self, index: int) -> None:
        """Make receive descriptor ``index`` empty again. Its address was never changed: the
        device writes back bytes 8 to 15 only."""
        offset = self._rx_offset(index) + 8
        self.view[offset : offset + 8] = bytes(8)

    def tx(self, index: int) -> TxDescriptor:
        """Transmit descriptor ``index``."""
        return TxDescriptor.unpack(self.view, self._tx_offset(index))

    def put_tx(self, index: int, frame: bytes) -> None:
        """Put a frame into transmit buffer ``index`` and its descriptor."""
        start = self.geometry.transmit_buffers + index * TX_BUFFER
        self.view[start : start + len(frame)] = frame
        offset = self._tx_offset(index)
        descriptor = TxDescriptor(self.iova + start, len(frame)).pack()
        self.view[offset : offset + regs.DESCRIPTOR] = descriptor

    def _rx_offset(self, index: int) -> int:
        return self.geometry.receive_ring + index * regs.DESCRIPTOR

    def _tx_offset(self, index: int) -> int:
        return self.geometry.transmit_ring + index * regs.DESCRIPTOR
