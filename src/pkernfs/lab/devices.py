# SPDX-License-Identifier: GPL-2.0-only
"""Devices of a virtual host that work on through an update, and the proof that they did.

The witness is an e1000e behind a PCIe root port, driven from user space in the host; the lab
sends numbered frames to it all the time, also while no kernel runs.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.lab.frame_report import DeviceReport, SourceLog, analyse, between_kernels
from pkernfs.lab.frames import FrameSource, Wire
from pkernfs.lab.machine import Machine, poll
from pkernfs.vfio.landings import Kind, Landing

#: Where the package lies in a host.
ENV = {"PYTHONPATH": "/usr/lib/pkernfs"}
NIC = "0000:01:00.0"
#: At 2.5 GT/s the kernel does not wait for a link training that QEMU 7.2 never reports.
PORT = ("-device", "pcie-root-port,id=rp0,chassis=1,slot=1,x-speed=2_5,x-width=1")
#: What the kernels say about refused DMA and about what is wrong with a device.
EXPECTED = (r"DMAR: .*(fault|PASID|Fault)", r"pkernfs_dma: ")
RINGS = "/mnt/pkernfs/nic"
EDU_FILE = "/mnt/pkernfs/edu"
#: The device of the demonstration that is not preserved.
BYSTANDER = "0000:00:11.0"
RUN = 1
RUN_TRANSMITTED = 77
#: How long the update may take at the pace of frames until the ring is full, see Geometry.
INTERVAL_S = 0.005


def nic_arguments(wire: Wire) -> tuple[str, ...]:
    """QEMU's arguments for the network device at the end of ``wire``."""
    nic = ("-device", f"e1000e,netdev={wire.name},bus=rp0,mac=52:54:00:12:34:56")
    return (*PORT, *wire.netdev(), *nic)


def faults(host: Machine, bdf: str) -> list[str]:
    """The kernel's reports of refused DMA of a device (drivers/iommu/intel/dmar.c)."""
    name = re.escape(bdf.removeprefix("0000:"))
    pattern = re.compile(rf"DMAR:.*DMA (Read|Write).*{name}\]")
    return [line.text for line in host.console.lines if pattern.search(line.text)]


def listed(host: Machine) -> dict[str, dict[str, Any]]:
    """``pkernfs device list --json``, by name."""
    text = host.run(["pkernfs", "device", "list", "--json"]).check().stdout
    return {device["bdf"]: device for device in json.loads(text)["devices"]}


def _says(host: Machine, text: str, seen: int) -> bool:
    return any(text in line.text for line in list(host.console.lines)[seen:])


def start(host: Machine, name: str, command: str) -> None:
    """Start a program in the background; its output goes to a log of that name."""
    host.sh(
        f"PYTHONPATH=/usr/lib/pkernfs setsid {command} >/run/{name}.log 2>&1 </dev/null &"
    ).check()


def wait_log(host: Machine, name: str, word: str, timeout: float = 120) -> str:
    """Wait until a background program has said ``word``; all that it said.

    :raises PkernfsError: it failed, or said nothing like that in ``timeout`` seconds.
    """
    text = ""

    def said() -> bool:
        nonlocal text
        text = host.run(["cat", f"/run/{name}.log"]).stdout
        if "Error" in text or "receiver:" in text:
            raise PkernfsError(f"{name} in the host: {text.strip()[-1000:]}")
        return word in text

    poll(said, timeout, f"{name} did not say {word}")
    return text


def start_edu(host: Machine, *names: str, file: str = EDU_FILE) -> None:
    """Use edu devices through VFIO, until the host's kernel is replaced.

    :param file: what they do DMA to.
    """
    start(host, "edu", f"python3 -m pkernfs.vfio.edu_program start {file} {' '.join(names)}")
    wait_log(host, "edu", '"ready"')


def poke_edu(host: Machine, bdf: str, *modes: str) -> dict[str, Any]:
    """A DMA of an edu device that no driver has: ``landed``, and ``master`` before that.

    :param modes: ``all``: its bus master is switched on first.
    """
    command = ["python3", "-m", "pkernfs.vfio.edu_program", "poke", EDU_FILE, bdf, *modes]
    value = json.loads(host.run(command, env=ENV).check().stdout)
    assert isinstance(value, dict)
    return value


def start_receiver(host: Machine, verb: str, *words: str) -> str:
    """Start a receiver of numbered frames (``start`` or ``adopt``); the name of its log."""
    name = f"receiver-{time.monotonic_ns()}"
    command = f"python3 -m pkernfs.vfio.receiver {verb} --file {RINGS} {' '.join(words)}"
    start(host, name, command)
    return name


def receive(host: Machine, verb: str, *words: str) -> None:
    """Start a receiver and wait until it is ready."""
    wait_log(host, start_receiver(host, verb, *words), '"ready"')


def adopt_under_load(host: Machine, source: FrameSource, transmit: int) -> None:
    """Adopt the network device while frames come as fast as the emulation takes them.

    :param transmit: so many frames are sent out of the device afterwards.
    """
    host.sh("touch /run/hold").check()
    words = ("--transmit", str(transmit), "--run", str(RUN_TRANSMITTED), "--hold", "/run/hold")
    name = start_receiver(host, "adopt", *words)
    poll(lambda: bool(listed(host)[NIC]["taken"]), 120, "the receiver did not take the device")
    # No longer than needed: the ring holds some seconds of it, then the device takes no more.
    seen = len(host.console.lines)
    source.pace(0)
    host.sh("rm /run/hold").check()
    poll(lambda: _says(host, "is adopted", seen), 60, "the device was not adopted")
    source.pace(INTERVAL_S)
    wait_log(host, name, '"ready"')


def forget_frames(host: Machine) -> None:
    """Remove what the receivers wrote, once they have ended: a new one begins anew."""
    host.sh(f"rm -f {RINGS} {RINGS}.*").check()


def stop_receiver(host: Machine) -> None:
    """End the receiver, and with it the device's DMA."""
    host.sh("pkill -TERM -f '[p]kernfs.vfio.receiver'").check()
    poll(
        lambda: host.sh("pgrep -f '[p]kernfs.vfio.receiver'").status != 0,
        60,
        "the receiver did not end",
    )


def landings(host: Machine) -> list[Landing]:
    """What the receivers found in memory."""
    command = ["python3", "-m", "pkernfs.vfio.receiver", "show", "--file", RINGS]
    text = host.run(command, env=ENV).check().stdout
    return [Landing.from_json(value) for value in json.loads(text)]


def wait_landed(host: Machine, last: int) -> list[Landing]:
    """What the receivers found in memory, once the frame of number ``last`` is among it.

    :raises PkernfsError: it did not land within minutes.
    """
    found: list[Landing] = []

    def there() -> bool:
        found[:] = landings(host)
        return any(entry.last >= last for entry in found if entry.kind is Kind.FRAMES)

    poll(there, 240, f"frame {last} did not land")
    return found


def report(host: Machine, log: SourceLog) -> DeviceReport:
    """What became of the frames, once the last one has landed."""
    found = wait_landed(host, log.sent[-1].sequence)
    device = listed(host)[NIC]
    frames = analyse(log, found, RUN, between_kernels(host.console.lines))
    return DeviceReport(NIC, "e1000e", frames, len(faults(host, NIC)), round(device["switch_us"]))


@dataclass
class Proof:
    """A network device under frames, from before an update until after it."""

    wire: Wire
    log: Path
    transmit: int = 20

    @contextlib.contextmanager
    def frames(self, host: Machine) -> Iterator[FrameSource]:
        """Frames arrive within the block; the host's driver of the device runs already."""
        receive(host, "start")
        host.run(["pkernfs", "device", "preserve", NIC]).check()
        with FrameSource(self.wire, self.log, run=RUN, interval_s=INTERVAL_S) as source:
            yield source

    def finish(self, host: Machine, source: FrameSource) -> tuple[DeviceReport, list[str]]:
        """Adopt the device in the next kernel; the report, and what is wrong in it."""
        adopt_under_load(host, source, self.transmit)
        time.sleep(1)
        log = source.stop()
        entry = report(host, log)
        returned = [frame for frame in log.returned if frame.run == RUN_TRANSMITTED]
        stop_receiver(host)
        good = {
            "frames are missing, doubled, late or damaged": entry.frames.whole,
            "the IOMMU refused DMA of the device": not entry.faults,
            "not every frame came out of the device after the adoption": len(returned)
            == self.transmit
            and all(frame.intact for frame in returned),
        }
        return entry, [text for text, fine in good.items() if not fine]


def bystander_arguments() -> tuple[str, ...]:
    """QEMU's arguments for the device that is in use and not preserved."""
    return ("-device", f"edu,addr=0x{BYSTANDER[8:10]},dma_mask=0xffffffff")


def bystander_report(host: Machine) -> dict[str, Any]:
    """After the update: does DMA of the device that was not preserved reach memory?"""
    poked = poke_edu(host, BYSTANDER, "all")
    poll(lambda: bool(faults(host, BYSTANDER)), 20, "no fault of the device that is cut off")
    return {
        "bdf": BYSTANDER,
        "model": "edu",
        "bus_master_after": poked["master"],
        "dma_landed": poked["landed"],
        "faults": len(faults(host, BYSTANDER)),
    }
