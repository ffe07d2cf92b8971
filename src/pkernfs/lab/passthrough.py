# SPDX-License-Identifier: GPL-2.0-only
"""A guest with a network card of its host, from before an update until after it.

The lab sends numbered frames to the card, and talks TCP with the guest over it. What came
of both is asked of the guest itself: its own driver runs the card, and its log, its counters
and its interrupts show what that driver noticed.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.lab import devices, guest
from pkernfs.lab.frame_report import BETWEEN_KERNELS, Phase, SourceLog, between_kernels
from pkernfs.lab.frames import FrameSource, Wire
from pkernfs.lab.machine import HostConfig, Machine, poll
from pkernfs.lab.witness import Witness

NIC = devices.NIC
#: Frames that e1000e's receive ring holds at most; its driver takes 256 by itself.
LARGEST_RING = 4096
#: At this pace the largest ring is full after 80 seconds.
INTERVAL_S = 0.02
#: Where the guest listens (pkernfs.lab.inside.nic_witness).
_GUEST = ("10.0.2.15", 5000)
#: What any guest says after a pause: its clock has jumped.
_CLOCK = re.compile(r"clocksource|^hrtimer: interrupt took|sched_clock|watchdog check", re.I)
_ERRORS = re.compile(r"error|dropped|fifo|missed|collisions")


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


@dataclass(frozen=True)
class Card:
    """The host's card and what is at the other end of it.

    :ivar wire: where frames come from.
    :ivar port: TCP port of this machine that leads to the guest; 0 for frames only.
    """

    wire: Wire
    port: int = 0

    def arguments(self) -> tuple[str, ...]:
        """For the QEMU of the host."""
        if not self.port:
            return devices.nic_arguments(self.wire)
        # A hub: to the wire, to QEMU's own TCP/IP stack, to the card.
        address, port = _GUEST
        forward = f"hostfwd=tcp:127.0.0.1:{self.port}-{address}:{port}"
        return (
            *devices.PORT,
            *self.wire.netdev(),
            *("-netdev", f"user,id=stack,{forward}"),
            *("-netdev", f"hubport,id=hub0,hubid=0,netdev={self.wire.name}"),
            *("-netdev", "hubport,id=hub1,hubid=0,netdev=stack"),
            *("-netdev", "hubport,id=hub2,hubid=0"),
            *("-device", "e1000e,netdev=hub2,bus=rp0,mac=52:54:00:12:34:56"),
        )

    def host(self, kernel: str, *append: str) -> HostConfig:
        """A virtual host that has the card."""
        return HostConfig(
            kernel=kernel,
            kvm=True,
            extra=self.arguments(),
            allowed=devices.EXPECTED,
            append=append,
        )


def start_guest(
    host: Machine,
    name: str = "card",
    port: int = 0,
    ring: int = LARGEST_RING,
    ram: str = "256M",
    *,
    intx: bool = False,
) -> Witness:
    """Start the guest with the card and wait until its driver has a link.

    :param port: which of the host's serial ports the guest talks on.
    :param ring: descriptors of its receive ring; 0 for the driver's own number.
    :param intx: its driver uses INTx instead of MSI-X.
    """
    config = guest.GuestConfig(
        name=name,
        ram=ram,
        port=port,
        program="nic",
        words=f"share=0.5 ring={ring} intmode={0 if intx else 2}",
        devices=(NIC,),
    )
    witness = guest.start(host, config)
    witness.wait_ready()
    poll(lambda: bool(witness.ask("nic")["carrier"]), 60, "the guest's card has no link")
    vectors = len(witness.ask("nic")["interrupts"])
    if (vectors < 2) != intx:
        raise PkernfsError(f"the guest's card has {vectors} interrupt vectors")
    return witness


class Conversation:
    """One TCP connection to the guest: what is sent has to come back, byte by byte."""

    def __init__(self, port: int) -> None:
        self.bytes = 0
        self.problem = ""
        self._end = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        try:
            while not self._stop.is_set():
                sent = self.bytes.to_bytes(8, "little") * 128
                self._end.sendall(sent)
                back = b""
                while len(back) < len(sent):
                    part = self._end.recv(len(sent) - len(back))
                    if not part:
                        raise ConnectionError("the guest hung up")
                    back += part
                if back != sent:
                    raise ConnectionError(f"something else came back at byte {self.bytes}")
                self.bytes += len(sent)
                time.sleep(0.05)
        except OSError as error:
            self.problem = str(error)

    def wait_more(self, timeout: float = 120) -> None:
        """Wait until something came back that was sent from now on.

        :raises PkernfsError: nothing did.
        """
        # One message may be under way already.
        wanted = self.bytes + 2 * 1024
        poll(lambda: self.bytes >= wanted or bool(self.problem), timeout, "TCP does not go on")
        if self.problem:
            raise PkernfsError(f"TCP to the guest: {self.problem}")

    def stop(self) -> None:
        """End it from this side."""
        self._stop.set()
        self._thread.join(timeout=60)
        self._end.close()


@dataclass(frozen=True)
class View:
    """What the guest says of its card.

    :ivar card: name, place, carrier, counters, interrupts, ring.
    :ivar log_end: sequence number of the last line of its kernel log.
    """

    card: dict[str, Any]
    log_end: int

    @classmethod
    def of(cls, witness: Witness) -> View:
        """Ask a guest."""
        return cls(witness.ask("nic"), int(witness.ask("log 0")["last"]))


@dataclass(frozen=True)
class CardReport:
    """A passed-through card in report.json.

    :ivar frames_received: by the guest's application.
    :ivar frames_received_without_kernel: of these, sent while no kernel ran.
    :ivar log: what the guest's kernel said meanwhile, but for its clock.
    :ivar interrupts: by name, how many there were since the update.
    :ivar tcp_bytes: that came back over the connection; None without one.
    """

    bdf: str
    model: str
    guest: str
    frames_sent: int
    frames_received: int
    frames_received_without_kernel: int
    damaged: int
    ranges: list[list[int]]
    log: list[str]
    interrupts: dict[str, int]
    tcp_bytes: int | None
    faults: int
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The entry of ``devices[]``."""
        return asdict(self)


def blackouts(witness: Witness) -> list[tuple[float, float]]:
    """Times between heartbeats: the earlier and the later, seconds of the lab's clock."""
    times = [beat.at for beat in witness.beats()]
    return list(itertools.pairwise(times))


def numbers(ranges: list[list[int]], run: int) -> set[int]:
    """The numbers of a source's frames among what a guest received."""
    return {
        number
        for source, first, last in ranges
        if source == run
        for number in range(first, last + 1)
    }


def without_kernel(log: SourceLog, received: set[int], phases: list[Phase]) -> int:
    """Frames that were sent while no kernel ran, and received."""
    stretches = [phase for phase in phases if phase.name == BETWEEN_KERNELS]
    return sum(
        frame.sequence in received
        and any(phase.start_ns <= frame.sent_ns < phase.end_ns for phase in stretches)
        for frame in log.sent
    )


def noticed(before: View, after: View, lines: list[str]) -> list[str]:
    """What the guest's driver noticed of the update; empty when nothing.

    :param lines: its kernel log between the two.
    """
    old, new = before.card, after.card
    problems = [f"the guest's log: {line}" for line in lines if _CLOCK.search(line) is None]
    problems += [
        f"the card's {name} was {old[name]} and is {new[name]}"
        for name in ("name", "pci", "ifindex", "carrier", "carrier_changes", "ring")
        if old[name] != new[name]
    ]
    counters = {*old["counters"], *new["counters"]}
    for name in sorted(counters):
        was, now = old["counters"].get(name, 0), new["counters"].get(name, 0)
        if now < was or (now > was and _ERRORS.search(name)):
            problems.append(f"counter {name} was {was} and is {now}")
    for name, count in old["interrupts"].items():
        # Each vector in use is raised once, so even an idle one has moved.
        if new["interrupts"].get(name, 0) <= count:
            problems.append(f"interrupt {name} is dead: {count}")
    return problems


class Proof:
    """A guest's card under frames and TCP; asked for a report at the end."""

    def __init__(self, card: Card, place: Path, run: int = 1) -> None:
        self.card = card
        self._log = place / "card-frames"
        self._run = run

    @contextlib.contextmanager
    def traffic(
        self, witness: Witness, interval_s: float = INTERVAL_S, *, lossy: bool = False
    ) -> Iterator[None]:
        """Frames and TCP within the block.

        :param lossy: see :class:`pkernfs.lab.frames.Sender`.
        """
        self._witness = witness
        with contextlib.ExitStack() as stack:
            self.talk = None
            if self.card.port:
                self.talk = Conversation(self.card.port)
                stack.callback(self.talk.stop)
                self.talk.wait_more()
            self.before = View.of(witness)
            self.source = stack.enter_context(
                FrameSource(
                    self.card.wire, self._log, run=self._run, interval_s=interval_s, lossy=lossy
                )
            )
            time.sleep(1)
            yield

    def finish(self, host: Machine, name: str) -> CardReport:
        """Stop the traffic; what became of it, and what the guest noticed."""
        witness = self._witness
        if self.talk is not None:
            self.talk.wait_more()
        time.sleep(1)
        self.log = log = self.source.stop()
        last = log.sent[-1].sequence
        found = self._wait_received(last)
        lines = witness.ask(f"log {self.before.log_end}")["lines"]
        after = View.of(witness)
        received = numbers(found["ranges"], self._run)
        problems = noticed(self.before, after, lines)
        if found["ranges"] != [[self._run, 0, last]] or found["damaged"]:
            problems.append(f"frames 0 to {last} came as {found['ranges']}")
        tcp = self._tcp_problems(witness)
        faults = len(devices.faults(host, NIC))
        if faults:
            problems.append(f"the IOMMU refused DMA of the card {faults} times")
        old, new = self.before.card["interrupts"], after.card["interrupts"]
        return CardReport(
            bdf=NIC,
            model="e1000e",
            guest=name,
            frames_sent=len(log.sent),
            frames_received=len(received),
            frames_received_without_kernel=without_kernel(
                log, received, between_kernels(host.console.lines)
            ),
            damaged=found["damaged"],
            ranges=found["ranges"],
            log=[line for line in lines if _CLOCK.search(line) is None],
            interrupts={vector: new[vector] - old.get(vector, 0) for vector in new},
            tcp_bytes=self.talk.bytes if self.talk is not None else None,
            faults=faults,
            problems=problems + tcp,
        )

    def _wait_received(self, last: int) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self._witness.ask("frames"))
            return last in numbers(found["ranges"][-1:], self._run)

        with contextlib.suppress(PkernfsError):
            poll(there, 60, f"frame {last} did not come")
        return found

    def _tcp_problems(self, witness: Witness) -> list[str]:
        if self.talk is None:
            return []
        said = witness.ask("tcp")
        problems = [f"TCP: {self.talk.problem}"] if self.talk.problem else []
        if said["accepted"] != 1:
            problems.append(f"TCP: {said['accepted']} connections instead of one")
        return problems
