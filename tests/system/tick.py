# SPDX-License-Identifier: GPL-2.0-only
"""A guest that is up in a second: a boot sector that counts timer ticks to a serial line.

For tests of what happens around a guest. What happens in one is the witness's business.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pkernfs.lab.machine import Machine

# 16-bit code at 0x7c00, with the firmware's timer interrupt at 18.2 Hz:
#       xor %ax,%ax; mov %ax,%ds; mov %ax,%ss; mov $0x7c00,%sp
#       movl $0,0x8000; sti
# loop: hlt; incl 0x8000; testb $(every-1),0x8000; jnz loop
#       mov 0x8000,%ebx; mov $8,%cx
# next: rol $4,%ebx; mov %bl,%al; and $15,%al; cmp $10,%al; jb 1f; add $39,%al
# 1:    add $48,%al; mov $0x3f8,%dx; out %al,%dx; dec %cx; jnz next
#       mov $10,%al; out %al,%dx; jmp loop
_CODE = (
    "31c08ed88ed0bc007c66c706008000000000fb"
    "f466ff060080f6060080{mask:02x}75f3"
    "668b1e0080b90800"
    "66c1c30488d8240f3c0a72020427"
    "0430baf803ee4975e9"
    "b00aeeebcf"
)


def image(every: int = 1) -> bytes:
    """The disk: the sector with its mark, and room, for firmware that wants a whole track.

    :param every: it prints a line at so many ticks; a power of two up to 128.
    """
    code = bytes.fromhex(_CODE.format(mask=every - 1))
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)


#: The one that prints each tick.
IMAGE = image()

#: Where the guests' disks and logs are, unless a test says otherwise.
DISKS = "/mnt/scratch"


@dataclass(frozen=True)
class Tick:
    """A counting guest in a lab host."""

    host: Machine
    name: str
    store: str = "/mnt/pkernfs"
    disks: str = DISKS

    @property
    def directory(self) -> str:
        """Its files in the store."""
        return f"{self.store}/vms/{self.name}"

    def count(self) -> int:
        """How far it has counted by now; 0 before it began."""
        text = self.host.sh(f"tail -c 200 {self.disks}/{self.name}.log").check().stdout
        lines = [line for line in text.splitlines()[1:-1] if len(line) == 8]
        return int(lines[-1], 16) if lines else 0

    def wait_count(self, least: int, timeout: float = 60) -> int:
        """Wait until it has counted so far.

        :param timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        while (count := self.count()) < least:
            assert time.monotonic() < deadline, f"{self.name} stays at {count}, not {least}"
            time.sleep(0.2)
        return count

    def counts_on(self) -> None:
        """Make sure that it runs."""
        self.wait_count(self.count() + 3)


def start(
    host: Machine,
    name: str,
    ram: str = "32M",
    options: Sequence[str] = (),
    store: str = "/mnt/pkernfs",
    arguments: Sequence[str] = (),
    program: Sequence[str] = ("pkernfs",),
    disks: str = DISKS,
) -> Tick:
    """Start a counting guest and wait until it counts.

    :param options: more of ``pkernfs vm start``.
    :param store: where its files are then.
    :param arguments: more of QEMU's.
    :param program: what stands for ``pkernfs``.
    :param disks: directory of the host for its disk and its log.
    """
    disk = f"{disks}/tick.img"
    script = f"cat >{disk} && truncate -s {len(IMAGE)} {disk} && : >{disks}/{name}.log"
    host.run(["sh", "-c", script], stdin=IMAGE.rstrip(b"\0")).check()
    own = [
        *("-cpu", "qemu64"),
        *("-drive", f"file={disk},format=raw,if=ide,read-only=off,file.locking=off"),
        *("-chardev", f"file,id=log,path={disks}/{name}.log,append=on"),
        *("-serial", "chardev:log"),
    ]
    command = [*program, "vm", "start", name, "--ram", ram, *options]
    host.run([*command, "--", *own, *arguments]).check()
    guest = Tick(host, name, store, disks)
    guest.wait_count(3)
    return guest
