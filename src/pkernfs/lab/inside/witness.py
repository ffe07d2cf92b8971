# SPDX-License-Identifier: GPL-2.0-only
"""The witness: a program in a guest that can prove it is the same one after an update.

Fills most of the guest's memory with a pattern of its own, counts, and talks JSON lines
on the first serial port; pkernfs.lab.witness is the other end. Standard library only,
started with ``python3 -I -S``.

Says, several times a second:
  {"beat": N, "count": N, "clock": S, "boot": ID, "pid": N, "gap": S}
where "gap" is the longest time between two counts that the guest itself has noticed.
Answers ``COMMAND ID [ARGUMENTS]``, a line, with {"reply": ID, ...}; COMMAND is one of
  digest                       recompute the digest from memory
  disk-write MIB SEED          write a pattern to the disk, flush it
  disk-verify MIB SEED         read it back past the page cache, compare
  disk-busy on|off             write and verify all the time, beside the rest
  spoil                        change one byte of the pattern (to test the proof itself)
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20
PAGE = 4096
COUNT_S = 0.02
BEAT_S = 0.25
DISK = "/dev/vda"
#: disk-busy keeps to a part of the disk that disk-write does not touch.
BUSY_OFFSET = 64 * MIB


def boot_id() -> str:
    """Random, new at every start of the guest's kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def available() -> int:
    """Bytes that a program can have without hurting the system."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable")


def pattern(seed: bytes, index: int, size: int) -> bytes:
    """``size`` bytes that differ for every seed and index; size is a multiple of 4096."""
    page = hashlib.shake_128(seed + index.to_bytes(8, "little")).digest(PAGE)
    # No two pages are alike: a page that is mapped in another's place shows.
    return b"".join(
        (index * MIB + offset).to_bytes(8, "little") + page[8:] for offset in range(0, size, PAGE)
    )


class Witness:
    """The state that must survive."""

    def __init__(self, share: float) -> None:
        self.seed = os.urandom(32)
        self.boot = boot_id()
        self.blocks = max(1, int(available() * share) // MIB)
        self.memory = mmap.mmap(-1, self.blocks * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.count = 0
        self.beats = 0
        self.gap = 0.0
        self.busy = threading.Event()
        self.busy_rounds = 0
        self.busy_error = ""
        self._busy_thread: threading.Thread | None = None
        self._output = threading.Lock()

    def fill(self) -> str:
        """Write the pattern; the digest of what was meant to be written."""
        total = hashlib.blake2b(digest_size=16)
        for index in range(self.blocks):
            block = pattern(self.seed, index, MIB)
            self.memory[index * MIB : (index + 1) * MIB] = block
            total.update(block)
        return total.hexdigest()

    def digest(self) -> str:
        """The digest of what the memory holds now."""
        total = hashlib.blake2b(digest_size=16)
        with memoryview(self.memory) as view:
            for index in range(self.blocks):
                total.update(view[index * MIB : (index + 1) * MIB])
        return total.hexdigest()

    def say(self, message: dict[str, Any]) -> None:
        """One line on the serial port."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._output:
            while line:
                line = line[os.write(1, line) :]

    def beat(self) -> None:
        """Count, and say so now and then, for ever."""
        said = last = time.monotonic()
        while True:
            time.sleep(COUNT_S)
            now = time.monotonic()
            self.gap = max(self.gap, now - last)
            last = now
            self.count += 1
            if now - said >= BEAT_S:
                said = now
                self.beats += 1
                self.say(
                    {
                        "beat": self.beats,
                        "count": self.count,
                        "clock": round(now, 3),
                        "boot": self.boot,
                        "pid": os.getpid(),
                        "gap": round(self.gap, 3),
                    }
                )

    def answer(self, words: list[str]) -> dict[str, Any]:
        """Do what a command asks for."""
        command, arguments = words[0], words[2:]
        if command == "digest":
            return {"digest": self.digest(), "count": self.count, "bytes": self.blocks * MIB}
        if command == "disk-write":
            return {"digest": disk_write(int(arguments[0]), arguments[1].encode())}
        if command == "disk-verify":
            return {"digest": disk_verify(int(arguments[0]), arguments[1].encode())}
        if command == "disk-busy":
            return self.set_busy(arguments[0] == "on")
        if command == "spoil":
            self.memory[self.blocks * MIB // 2] ^= 1
            return {}
        return {"error": f"unknown command {command}"}

    def set_busy(self, busy: bool) -> dict[str, Any]:
        """Start or stop the traffic to the disk; what it found so far.

        Stopping waits for its last round: two loops would overwrite each other's blocks.
        """
        if busy and self._busy_thread is None:
            self.busy.set()
            self._busy_thread = threading.Thread(target=self._busy_loop, daemon=True)
            self._busy_thread.start()
        elif not busy and self._busy_thread is not None:
            self.busy.clear()
            self._busy_thread.join()
            self._busy_thread = None
        result: dict[str, Any] = {"rounds": self.busy_rounds}
        return {**result, "error": self.busy_error} if self.busy_error else result

    def _busy_loop(self) -> None:
        try:
            while self.busy.is_set():
                seed = str(self.busy_rounds).encode()
                disk_write(1, seed, BUSY_OFFSET)
                disk_verify(1, seed, BUSY_OFFSET)
                self.busy_rounds += 1
        except (OSError, ValueError) as error:
            self.busy_error = f"round {self.busy_rounds}: {error}"

    def listen(self) -> None:
        """Answer commands, for ever."""
        with open(0, closefd=False) as commands:
            for line in commands:
                words = line.split()
                if len(words) < 2:
                    continue
                try:
                    result = self.answer(words)
                except (OSError, ValueError, IndexError) as error:
                    result = {"error": f"{type(error).__name__}: {error}"}
                self.say({"reply": words[1], **result})


def disk_write(mib: int, seed: bytes, offset: int = 0) -> str:
    """Write a pattern to the disk and flush it; its digest."""
    total = hashlib.blake2b(digest_size=16)
    descriptor = os.open(DISK, os.O_WRONLY)
    try:
        for index in range(mib):
            block = pattern(seed, index, MIB)
            os.pwrite(descriptor, block, offset + index * MIB)
            total.update(block)
        os.fsync(descriptor)
        return total.hexdigest()
    finally:
        os.close(descriptor)


def disk_verify(mib: int, seed: bytes, offset: int = 0) -> str:
    """Read the pattern back from the disk itself; its digest.

    :raises ValueError: something else is there.
    """
    total = hashlib.blake2b(digest_size=16)
    descriptor = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            for index in range(mib):
                if os.preadv(descriptor, [buffer], offset + index * MIB) != MIB:
                    raise ValueError(f"short read of MiB {index}")
                if buffer[:] != pattern(seed, index, MIB):
                    raise ValueError(f"MiB {index} is not what was written")
                total.update(buffer)
        return total.hexdigest()
    finally:
        os.close(descriptor)


def make_raw(descriptor: int) -> None:
    """No echo, no editing: the lines are for programs."""
    attributes = termios.tcgetattr(descriptor)
    attributes[0] = termios.IGNBRK | termios.ICRNL
    attributes[1] = 0
    attributes[3] = termios.ICANON
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)


def main(make: Callable[[], Witness]) -> None:
    """Fill, say ready, then beat and answer."""
    make_raw(0)
    witness = make()
    intended = witness.fill()
    ready = {"ready": intended, "bytes": witness.blocks * MIB, "boot": witness.boot}
    witness.say({**ready, "pid": os.getpid()})
    threading.Thread(target=witness.listen, daemon=True).start()
    witness.beat()


if __name__ == "__main__":
    main(lambda: Witness(float(sys.argv[1])))
