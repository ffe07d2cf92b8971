# SPDX-License-Identifier: GPL-2.0-only
"""Several stores: where they are mounted, and which one a guest goes to."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import doctor, grub, numa
from pkernfs.host.doctor import Status
from pkernfs.host.ranges import Range, Region
from pkernfs.host.reserve import boot_words
from pkernfs.host.stores import mount_stores, require_any, stores
from pkernfs.vmm import guests
from pkernfs.vmm.config import Guest, Places
from pkernfs.vmm.placement import choose_store
from tests.answers import answers
from tests.unit.vmm.fakes import RAM, FakeHost

GIB = 1 << 30
SPANS = {"fast": Range(8 * GIB, GIB), "node1": Range(16 * GIB, GIB)}


@pytest.fixture
def several(host: FakeHost) -> FakeHost:
    """A host with a region without a name, and two more."""
    for name, span in SPANS.items():
        host.add_region(name, span)
    return host


def test_each_region_has_a_place_of_its_own(several: FakeHost) -> None:
    first = several.places.store
    found = stores(several.machine, first)
    assert [store.name for store in found] == ["pkernfs", "fast", "node1"]
    assert [store.point.name for store in found] == ["store", "store-fast", "store-node1"]
    assert Places.on(several.machine, first).others == tuple(s.point for s in found[1:])


def _unmount(host: FakeHost, point: Path) -> None:
    lines = host.machine.read("proc/self/mountinfo") or ""
    left = [line for line in lines.splitlines() if f" {point} " not in line]
    host.put("proc/self/mountinfo", "\n".join(left) + "\n")


class FakeMount:
    """The system call: refuses regions by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **refused: int) -> None:
        self.refused = refused
        self.calls: list[tuple[str, str, str | None]] = []
        libc = SimpleNamespace(mount=self)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)

    def __call__(
        self, source: bytes, point: bytes, kind: bytes, flags: int, data: bytes | None
    ) -> int:
        self.calls.append((source.decode(), os.fsdecode(point), data.decode() if data else None))
        code = self.refused.get(source.decode(), 0)
        ctypes.set_errno(code)
        return -1 if code else 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EINVAL, "there is no store in the region"),
        (errno.EOPNOTSUPP, "a newer version of pkernfs made it"),
        (errno.ENXIO, "made for a range of another size or place"),
        (errno.EUCLEAN, "it is damaged"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_store_that_can_not_be_mounted_says_why(
    several: FakeHost, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    first, fast, node1 = several.places.stores
    for point in (first, fast, node1):
        _unmount(several, point)
    mount = FakeMount(monkeypatch, fast=code)
    failed = mount_stores(several.machine, first)
    assert [(str(p), says in e.what, bool(e.hint)) for p, e in failed.items()] == [
        (str(fast), True, True)
    ]
    assert mount.calls == [
        ("pkernfs", str(first), None),
        ("fast", str(fast), None),
        ("node1", str(node1), None),
    ]


@answers(
    phase="next kernel",
    failure="one of several stores can't be mounted, the first one too",
    outcome="the guests of the others run; resume says which store and why",
)
def test_the_first_store_does_not_hold_the_others_back(
    several: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = several.places.store
    _unmount(several, first)
    FakeMount(monkeypatch, pkernfs=errno.ENXIO)
    assert list(mount_stores(several.machine, first)) == [first]
    require_any(several.machine, first)


def test_no_store_at_all_is_an_error(several: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for point in several.places.stores:
        _unmount(several, point)
    FakeMount(monkeypatch, pkernfs=errno.ENXIO, fast=errno.EINVAL, node1=errno.EINVAL)
    with pytest.raises(PkernfsError, match="another size"):
        mount_stores(several.machine, several.places.store)
    with pytest.raises(PkernfsError, match="no store at"):
        require_any(several.machine, several.places.store)


def test_new_ranges_get_a_store_only_when_told(
    several: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unmount(several, several.places.stores[1])
    mount = FakeMount(monkeypatch)
    assert mount_stores(several.machine, several.places.store, init=True) == {}
    assert mount.calls == [("fast", str(several.places.stores[1]), "init")]


# Which store


@pytest.fixture
def numa_host(several: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The first two regions on node 0, the third on node 1."""
    nodes = (
        numa.Node(0, (Range(0, 12 * GIB),)),
        numa.Node(1, (Range(12 * GIB, 12 * GIB),)),
        numa.Node(2, (Range(24 * GIB, 12 * GIB),)),
    )
    monkeypatch.setattr(numa, "nodes", lambda _: nodes)
    return several


def test_a_store_is_chosen_by_node_or_name(
    numa_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, (first, fast, node1) = numa_host.machine, numa_host.places.stores
    free = {first: 5, fast: 9, node1: 1}
    statvfs = namedtuple("statvfs", "f_bavail")
    monkeypatch.setattr(os, "statvfs", lambda point: statvfs(free[point]))
    assert choose_store(machine, first) == first
    assert choose_store(machine, first, node=1) == node1
    assert choose_store(machine, first, node=0) == fast
    assert choose_store(machine, first, region="pkernfs") == first
    assert choose_store(machine, first, node=0, region="pkernfs") == first
    _unmount(numa_host, fast)
    assert choose_store(machine, first, node=0) == first


@pytest.mark.parametrize(
    ("node", "region", "says", "hint"),
    [
        (3, None, "no NUMA node 3", "it has: 0, 1, 2"),
        (2, None, "no region lies on NUMA node 2", "pkernfs reserve --size SIZE --node 2"),
        (1, "fast", "no region lies on NUMA node 1", "reserve"),
        (None, "slow", "no region slow", "it has: pkernfs, fast, node1"),
        (None, "node1", "region node1 is not mounted", "pkernfs mount"),
    ],
)
def test_a_store_that_is_not_there_says_so(
    numa_host: FakeHost, node: int | None, region: str | None, says: str, hint: str
) -> None:
    _unmount(numa_host, numa_host.places.stores[2])
    with pytest.raises(PkernfsError, match=says) as caught:
        choose_store(numa_host.machine, numa_host.places.store, node, region)
    assert hint in caught.value.hint


# Guests in them


def _start(host: FakeHost, name: str, store: Path | None = None, node: int | None = None) -> None:
    guests.start(host.places, name, RAM, [], machine=host.machine, store=store, node=node)


def test_a_guest_is_found_wherever_it_lies(several: FakeHost) -> None:
    second = several.places.stores[1]
    _start(several, "a")
    _start(several, "b", second, node=0)
    listed = {status.name: (status.store, status.node) for status in _list(several)}
    assert listed == {"a": (str(several.places.store), None), "b": (str(second), 0)}
    guests.stop(several.places, "b", force=True, delete=False)
    # Started again without a word: where it was, as it was.
    guests.start(several.places, "b", None, [], machine=several.machine)
    assert Guest("b", several.places).config().node == 0
    assert (second / "vms/b/ram").exists()


def _list(host: FakeHost) -> list[guests.GuestStatus]:
    return guests.list_guests(host.places)


def test_a_name_is_taken_in_all_stores(several: FakeHost) -> None:
    first, second, third = several.places.stores
    _start(several, "a", second)
    with pytest.raises(PkernfsError, match="runs already"):
        _start(several, "a", second)
    guests.stop(several.places, "a", force=True, delete=False)
    with pytest.raises(PkernfsError, match=r"lies in the store at .*store-fast, not in the one"):
        _start(several, "a", third)
    with pytest.raises(PkernfsError, match="lies in the store at"):
        _start(several, "a", first)
    assert not (third / "vms/a").exists()


def test_a_config_of_before_there_were_nodes_is_read(host: FakeHost) -> None:
    host.start("a")
    guest = Guest("a", host.places)
    text = guest.config_file.read_text()
    assert '"node": null' in text
    guest.config_file.write_text(text.replace(',\n "node": null', ""))
    assert '"node"' not in guest.config_file.read_text()
    assert guest.config().node is None


# Doctor


def _stores_found(host: FakeHost) -> list[tuple[Status, str]]:
    findings = doctor.examine(host.machine, host.places.store, None)
    return [(found.status, found.text) for found in findings if found.topic == "store"]


def test_doctor_looks_at_every_store(several: FakeHost) -> None:
    first, fast, node1 = several.places.stores
    assert [status for status, _ in _stores_found(several)] == [Status.OK] * 3
    _unmount(several, fast)
    assert _stores_found(several)[1] == (Status.NOTE, f"nothing is mounted at {fast}")
    mountinfo = several.machine.read("proc/self/mountinfo")
    line = "30 1 0:30 / /srv/guests rw - pkernfs fast rw"
    several.put("proc/self/mountinfo", f"{mountinfo}\n{line}\n")
    status, text = _stores_found(several)[1]
    assert (status, "mounted at /srv/guests" in text) == (Status.BLOCKER, True)
    _unmount(several, first)
    assert _stores_found(several)[0][0] is Status.BLOCKER
    assert _stores_found(several)[2] == (Status.OK, f"mounted at {node1}")


def test_doctor_knows_what_the_next_boot_brings(host: FakeHost) -> None:
    host.put("sys/module/pkernfs/parameters/region", "(null)")
    host.put("proc/cmdline", "quiet")

    def found() -> list[tuple[str, str]]:
        findings = doctor.examine(host.machine, host.places.store, None)
        return [(f.text, f.hint) for f in findings if f.id == "range.none"]

    assert found() == [
        (
            "no range of memory is given to pkernfs",
            "pkernfs reserve --size SIZE, then reboot",
        )
    ]
    host.put(grub.DROP_IN, grub.render(boot_words([Region("", Range(4 * GIB, GIB))])))
    assert found() == [("no range of memory is given to pkernfs before the next boot", "reboot")]
    # There is no use in another reboot if nothing has changed since.
    host.put("proc/stat", f"cpu 1 2\nbtime {int(time.time()) + 60}\n")
    ((text, hint),) = found()
    assert ("asked for one before this boot" in text, "/proc/cmdline" in hint) == (True, True)
    host.put(grub.CONFIG, "\tlinux\t/boot/vmlinuz-7 root=/dev/vda1 ro quiet\n")
    ((text, hint),) = found()
    assert ("/boot/vmlinuz-7 has it not" in text, "same size" in hint) == (True, True)
