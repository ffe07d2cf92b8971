# SPDX-License-Identifier: GPL-2.0-only
"""A machine made of files, a store in a directory, and QEMU without a machine in it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Range, Region
from pkernfs.host.stores import stores
from pkernfs.vmm import guests, process
from pkernfs.vmm.config import Guest, Places, all_guests

FAKE_QEMU = Path(__file__).with_name("fake_qemu.py")
REGION = "1G!0x100000000"
RAM = 4 << 20


def bzimage(release: str, *, signed: bool = True) -> bytes:
    """The smallest file that passes for a kernel (boot.rst: header at 0x1f1)."""
    image = bytearray(0x1000)
    image[0x3C] = 0x40
    image[:2], image[0x40:0x44], image[0x58:0x5A] = b"MZ", b"PE\0\0", b"\x0b\x02"
    image[0xEC] = signed  # size of the certificate table
    image[0x1F1] = 3
    image[0x1F4:0x1F8] = ((0x1000 - 4 * 512) // 16).to_bytes(4, "little")
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x020F).to_bytes(2, "little")
    image[0x20E:0x210] = (0x400).to_bytes(2, "little")
    image[0x236:0x238] = (1).to_bytes(2, "little")
    text = f"{release} (builder@example) #1 SMP".encode() + b"\0"
    image[0x600 : 0x600 + len(text)] = text
    return bytes(image)


@dataclass
class FakeHost:
    """A host that can be updated, as far as its files go."""

    root: Path
    places: Places
    misbehaviour: Path
    machine: Machine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = Machine(self.root)

    def put(self, path: str, text: str | bytes) -> Path:
        """Write a file of the host."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def boot(self, release: str, boot_id: str, line: str) -> None:
        """Be freshly booted."""
        self.put("proc/sys/kernel/osrelease", release + "\n")
        self.put("proc/sys/kernel/random/boot_id", boot_id + "\n")
        self.put("proc/cmdline", line + "\n")

    def install(self, release: str) -> None:
        """Have a kernel under /boot, and the module for it."""
        self.put(f"boot/vmlinuz-{release}", bzimage(release))
        self.put(f"boot/initrd.img-{release}", b"initrd")
        self.put(f"lib/modules/{release}/updates/dkms/pkernfs.ko", b"\x7fELF")

    def add_region(self, name: str, span: Range) -> Path:
        """Have one more region, with an empty store that is mounted where pkernfs looks for it."""
        region = Region(name, span)
        parameter = self.root / "sys/module/pkernfs/parameters/region"
        parameter.write_text(f"{parameter.read_text().strip()},{region}\n")
        with (self.root / "proc/iomem").open("a") as iomem:
            for what in ("Reserved", "pkernfs"):
                iomem.write(f"{span.start:x}-{span.end - 1:x} : {what}\n")
        point = stores(self.machine, self.places.store)[-1].point
        (point / "vms").mkdir(parents=True)
        with (self.root / "proc/self/mountinfo").open("a") as mounts:
            mounts.write(f"23 1 0:21 / {point} rw - pkernfs {name} rw\n")
        self.places = replace(self.places, others=(*self.places.others, point))
        return point

    def misbehave(self, how: str) -> None:
        """Have every QEMU do something wrong from now on; see fake_qemu.py."""
        self.misbehaviour.write_text(how)

    def start(self, name: str, *arguments: str) -> Guest:
        """Start a guest."""
        guests.start(self.places, name, RAM, arguments, machine=self.machine)
        return Guest(name, self.places)

    def states(self) -> dict[str, str]:
        """What every guest is doing."""
        return {guest.name: guest.state for guest in guests.list_guests(self.places, self.machine)}

    def kill_all(self) -> None:
        """End every QEMU of this host, the way a kexec does: none is left when it is done."""
        children = [process.running(guest) for guest in all_guests(self.places)]
        for child in filter(None, children):
            os.kill(child.pid, signal.SIGKILL)
        for child in filter(None, children):
            while child.alive():
                time.sleep(0.005)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    """A host on kernel 6.12.1 with 7.3.4 installed, QEMU, and an empty store."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    # Started many times: without what site.py does, that is quick.
    qemu = binaries / "qemu-system-x86_64"
    qemu.write_text(f"#!{sys.executable} -ISs\n{FAKE_QEMU.read_text()}")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_QEMU", str(tmp_path / "misbehaviour"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    store = tmp_path / "store"
    (store / "vms").mkdir(parents=True)
    fake = FakeHost(tmp_path / "root", Places(store, tmp_path / "run"), tmp_path / "misbehaviour")
    fake.boot("6.12.1", "boot-one", f"BOOT_IMAGE=/v quiet memmap=1G$4G pkernfs.region={REGION}")
    fake.put("sys/module/pkernfs/parameters/region", REGION)
    fake.put("proc/iomem", "100000000-13fffffff : Reserved\n  100000000-13fffffff : pkernfs\n")
    fake.put("proc/self/mountinfo", f"22 1 0:20 / {store} rw - pkernfs none rw\n")
    fake.put("sys/kernel/kexec_loaded", "0\n")
    fake.put("dev/kvm", "")
    fake.put("etc/rc.local", "#!/bin/sh\npkernfs resume\n")
    for release in ("6.12.1", "7.3.4"):
        fake.install(release)
    yield fake
    fake.kill_all()
