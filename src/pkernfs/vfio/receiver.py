# SPDX-License-Identifier: GPL-2.0-only
"""A program that receives numbered frames with the e1000e driver, across kernels.

``python3 -m pkernfs.vfio.receiver start|adopt|show``. Rings, buffers and log lie in files
(of pkernfs); ``adopt`` goes on where the last receiver was, without touching the device.
It prints a line of JSON when it is ready and one when it ends (SIGTERM, SIGINT, --seconds).

End it only when the device may stop: closing a VFIO device stops its DMA. Before a live
update it is stopped with SIGSTOP, or just left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

from pkernfs.errors import PkernfsError
from pkernfs.vfio import e1000e_regs
from pkernfs.vfio.bind import bind, find, parse_bdf
from pkernfs.vfio.container import Container
from pkernfs.vfio.device import Device
from pkernfs.vfio.e1000e import E1000e
from pkernfs.vfio.e1000e_ring import Geometry, RingMemory
from pkernfs.vfio.frame import build, parse
from pkernfs.vfio.group import Group
from pkernfs.vfio.landings import LandingLog
from pkernfs.vfio.memory import Memory

#: Where the device sees the rings. Below the interrupt range at 0xfee00000, above 1 MiB.
IOVA: Final = 0x1000_0000
#: Bytes of the log: one block of pkernfs.
LOG_SIZE: Final = 2 << 20
BROADCAST: Final = b"\xff" * 6
_IDLE_S: Final = 0.001


def log_path(rings: Path) -> Path:
    """Where the log of a ring file lies."""
    return rings.with_name(rings.name + ".log")


def receive_until(nic: E1000e, log: LandingLog, end: float | None, stop: list[int]) -> int:
    """Receive and log frames until the time ``end`` (monotonic, s) or until ``stop`` is set.

    :returns: frames that were recorded.
    """
    landed = 0
    while not stop and (end is None or time.monotonic() < end):
        frames = nic.poll()
        for received in frames:
            frame = parse(received.data)
            if frame is not None:
                landed += log.add(frame, received.slot)
        nic.give_back(frames)
        if not frames:
            time.sleep(_IDLE_S)
    return landed


def transmit(nic: E1000e, count: int, run: int) -> None:
    """Send ``count`` numbered frames to everyone."""
    for sequence in range(count):
        nic.transmit(build(BROADCAST, nic.mac, run, sequence, time.monotonic_ns()))


@contextlib.contextmanager
def opened(bdf: str, memory: Memory, iova: int, hold: Path | None = None) -> Iterator[Device]:
    """The device, open, with ``memory`` mapped before it is fetched (as QEMU does).

    :param hold: it is not fetched before this file is gone.
    """
    bind(bdf)
    with Container() as container, Group.of(bdf) as group:
        group.join(container)
        with container.map(memory, iova):
            while hold is not None and hold.exists():
                time.sleep(0.01)
            with group.open_device(bdf) as device:
                yield device


@contextlib.contextmanager
def driver(arguments: argparse.Namespace) -> Iterator[tuple[E1000e, LandingLog]]:
    """The running device and its log, new or adopted."""
    rings, adopting = arguments.file, arguments.verb == "adopt"
    geometry = Geometry(arguments.descriptors, arguments.buffer)
    with (
        Memory.of_file(rings) if adopting else Memory.create_file(rings, geometry.size) as memory,
        Memory.of_file(log_path(rings))
        if adopting
        else Memory.create_file(log_path(rings), LOG_SIZE) as log_memory,
    ):
        if adopting:
            ring, log = RingMemory.read(memory.view), LandingLog(log_memory.view)
        else:
            ring = RingMemory.format(memory.view, arguments.iova, geometry)
            log = LandingLog.format(log_memory.view, geometry.receive)
        with (
            opened(arguments.bdf, memory, ring.iova, arguments.hold) as device,
            device.map_bar(0) as bar,
        ):
            device.config.enable()
            nic = E1000e.adopt(bar, ring) if adopting else E1000e.start(bar, ring)
            yield nic, log


def _say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def run(arguments: argparse.Namespace) -> None:
    """``start`` and ``adopt``."""
    stop: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    with driver(arguments) as (nic, log):
        state = nic.ring_state()
        if arguments.verb == "adopt":
            log.begin(state.waiting, state.head)
        _say("ready", bdf=arguments.bdf, mac=nic.mac.hex(":"), ring=asdict(state))
        transmit(nic, arguments.transmit, arguments.run)
        end = None if arguments.seconds is None else time.monotonic() + arguments.seconds
        landed = receive_until(nic, log, end, stop)
        _say("end", landed=landed, missed=nic.missed(), ring=asdict(nic.ring_state()))


def show(arguments: argparse.Namespace) -> None:
    """``show``: the log, as JSON."""
    with Memory.of_file(log_path(arguments.file)) as memory:
        entries = LandingLog(memory.view).entries()
    print(json.dumps([entry.to_json() for entry in entries]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verb", choices=("start", "adopt", "show"))
    parser.add_argument("--file", type=Path, required=True, help="file of rings and buffers")
    parser.add_argument("--bdf", type=parse_bdf, help="network device (default: the only one)")
    parser.add_argument("--iova", type=lambda text: int(text, 0), default=IOVA)
    parser.add_argument("--descriptors", type=int, default=Geometry.receive)
    parser.add_argument("--buffer", type=int, default=Geometry.buffer, help="bytes of a buffer")
    parser.add_argument("--hold", type=Path, help="fetch the device once this file is gone")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--transmit", type=int, default=0, help="send so many frames first")
    parser.add_argument("--run", type=int, default=1, help="run number of frames sent")
    return parser


def only_device() -> str:
    """The only 82574 of this machine.

    :raises PkernfsError: there is none, or more than one.
    """
    found = find(e1000e_regs.VENDOR, e1000e_regs.DEVICE)
    if len(found) != 1:
        raise PkernfsError(f"there are {len(found)} network devices of type 82574", "give --bdf")
    return found[0]


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(words)
    try:
        if arguments.verb == "show":
            show(arguments)
        else:
            arguments.bdf = arguments.bdf or only_device()
            run(arguments)
    except PkernfsError as error:
        print(f"receiver: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
