# SPDX-License-Identifier: GPL-2.0-only
"""A network card assigned by VFIO, under numbered frames, while the host's kernel is replaced.

The same program drives the card for both: with pkernfs it is preserved and adopted; a stock
kernel has no such thing, so the program starts the card anew in the next kernel.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.results import Values
from bench.stage import Stage
from pkernfs.errors import PkernfsError
from pkernfs.lab import demo, devices
from pkernfs.lab.frame_report import SourceLog
from pkernfs.lab.frames import FrameSource, Wire
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.vfio.landings import Kind, Landing

_KERNEL = "7.3"


@contextmanager
def _host(stage: Stage) -> Iterator[tuple[Machine, FrameSource]]:
    """A host of its own, with a card that receives frames."""
    with tempfile.TemporaryDirectory(prefix="pkernfs-") as name:
        place = Path(name)
        wire = Wire(place)
        extra = devices.nic_arguments(wire)
        with Machine(HostConfig(_KERNEL, cpus=1, extra=extra, allowed=devices.EXPECTED)) as host:
            devices.receive(host, "start")
            log, interval = place / "frames", devices.INTERVAL_S
            source = FrameSource(wire, log, run=devices.RUN, interval_s=interval)
            with source:
                yield host, source


def _target(host: Machine) -> str:
    return f"/boot/vmlinuz-{host.version}"


def preserved(stage: Stage) -> Values:
    """With pkernfs."""
    with _host(stage) as (host, source):
        host.run(["pkernfs", "device", "preserve", devices.NIC]).check()
        demo.update(host, ["--kernel", _target(host)])
        devices.receive(host, "adopt")
        log = source.stop()
        return _values(log, devices.wait_landed(host, log.sent[-1].sequence))


def stock(stage: Stage) -> Values:
    """With kexec alone."""
    with _host(stage) as (host, source):
        initrd = f"/boot/pkernfs-lab-initrd-{host.version}"
        load = f"kexec -s -l {_target(host)} --initrd={initrd} --reuse-cmdline"
        result = host.sh(f"{load} && kexec -e")
        if result.status is not None:
            result.check()
            raise PkernfsError("the host's kernel was not replaced")
        host.wait_reboot()
        first = devices.landings(host)
        host.sh(f"rm -f {devices.RINGS}*").check()
        devices.receive(host, "start")
        host.sh("sleep 1").check()
        log = source.stop()
        return _values(log, [*first, *devices.wait_landed(host, log.sent[-1].sequence)])


def _values(log: SourceLog, found: Sequence[Landing]) -> Values:
    """Frames sent and lost, and the longest time of which no frame landed, seconds."""
    landed: set[int] = set()
    for entry in found:
        if entry.kind is Kind.FRAMES and entry.run == devices.RUN:
            landed.update(range(entry.first, entry.last + 1))
    times = [frame.sent_ns for frame in log.sent if frame.sequence in landed]
    if len(times) < 2:
        raise PkernfsError("no frame landed")
    silence = max(later - before for before, later in itertools.pairwise(times)) / 1e9
    lost = len(log.sent) - len(times)
    return {"sent": float(len(log.sent)), "lost": float(lost), "silence": silence}
