# SPDX-License-Identifier: GPL-2.0-only
"""Guests whose successor would not be what they are by now: refused by name, and they run on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick
from .refusal import lines, refused
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

_DATA, _SNAPSHOT, _ROM = (f"/mnt/scratch/{name}" for name in ("data.img", "snap.qcow2", "rom"))
_NEEDED = "/mnt/scratch/needed"

_QMP = r"""
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(f"/run/pkernfs/{sys.argv[1]}/qmp.sock")
lines = connection.makefile("rw")
lines.readline()
for request in [{"execute": "qmp_capabilities"}, *json.loads(sys.argv[2])]:
    print(json.dumps(request), file=lines, flush=True)
    while "event" in (answer := json.loads(lines.readline())):
        pass
    assert "return" in answer, answer
print(json.dumps(answer["return"]))
"""


def _qmp(guest: Tick, command: str, **arguments: object) -> str:
    """Talk to a guest's QEMU as somebody else than pkernfs; its answer, as JSON."""
    (guest.host.share / "qmp.py").write_text(_QMP)
    request = json.dumps([{"execute": command, "arguments": arguments}])
    return guest.host.run(["python3", "/mnt/share/qmp.py", guest.name, request]).check().stdout


@pytest.fixture
def own(host: Machine) -> Iterator[Tick]:
    """A guest with what may change: a disk (locked by QEMU), a drive, an option ROM, a port."""
    host.sh(
        f"truncate -s 8M {_DATA} {_DATA}.cd; rm -f {_SNAPSHOT}; echo anything >{_NEEDED};"
        f"head -c 3000 /dev/zero >{_ROM}"
    ).check()
    arguments = [
        *("-blockdev", f"driver=file,filename={_DATA},node-name=file"),
        *("-blockdev", "driver=raw,file=file,node-name=raw"),
        *("-device", "virtio-blk-pci,drive=raw,id=data"),
        *("-drive", f"file={_DATA}.cd,format=raw,media=cdrom,id=cd"),
        *("-netdev", "user,id=net"),
        *("-device", f"virtio-net-pci,netdev=net,id=nic,romfile={_ROM}"),
        *("-device", "pcie-root-port,id=root"),
        *("-fw_cfg", f"name=opt/needed,file={_NEEDED}"),
    ]
    guest = tick.start(host, "own", arguments=arguments)
    yield guest
    host.sh("pkernfs vm stop own --force --delete; rm -rf /mnt/pkernfs/updates").check()


def _left(host: Machine) -> list[str]:
    """What is left of rehearsals."""
    tries = "ls -d /run/pkernfs/.try-* 2>/dev/null"
    return lines(host, f"{tries}; grep -la '[d]efer' /proc/[0-9]*/cmdline 2>/dev/null; :")


def _findings(host: Machine, status: str) -> dict[str, str]:
    found = json.loads(host.run(["pkernfs", "doctor", "--json"]).stdout)["findings"]
    return {it["id"]: it["text"] for it in found if it["status"] == status}


@answers(
    phase="check",
    failure="a guest's disk has another image by now (live snapshot, mirror, other medium)",
    outcome="followed where it is a plain -drive; else refused and named, unless --override"
    " rehearsal.NAME",
)
def test_a_live_snapshot_is_refused_by_name(own: Tick) -> None:
    host = own.host
    host.run(["pkernfs", "update", "--dry-run"]).check()
    assert _findings(host, "blocker") == {}
    assert _left(host) == []
    snapshot = {"node-name": "raw", "snapshot-file": _SNAPSHOT, "snapshot-node-name": "top"}
    _qmp(own, "blockdev-snapshot-sync", **snapshot)
    says = f"the running QEMU has {_SNAPSHOT} on {_DATA}, its command line names {_DATA}"
    refused(own, "pkernfs update", says)
    refused(own, "pkernfs update --dry-run", says)
    assert says in _findings(host, "blocker")["rehearsal.own"]
    host.run(["pkernfs", "update", "--dry-run", "--override", "rehearsal.own"]).check()
    own.counts_on()
    assert _left(host) == []


@answers(
    phase="check",
    failure="a guest's disk has another image by now (live snapshot, mirror, other medium)",
    outcome="followed where it is a plain -drive; else refused and named, unless --override"
    " rehearsal.NAME",
)
def test_a_live_snapshot_and_an_ejected_medium_go_along(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    host.sh(f"truncate -s 8M {_DATA} {_DATA}.cd").check()
    arguments = [
        *("-drive", f"file={_DATA},format=raw,if=virtio,id=data"),
        *("-drive", f"file={_DATA}.cd,format=raw,media=cdrom,id=cd"),
    ]
    guest = tick.start(host, "own", arguments=arguments)
    _qmp(guest, "blockdev-snapshot-sync", device="data", **{"snapshot-file": _SNAPSHOT})
    _qmp(guest, "eject", device="cd", force=True)
    said = _findings(host, "note")["rehearsal.own"]
    assert f"disk data: {_SNAPSHOT} on {_DATA}" in said and "disk cd: no medium" in said
    count = guest.count()

    demo.update(host)
    guest.wait_count(count + 1)
    guest.counts_on()
    disks = {it["device"]: it for it in json.loads(_qmp(guest, "query-block").splitlines()[-1])}
    assert disks["data"]["inserted"]["file"] == _SNAPSHOT
    assert disks["data"]["inserted"]["image"]["backing-image"]["filename"] == _DATA
    assert "inserted" not in disks["cd"]


@answers(
    phase="check",
    failure="a file of QEMU's changed since a guest began (option ROM, firmware), or is gone",
    outcome="refused; names the memory and both sizes, or QEMU's own words",
)
def test_an_option_rom_that_grew_and_a_file_that_is_gone_are_refused(own: Tick) -> None:
    host = own.host
    host.sh(f"head -c 300000 /dev/zero >{_ROM}").check()
    refused(own, "pkernfs update", "virtio-net-pci.rom: 4 KiB in the running QEMU, 512 KiB")
    host.sh(f"rm {_NEEDED}").check()
    refused(own, "pkernfs update", "guest own: its successor does not start")
    refused(own, "pkernfs update", _NEEDED)
    assert _left(host) == []


@answers(
    phase="check",
    failure="a device was plugged into a guest, or a disk's file was replaced",
    outcome="refused, unless --override rehearsal.NAME; names it",
)
def test_a_plugged_device_and_a_replaced_disk_are_refused(own: Tick) -> None:
    _qmp(own, "device_add", driver="virtio-rng-pci", bus="root", id="plugged")
    refused(
        own,
        "pkernfs update",
        "device plugged (virtio-rng-pci): the running QEMU has it, its command line does not",
    )
    own.host.sh(f"cp {_DATA} {_DATA}.new && mv {_DATA}.new {_DATA}").check()
    refused(own, "pkernfs update", f"{_DATA} is not the file any more that the running QEMU has")


@answers(
    phase="check",
    failure="the update is killed while it rehearses",
    outcome="the rehearsed QEMU ends with it; guests were not touched",
)
def test_a_killed_rehearsal_leaves_no_qemu(own: Tick) -> None:
    host = own.host
    waiting = "until ls -d /run/pkernfs/.try-*/own/qmp.sock; do sleep 0.05; done"
    host.sh(
        f"pkernfs update --dry-run >/dev/null 2>&1 & {waiting} >/dev/null 2>&1; kill -9 $!; wait $!"
    )
    host.sh(
        "for i in $(seq 100); do ls -d /run/pkernfs/.try-* || exit 0; sleep 0.1; done; exit 1"
        " >/dev/null 2>&1"
    ).check()
    assert _left(host) == []
    own.counts_on()
    host.sh("! [ -e /run/pkernfs/update.journal ] || pkernfs update --recover").check()
    host.run(["pkernfs", "update", "--dry-run"]).check()
