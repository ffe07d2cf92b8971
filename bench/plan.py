# SPDX-License-Identifier: GPL-2.0-only
"""What is run: hosts, and the cells that take turns in each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.measures import device, guests, memory, store
from bench.measures.blackout import blackout, floor
from bench.peers.bare import Bare
from bench.peers.base import Peer
from bench.peers.fsdax import Fsdax
from bench.peers.luo import WORDS, BareLuo, Luo, luo_stack
from bench.peers.pkernfs import Pkernfs
from bench.peers.save_to_file import SaveToFile
from bench.results import Values
from bench.stage import GuestSize, Room, Stage
from pkernfs.host.ranges import parse_size
from pkernfs.lab.memory import GIB, MIB

#: The kernel for short measures: it prints a mark at once, later ones leave that to a thread.
_PROMPT = "6.12"

#: Who is in the comparison of updates, in the order of the page.
PEERS: tuple[type[Peer], ...] = (Bare, Pkernfs, Fsdax, SaveToFile, BareLuo, Luo)


@dataclass(frozen=True)
class Cell:
    """One thing that is run once in each round.

    :ivar seconds: about how long it takes on two idle cores.
    :ivar run: does it in a host.
    :ivar once: only in the first round.
    """

    measure: str
    peer: str
    case: str
    seconds: float
    run: Callable[[Stage], Values]
    once: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.measure, self.peer, self.case)))


@dataclass(frozen=True)
class Act:
    """A host and its cells.

    :ivar stage: makes the host.
    :ivar in_order: cells keep their order in every round: one builds on another.
    """

    name: str
    stage: Callable[[], Stage]
    cells: tuple[Cell, ...]
    in_order: bool = False

    def order(self, number: int) -> tuple[Cell, ...]:
        """The cells of a round, from 0 on, which begins with another one each time."""
        cells = tuple(cell for cell in self.cells if not (cell.once and number))
        if self.in_order or not cells:
            return cells
        turn = number % len(cells)
        return cells[turn:] + cells[:turn]


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    :ivar ram: sizes of guests by name of the peer.
    :ivar guests: how many at a time; None: as many as fit, in one round only.
    :ivar left_out: (measure, peer, case, reason) of what is not run.
    """

    rounds: int
    ram: dict[str, tuple[str, ...]]
    region: int
    pmem: int
    luo: bool
    guests: tuple[int | None, ...]
    files: tuple[int, ...]
    store: int
    operations: int
    devices: bool
    left_out: tuple[tuple[str, str, str, str], ...] = field(default=())


#: The case of a store that is full of guests.
FIT = "as many as fit"
_MACHINE = "needs more memory than the machine that emulates the host has"
_TIME = "left out to keep the run short"

FULL = Sizes(
    rounds=5,
    ram={
        "pkernfs": ("256M", "1G", "4G", "16G", "256G", "1T"),
        "fsdax": ("256M", "1G", "4G", "16G"),
        "save to file": ("256M", "1G", "4G"),
        "LUO memfd": ("256M", "1G", "4G"),
    },
    region=1100 * GIB,
    pmem=20 * GIB,
    luo=True,
    guests=(1, 4, 16, None),
    files=(1, 1000, 100_000),
    store=1024 * GIB,
    operations=5000,
    devices=True,
    left_out=(
        ("blackout", "save to file", "16G and more", f"all of it is copied twice: {_MACHINE}"),
        ("blackout", "LUO memfd", "16G and more", f"it is filled when preserved: {_MACHINE}"),
        (
            "blackout",
            "fsdax",
            "256G and 1T",
            f"its struct pages alone take 16 MiB a GiB: {_MACHINE}",
        ),
        ("guests", "pkernfs", FIT, f"rounds after the first {_TIME}: some minutes each"),
        (
            "device",
            "fsdax, save to file, LUO memfd",
            "",
            "none keeps a device: QEMU refuses cpr-reboot with VFIO unless the guest is suspended, "
            "the card is reset, and LUO has no devices in 7.3. What is left is kexec alone",
        ),
    ),
)

QUICK = Sizes(
    rounds=1,
    ram={"pkernfs": ("256M",), "fsdax": ("256M",), "save to file": ("256M",)},
    region=2 * GIB,
    pmem=2 * GIB,
    luo=False,
    guests=(),
    files=(1, 1000),
    store=64 * GIB,
    operations=200,
    devices=False,
    left_out=(("all", "all", "", "a quick run: one round, small guests, without LUO"),),
)


def acts(sizes: Sizes) -> list[Act]:
    """Everything, the longest first."""
    found = [_updates(sizes)]
    if sizes.luo:
        found.append(_luo(sizes))
    if sizes.guests:
        found.append(_guests(sizes))
    if sizes.devices:
        found.append(_devices())
    return [*found, *_stores(sizes), *_memory()]


def _blackout(peer: Peer, ram: str) -> Cell:
    size = GuestSize.of(parse_size(ram))
    return Cell("blackout", peer.name, ram, 22, lambda stage: blackout(stage, peer, size))


def _floor(peer: Bare) -> Cell:
    return Cell("blackout", peer.name, "", 10, lambda stage: floor(stage, peer))


def _updates(sizes: Sizes) -> Act:
    peers: tuple[Peer, ...] = (Pkernfs(), Fsdax(), SaveToFile())
    cells = [_floor(Bare())]
    cells += [_blackout(peer, ram) for peer in peers for ram in sizes.ram.get(peer.name, ())]
    # 4 GiB of a guest lie in it for the peer that saves them to a file.
    room = Room(region=sizes.region, pmem=sizes.pmem, ordinary=5 * GIB, used=9 * GIB)
    return Act("update", lambda: Stage("update", room), tuple(cells))


def _luo(sizes: Sizes) -> Act:
    cells = [_floor(BareLuo())]
    cells += [_blackout(Luo(), ram) for ram in sizes.ram.get(Luo.name, ())]
    room = Room(region=16 * MIB, ordinary=5 * GIB, used=7 * GIB, words=WORDS)
    return Act("luo", lambda: Stage("luo", room, on=luo_stack), tuple(cells))


def _memory() -> list[Act]:
    def cell(kind: memory.Kind) -> Cell:
        return Cell("memory", kind.name, "", 5, lambda stage: memory.memory(stage, kind))

    room = Room(
        kernel=_PROMPT,
        region=2 * GIB,
        pmem=2 * GIB,
        ordinary=4 * GIB,
        used=7 * GIB,
        words=memory.WORDS,
    )
    own = Room(kernel=_PROMPT, region=2 * GIB, ordinary=4 * GIB, used=6 * GIB)
    return [
        Act("memory", lambda: Stage("memory", room), tuple(cell(k) for k in memory.KINDS)),
        Act("hvo", lambda: Stage("hvo", own), tuple(cell(k) for k in memory.OPTIMIZED)),
    ]


def _stores(sizes: Sizes) -> list[Act]:
    def mount(count: int) -> Cell:
        return Cell(
            "store", "pkernfs", str(count), 4, lambda stage: store.mount_and_check(stage, count)
        )

    def metadata(place: memory.Kind) -> Cell:
        return Cell(
            "metadata",
            place.name,
            "",
            4,
            lambda stage: store.metadata(stage, place, sizes.operations),
        )

    def sequential(place: memory.Kind) -> Cell:
        return Cell("sequential", place.name, "", 3, lambda stage: store.sequential(stage, place))

    cells = [metadata(place) for place in store.PLACES]
    cells += [sequential(place) for place in store.PLACES]
    room = Room(kernel=_PROMPT, region=sizes.store, pmem=2 * GIB, ordinary=2 * GIB, used=4 * GIB)
    # A host for each number of files: they are made once, and nobody takes turns with them.
    mounts = [Act("store", lambda: Stage("store", room), (mount(count),)) for count in sizes.files]
    return [Act("files", lambda: Stage("files", room), tuple(cells)), *mounts]


def _guests(sizes: Sizes) -> Act:
    def cell(count: int | None) -> Cell:
        fit = count is None
        # Each is started and stopped by a command of its own. Some 30 fill the store.
        seconds = 20.0 + 11 * (40 if count is None else count)
        case = FIT if fit else str(count)
        return Cell(
            "guests", "pkernfs", case, seconds, lambda stage: guests.many_guests(stage, count), fit
        )

    room = Room(region=GIB, ordinary=2 * GIB, used=4 * GIB)
    return Act("guests", lambda: Stage("guests", room), tuple(cell(n) for n in sizes.guests))


def _devices() -> Act:
    cells = (
        Cell("device", "pkernfs", "", 35, device.preserved),
        Cell("device", "kexec alone", "", 30, device.stock),
    )
    # Each brings a host of its own.
    return Act("device", lambda: Stage("device", Room()), cells)
