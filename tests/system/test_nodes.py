# SPDX-License-Identifier: GPL-2.0-only
"""Regions by size on a host with two NUMA nodes: reserved, booted, used, and updated under."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkernfs.host.bootline import BootLine
from pkernfs.host.ranges import Range
from pkernfs.lab import demo
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import GIB, Layout
from pkernfs.lab.qemu import ram_file
from pkernfs.store import layout as stored
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

PLAIN = Layout.of(0, nodes=2)
SECOND = "/mnt/pkernfs-node1"
_UNLOAD = f"umount -q /mnt/pkernfs; umount -q {SECOND}; modprobe -r pkernfs_dma pkernfs"
_SOURCED = (
    'GRUB_CMDLINE_LINUX="quiet"; . /etc/default/grub.d/zz-pkernfs.cfg; '
    "printf '%s' \"$GRUB_CMDLINE_LINUX\""
)


def _json(host: Machine, *command: str) -> Any:
    return json.loads(host.run(["pkernfs", *command, "--json"]).check().stdout)


def _reserve_on(host: Machine) -> tuple[str, ...]:
    """Have a region on each node; what the boot line gets, word for word."""
    host.sh("mkdir -p /etc/default/grub.d").check()
    one = ["pkernfs", "reserve", "--size", "1G"]
    both = host.run([*one, "--node", "0", "--node", "1", "--dry-run"]).check().stdout
    assert host.sh("ls /etc/default/grub.d").stdout == "", "a dry run writes nothing"
    assert "run update-grub" in host.run([*one, "--node", "0"]).check().stdout
    assert host.run([*one, "--node", "1", "--dry-run"]).check().stdout == both
    sourced = host.sh(_SOURCED).check().stdout
    assert sourced == r"quiet memmap=1G\$0x100000000 pkernfs.region=node0:1G!0x100000000"
    return tuple(both.split())


def _is_there(host: Machine, guest: tick.Tick, node: int) -> None:
    """Random bytes in the guest's memory are found in the part of the RAM that is the node's."""
    path = f"{guest.directory}/ram"
    fill = f"dd if=/dev/urandom of={path} bs=1M seek=8 count=1 conv=notrunc status=none"
    host.sh(f"{fill} && dd if={path} bs=1M skip=8 count=1 of=/mnt/share/piece status=none").check()
    piece = (host.share / "piece").read_bytes()
    files = [ram_file(host.ram_file, number) for number in range(2)]
    found = [_contains(file, piece) for file in files]
    assert found == [number == node for number in range(2)]


def _contains(file: Path, piece: bytes) -> bool:
    with file.open("rb") as ram, mmap.mmap(ram.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        # What was never written is not looked at: data and holes of a sparse file.
        position, end = 0, len(memory)
        while position < end:
            try:
                start = os.lseek(ram.fileno(), position, os.SEEK_DATA)
            except OSError:
                return False
            position = os.lseek(ram.fileno(), start, os.SEEK_HOLE)
            if memory.find(piece, start, position) >= 0:
                return True
    return False


def _extents(host: Machine, guest: tick.Tick) -> list[Range]:
    (inode,) = _json(host, "ls", f"{guest.directory}/ram")
    return [Range(int(part["address"]), int(part["size"])) for part in inode["extents"]]


def test_regions_by_size_from_a_plain_host_to_an_update(new_host: HostFactory) -> None:
    with Machine(HostConfig(layout=PLAIN, store=False)) as plain:
        words = _reserve_on(plain)

    host = new_host(layout=PLAIN, append=words)
    assert set(words) <= set(host.run(["cat", "/proc/cmdline"]).stdout.split())
    _is_set_up(host, words)
    findings = _json(host, "doctor")["findings"]
    assert [found for found in findings if found["status"] == "blocker"] == []
    texts = [found["text"] for found in findings if found["topic"] == "store"]
    assert texts == [
        "mounted at /mnt/pkernfs",
        f"mounted at {SECOND}",
        "its checker finds it clean",
    ]
    guests = [
        tick.start(host, "near", options=["--node", "0"]),
        tick.start(host, "far", options=["--node", "1"], store=SECOND),
    ]
    for node, guest in enumerate(guests):
        assert all(PLAIN.high(node).contains(span) for span in _extents(host, guest))
        _is_there(host, guest, node)
    before = [guest.count() for guest in guests]

    demo.update(host)

    assert host.run(["uname", "-r"]).stdout.startswith("7.3")
    for guest, count in zip(guests, before, strict=True):
        assert count < guest.wait_count(count + 1) < count + 2000
    report = demo.report_of(host)
    assert (report["outcome"], report["store"]) == ("completed", "clean")
    assert [vm["name"] for vm in report["vms"]] == ["far", "near"]
    assert host.sh(f"ls {SECOND}").stdout.split() == ["vms"], "the records are in the first store"
    _is_set_up(host, words)
    host.sh("pkernfs vm stop near --force --delete; pkernfs vm stop far --force").check()
    assert [vm["state"] for vm in _json(host, "vm", "list")["vms"]] == ["off"]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Machine]:
    """A host with a processor and a region on either node; the tests leave no guest."""
    with Machine(HostConfig(layout=Layout.of(GIB, nodes=2))) as host:
        yield host


def test_a_guest_runs_on_the_processors_of_its_node(two_nodes: Machine) -> None:
    host = two_nodes
    assert host.run(["cat", "/sys/devices/system/node/node1/cpulist"]).stdout == "1\n"
    guest = tick.start(host, "far", options=["--node", "1"], store=SECOND)
    _is_there(host, guest, 1)
    pid = _json(host, "vm", "list")["vms"][0]["pid"]
    threads = host.sh(f"cat /proc/{pid}/task/*/status").check().stdout.splitlines()
    allowed = [line.split()[1] for line in threads if line.startswith("Cpus_allowed_list")]
    assert len(allowed) > 2, "a thread for the virtual processor, and more"
    assert set(allowed) == {"1"}
    host.run(["pkernfs", "vm", "stop", "far", "--force", "--delete"]).check()


def _is_set_up(host: Machine, words: tuple[str, ...]) -> None:
    """Both regions are claimed, mounted and in order, and each is known to lie on its node."""
    regions = BootLine(words).regions()
    assert [region.range for region in regions] == [
        Range(PLAIN.high(node).start, GIB) for node in range(2)
    ]
    listed = _json(host, "reserve", "--list")
    assert [(item["name"], item["node"], item["now"]) for item in listed["regions"]] == [
        ("node0", 0, True),
        ("node1", 1, True),
    ]
    # All of node 1 is still known, though the kernel does not see what is reserved there.
    assert [item["room"] for item in listed["nodes"]] == [[], [{"start": 6 * GIB, "size": GIB}]]
    checked = host.run(["pkernfs", "check"]).check().stdout
    assert [line.split(":")[0] for line in checked.splitlines()] == ["node0", "node1"]


@answers(
    phase="input",
    failure="a region that shrank since its store was made",
    outcome="that store is not mounted and not changed, says why; the guests of the others run",
)
def test_a_region_that_shrank_keeps_its_store(two_nodes: Machine) -> None:
    host = two_nodes
    host.sh(_UNLOAD).check()
    host.allow("store has 0x40000000 bytes, this range 0x20000000")
    host.sh("modprobe pkernfs region=node0:512M!0x100000000,node1:1G!0x140000000").check()
    shrunk = host.run(["pkernfs", "mount"])
    assert shrunk.status == 1
    assert "can't be mounted at /mnt/pkernfs: it was made for a range of another size" in (
        shrunk.stderr
    )
    assert f"mounted at {SECOND}" in shrunk.stdout, "one store does not hold the other back"
    checked = host.run(["pkernfs", "check", "node0"])
    assert (checked.status, "made for a range of 1073741824 bytes" in checked.stdout) == (1, True)
    assert "another size" in host.run(["pkernfs", "resume"]).stderr
    host.sh(_UNLOAD).check()
    assert "node0" in host.run(["pkernfs", "mount"]).check().stdout, "whole again, it is mounted"


@answers(
    phase="input",
    failure="the first store is from a newer format version",
    outcome="not mounted, not changed, says so; no update",
)
def test_a_store_of_a_newer_version_stays_as_it_is(two_nodes: Machine) -> None:
    host = two_nodes
    host.sh(_UNLOAD).check()
    _make_newer(host)
    host.allow("version 2 of the format is not known")
    newer = host.run(["pkernfs", "mount"])
    assert newer.status == 1
    assert "a newer version of pkernfs made it" in newer.stderr
    assert "format version 2, known here is" in host.run(["pkernfs", "check", "node0"]).stdout
    refused = host.run(["pkernfs", "update"])
    assert refused.status == 1
    assert "/mnt/pkernfs" in refused.stderr


def _make_newer(host: Machine) -> None:
    """Have the first store say that it is of the next version of the format."""
    place = host.range_file
    with place.file.open("r+b") as ram:
        for slot in stored.SUPER_SLOTS:
            ram.seek(place.offset + slot * stored.SLOT_SIZE)
            values = stored.SUPER.unpack(ram.read(stored.SUPER.size))
            assert values["version"] == stored.VERSION
            values |= {"version": stored.VERSION + 1, "checksum": 0}
            values["checksum"] = stored.super_checksum(stored.SUPER.pack(**values))
            ram.seek(place.offset + slot * stored.SLOT_SIZE)
            ram.write(stored.SUPER.pack(**values))
