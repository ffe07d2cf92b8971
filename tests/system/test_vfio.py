# SPDX-License-Identifier: GPL-2.0-only
"""The VFIO library and its drivers on emulated devices, within one kernel.

What a stock kernel does with the device is all there is here: it is the ground that the
hand-over to the next kernel stands on.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkernfs.lab import devices
from pkernfs.lab.frame_report import Phase, analyse
from pkernfs.lab.frames import FrameSource, Wire
from pkernfs.lab.image import DEBUG
from pkernfs.lab.machine import HostConfig, Machine, poll
from pkernfs.vfio.e1000e_regs import INT_RXT0
from pkernfs.vfio.landings import Landing
from tests.kernels import KERNELS

pytestmark = pytest.mark.system
#: Where the package lies in a host.
ENV = {"PYTHONPATH": "/usr/lib/pkernfs"}
SCRIPTS = Path(__file__).parent / "scripts"
#: The host's share of a report that a DMA was refused (drivers/iommu/intel/dmar.c).
FAULT = r"DMAR: .*(fault|PASID|Fault)"
EDU = ("-device", "edu,addr=0x10,dma_mask=0xffffffff")


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    return Wire(tmp_path)


@pytest.fixture(params=KERNELS)
def host(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Machine]:
    """A host with an e1000e behind a root port, and an edu device, both behind the IOMMU."""
    extra = (*devices.nic_arguments(wire), *EDU)
    with Machine(HostConfig(kernel=request.param, extra=extra, allowed=(FAULT,))) as machine:
        yield machine


def _faults(host: Machine) -> list[str]:
    return [
        line.text for line in host.console.lines if re.search(r"DMAR:.*DMA (Read|Write)", line.text)
    ]


def test_edu(host: Machine) -> None:
    script = host.upload(SCRIPTS / "vfio_edu.py")
    output = host.run(["python3", script, "/mnt/pkernfs/edu"], env=ENV).check().stdout
    result: dict[str, Any] = json.loads(output)
    interrupts = {"fired": 1, "causes": 0x100, "then": 0}
    assert result == {
        "ids": [0x1234, 0x11E8],
        "msi": True,
        "resettable": False,
        "alive": True,
        "factorial": 479001600,
        "config_by_pread": 0x010000ED,
        "copied": True,
        "intx_interrupt": interrupts,
        "msi_interrupt": interrupts,
        "unmapped": 2 << 20,
        "refused": True,
        "copied_again": True,
        "iova_usable": True,
        "unmap_all": True,
    }
    faults = _faults(host)
    assert faults, "the refused DMA left no fault"
    assert all("200000" in line for line in faults)


def test_what_a_device_reaches_is_not_handed_out(host: Machine) -> None:
    """Two blocks leave their file while the device still has them in its tables."""
    script = host.upload(SCRIPTS / "vfio_limbo.py")
    output = host.run(["python3", script, "/mnt/pkernfs"], env=ENV).check().stdout
    assert json.loads(output) == {
        "before": 0,
        "truncated": 2,
        "truncated_written": False,
        "statvfs": [4, 2],
        "other_process": 0,
        "unloaded": False,
        "mounted": True,
        "remounted": 2,
        "remounted_written": False,
        "closed": 0,
        # VFIO is no module of the debug kernel.
        "after_reload": [host.config.kernel != DEBUG, 2],
        "room": 0,
    }
    assert not _faults(host), "the device was cut off: nothing was shown"


class _Script:
    """A script in the host whose lines are read while it runs."""

    def __init__(self, host: Machine, argv: list[str]) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self._text = ""
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(host, argv))
        self._thread.start()

    def _run(self, host: Machine, argv: list[str]) -> None:
        try:
            host.run(argv, env=ENV, timeout=300, sink=self._sink).check()
        except BaseException as error:
            self._failure = error

    def _sink(self, stream: int, data: bytes) -> None:
        if stream != 1:
            return
        *lines, self._text = (self._text + data.decode()).split("\n")
        for line in lines:
            value = json.loads(line)
            self.events[value["event"]] = value

    def wait(self, event: str) -> dict[str, Any]:
        """Wait for a line; the script's failure if it ends without."""

        def there() -> bool:
            return event in self.events or not self._thread.is_alive()

        poll(there, 240, f"the script said no {event}")
        if event not in self.events and self._failure is not None:
            raise self._failure
        return self.events[event]

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure


def test_e1000e_adopted_within_one_kernel(host: Machine, wire: Wire, tmp_path: Path) -> None:
    argv = ["python3", host.upload(SCRIPTS / "vfio_adopt.py"), "/mnt/pkernfs/nic", "6", "20"]
    marks: dict[str, int] = {}
    script = _Script(host, argv)
    try:
        script.wait("started")
        with FrameSource(wire, tmp_path / "frames", run=1) as source:
            for event in ("left", "adopted", "interrupted"):
                script.wait(event)
                marks[event] = time.monotonic_ns()
            log = source.stop()
        landings = [Landing.from_json(value) for value in script.wait("log")["entries"]]
    finally:
        script.join()
    undriven = Phase("no driver", marks["left"], marks["adopted"])
    report = analyse(log, landings, 1, [undriven])
    assert report.whole, report
    assert report.frames_sent > 1000
    # The device went on while nobody drove it, and the second driver found what it had put.
    assert report.phases[0].landed_within > 400
    assert script.events["adopted"]["ring"]["waiting"] > 400
    interrupted = script.events["interrupted"]
    assert interrupted["msi"]["fired"] >= 1
    assert interrupted["msi"]["causes"] & INT_RXT0
    assert interrupted["msix"][0] >= 1
    assert interrupted["msix"][1:] == [0, 0, 0, 0]
    assert script.events["end"]["missed"] == 0
    returned = [frame for frame in log.returned if frame.run == 77]
    assert [frame.sequence for frame in returned] == list(range(20))
    assert all(frame.intact for frame in returned)
    # A reset that is asked for is one, and a driver does not take the device for running.
    assert script.events["reset"]["receiving"] is False
    assert "was reset" in script.events["reset"]["adoption"]
    assert not _faults(host)
