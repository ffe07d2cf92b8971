# SPDX-License-Identifier: GPL-2.0-only
"""A witness with a network card: what the lab sends to it, and what its driver noticed.

Everything that witness.py does, and further commands:
  frames                       numbers of the frames received, in order of arrival
  nic                          the card: counters, carrier, interrupts, ring, address
  log SEQUENCE                 the guest's kernel log after that sequence number
  tcp                          connections accepted so far, bytes echoed
The guest's own driver (e1000e) runs the card; frames are read from a packet socket, as
tcpdump would. Whatever comes in by TCP on port 5000 is sent back.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib.util
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location("witness", Path(__file__).with_name("witness.py"))
assert _spec is not None
assert _spec.loader is not None
witness = importlib.util.module_from_spec(_spec)
sys.modules["witness"] = witness
_spec.loader.exec_module(witness)

NET = Path("/sys/class/net")
#: Address that QEMU's user network gives to its first guest; TCP comes from there.
ADDRESS, MASK, PORT = "10.0.2.15", "255.255.255.0", 5000
#: The same as pkernfs.vfio.frame says.
ETHERTYPE = 0x88B5
MAGIC = b"PKFR"
HEAD = struct.Struct("<4sIQ")
#: include/uapi/linux/sockios.h, ethtool.h, if.h
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
SIOCETHTOOL, ETHTOOL_GRINGPARAM, ETHTOOL_SRINGPARAM = 0x8946, 0x10, 0x11
IFF_UP = 1
_SO_RCVBUFFORCE = 33


def find_card() -> str:
    """Name of the interface of the passed-through card, once its driver has made it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in NET.iterdir():
            driver = path / "device/driver"
            if driver.exists() and driver.resolve().name == "e1000e":
                return path.name
        time.sleep(0.05)
    raise RuntimeError("no card that e1000e drives")


class Card:
    """The interface: set up once, read many times."""

    def __init__(self, name: str, ring: int) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.set_ring(ring)
        self._address(SIOCSIFADDR, ADDRESS)
        self._address(SIOCSIFNETMASK, MASK)
        flags = struct.unpack_from("<h", self._ask(SIOCGIFFLAGS, b""), 16)[0]
        self._ask(SIOCSIFFLAGS, struct.pack("<h", flags | IFF_UP))

    def _ask(self, request: int, data: bytes) -> bytes:
        return fcntl.ioctl(
            self._socket.fileno(), request, struct.pack("16s24s", self.name.encode(), data)
        )

    def _address(self, request: int, address: str) -> None:
        self._ask(request, struct.pack("<HH4s", socket.AF_INET, 0, socket.inet_aton(address)))

    def _ring(self, command: int, values: bytes = b"") -> tuple[int, ...]:
        # struct ethtool_ringparam: command, four maxima, four current values.
        data = array.array("B", struct.pack("<I32s", command, values))
        self._ask(SIOCETHTOOL, struct.pack("<Q", data.buffer_info()[0]))
        return struct.unpack_from("<8I", data.tobytes(), 4)

    def set_ring(self, size: int) -> None:
        """Receive descriptors; the driver's own number if ``size`` is 0."""
        if not size:
            return
        now = self._ring(ETHTOOL_GRINGPARAM)
        self._ring(ETHTOOL_SRINGPARAM, struct.pack("<8I", *now[:4], size, *now[5:]))

    def describe(self) -> dict[str, Any]:
        """What the guest's kernel says of the card."""
        home = NET / self.name
        count = {path.name: int(path.read_text()) for path in (home / "statistics").iterdir()}
        lines = Path("/proc/interrupts").read_text().splitlines()
        found = [line.split() for line in lines if self.name in line]
        return {
            "name": self.name,
            "pci": (home / "device").resolve().name,
            "ifindex": int((home / "ifindex").read_text()),
            "carrier": int((home / "carrier").read_text()),
            "carrier_changes": int((home / "carrier_changes").read_text()),
            "counters": {name: value for name, value in count.items() if value},
            "interrupts": {words[-1]: int(words[1]) for words in found},
            "ring": self._ring(ETHTOOL_GRINGPARAM)[4],
        }


class Frames:
    """Numbered frames, as ranges in order of arrival: a gap or a swap starts a new one."""

    def __init__(self, name: str) -> None:
        self.ranges: list[list[int]] = []
        self.damaged = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((name, ETHERTYPE))

    def receive(self) -> None:
        """Receive, for ever."""
        while True:
            self.add(self._socket.recv(2048))

    def add(self, data: bytes) -> None:
        """Note one frame; its checksum is the lab's business, its number and filler ours."""
        magic, run, number = HEAD.unpack_from(data, 14)
        if magic != MAGIC or not intact(data, number):
            self.damaged += 1
            return
        last = self.ranges[-1] if self.ranges else None
        if last is not None and last[0] == run and last[2] + 1 == number:
            last[2] = number
        else:
            self.ranges.append([run, number, number])


def intact(data: bytes, number: int) -> bool:
    """Is the frame's filler that of its number (pkernfs.vfio.frame)?"""
    size = 64 + number % 128 - 46
    pattern = (number * 0x9E3779B97F4A7C15 & (1 << 64) - 1).to_bytes(8, "little")
    return data[46 : 46 + size] == (pattern * (size // 8 + 1))[:size]


class Echo:
    """Sends back what comes in by TCP."""

    def __init__(self) -> None:
        self.accepted = self.bytes = 0
        self._listener = socket.create_server(("", PORT))

    def serve(self) -> None:
        """Accept, for ever; a thread for each connection."""
        while True:
            connection, _ = self._listener.accept()
            self.accepted += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
                self.bytes += len(data)


def kernel_log(after: int) -> dict[str, Any]:
    """Lines of the kernel's log with a sequence number above ``after``, and the highest."""
    lines, last = [], after
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            head, _, text = os.read(descriptor, 8192).decode(errors="replace").partition(";")
            sequence = int(head.split(",")[1])
            if sequence > after:
                lines.append(text.splitlines()[0])
                last = max(last, sequence)
    except BlockingIOError:
        return {"lines": lines, "last": last}
    finally:
        os.close(descriptor)


class NicWitness(witness.Witness):  # type: ignore[misc,name-defined]
    """A witness that has a card as well."""

    def __init__(self, share: float, ring: int) -> None:
        self.card = Card(find_card(), ring)
        self.frames = Frames(self.card.name)
        self.echo = Echo()
        for loop in (self.frames.receive, self.echo.serve):
            threading.Thread(target=loop, daemon=True).start()
        super().__init__(share)

    def answer(self, words: list[str]) -> dict[str, Any]:
        """Do what a command asks for."""
        command, arguments = words[0], words[2:]
        if command == "frames":
            return {"ranges": self.frames.ranges, "damaged": self.frames.damaged}
        if command == "nic":
            return self.card.describe()
        if command == "log":
            return kernel_log(int(arguments[0]))
        if command == "tcp":
            return {"accepted": self.echo.accepted, "bytes": self.echo.bytes}
        return super().answer(words)  # type: ignore[no-any-return]


if __name__ == "__main__":
    witness.main(lambda: NicWitness(float(sys.argv[1]), int(sys.argv[2])))
