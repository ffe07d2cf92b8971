# SPDX-License-Identifier: GPL-2.0-only
"""A successor that is tried: attached to nothing, compared, and always ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host.doctor import Status, default_kernel
from pkernfs.update import doctor, handover
from pkernfs.update import plan as planning
from pkernfs.update.handover import Request
from pkernfs.vmm import living, rehearsal
from pkernfs.vmm.differences import differences
from pkernfs.vmm.living import Contents, Device
from pkernfs.vmm.rehearsal_words import rehearsed
from tests.unit.update.processes import die, in_child, killed
from tests.unit.vmm.fakes import FakeHost, host

__all__ = ["host"]

_SCRATCH = Path("/run/pkernfs/.try-x")


def _words(text: str) -> str:
    return " ".join(rehearsed(text.split(), _SCRATCH).arguments)


@pytest.mark.parametrize(
    ("written", "tried"),
    [
        ("-chardev file,id=log,path=/v/log,append=on", "-chardev null,id=log"),
        ("-chardev socket,id=a,path=/v/a,server=on,wait=off,mux=on", "-chardev null,id=a,mux=on"),
        ("-serial chardev:log", "-serial chardev:log"),
        ("-serial file:/v/log", "-serial null"),
        ("-serial mon:stdio", "-serial mon:null"),
        ("-qmp unix:/run/q,server=on,wait=off", "-qmp null"),
        ("-monitor none", "-monitor none"),
        ("-gdb tcp::1234 -s -smp 2", "-smp 2"),
        ("-D /v/log -pidfile /run/p -daemonize", ""),
        ("-netdev tap,id=n,ifname=tap0,script=no", "-netdev hubport,id=n,hubid=1"),
        ("-nic tap,ifname=t,model=e1000,mac=aa", "-nic user,restrict=on,model=e1000,mac=aa"),
        ("-nic none", "-nic none"),
        ("-net nic,model=e1000", "-net nic,model=e1000"),
        ("-net tap,ifname=t", "-net user,restrict=on"),
        (
            "-object memory-backend-file,id=r,size=1G,mem-path=/v/ram,share=on,prealloc=on",
            "-object memory-backend-ram,id=r,size=1G,share=on,reserve=off",
        ),
        (
            '-object {"qom-type":"memory-backend-file","id":"r","size":64,"mem-path":"/v/ram"}',
            '-object {"qom-type":"memory-backend-ram","id":"r","size":64,"reserve":false}',
        ),
        (
            "-object filter-dump,id=f,netdev=n,file=/v/x",
            "-object filter-dump,id=f,netdev=n,file=/dev/null",
        ),
        ("-object iothread,id=i", "-object iothread,id=i"),
        (
            "-device vfio-pci,host=01:00.0 -device virtio-rng-pci",
            "-device virtio-rng-pci,id=pkernfs-stand-in-1 -device virtio-rng-pci",
        ),
        (
            "-device vfio-pci,host=01:00.0,id=card,bus=rp0,addr=0.1,multifunction=on",
            "-device virtio-rng-pci,id=pkernfs-stand-in-1,bus=rp0,addr=0.1,multifunction=on",
        ),
        (
            '-device {"driver":"vfio-pci","host":"01:00.0","id":"card","addr":"3"}',
            '-device {"driver":"virtio-rng-pci","id":"pkernfs-stand-in-1","addr":"3"}',
        ),
        (
            "-device usb-host,hostbus=1,port=2",
            "-device usb-mouse,id=pkernfs-stand-in-1,port=2",
        ),
        ("-device vfio-ccw,sysfsdev=/sys/x", ""),
        ("-tpmdev passthrough,id=t -device tpm-tis,tpmdev=t", ""),
        ("-vnc :1 -vga std", "-vga std"),
        (
            "-spice port=5900",
            f"-spice unix=on,addr={_SCRATCH}/spice.sock,disable-ticketing=on",
        ),
        ("-audiodev pa,id=a,server=x", "-audiodev none,id=a"),
        ("-overcommit mem-lock=on -mem-prealloc", ""),
        ("-overcommit mem-lock=on,cpu-pm=on", "-overcommit cpu-pm=on"),
        ("-drive file=/v/a,if=virtio,cache=none", "-drive file=/v/a,if=virtio,cache=none"),
        ("-set object.r.prealloc=on -set device.n.x=y", "-set device.n.x=y"),
    ],
)
def test_what_the_guest_owns_is_left_alone(written: str, tried: str) -> None:
    assert _words(written) == f"{tried} -display none".lstrip()


def test_networks_are_kept_apart_and_3d_acceleration_stays() -> None:
    both = "-netdev user,id=a -netdev user,id=b"
    assert _words(both).startswith("-netdev hubport,id=a,hubid=1 -netdev hubport,id=b,hubid=2")
    assert _words("-display egl-headless") == "-display egl-headless"


def test_a_passed_through_device_is_taken_as_it_is() -> None:
    words = rehearsed(["-device", "vfio-pci,host=01:00.0,id=card"], _SCRATCH)
    where = (("addr", "03.0"),)
    running = Contents(
        devices=(Device("card", "vfio-pci", where),),
        blocks={"card BAR 0": living.Block(4096, 4096)},
    )
    tried = Contents(devices=(Device("pkernfs-stand-in-1", "virtio-rng-pci", where),))
    assert differences(running, words.complete(tried, running)) == []
    more = Contents(devices=(*running.devices, Device("second", "vfio-pci")))
    (found,) = differences(more, words.complete(Contents(), more))
    assert found.text.startswith("device second (vfio-pci): the running QEMU has it")


@pytest.fixture
def answers_of(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What QEMUs say is in this file, once it is there."""
    file = host.root.parent / "answers"
    monkeypatch.setenv("FAKE_ANSWERS", str(file))
    yield file
    assert [path.name for path in host.places.run.glob(".try-*")] == []


def _disk(image: str) -> dict[str, object]:
    inserted = {"file": image, "drv": "raw", "ro": False, "image": {"filename": image}}
    return {"query-block": [{"device": "vda", "inserted": inserted}]}


def _write(file: Path, running: str, next_one: str) -> None:
    file.write_text(json.dumps({"running": _disk(running), "next": _disk(next_one)}))


def _follow(file: Path, running: str, followed: str) -> None:
    """The successor has /v/base, and ``followed`` if its command line says so."""
    value = {"running": _disk(running), "next": _disk("/v/base")}
    file.write_text(json.dumps({**value, "when": [f"file={followed},", _disk(followed)]}))


def _dry_run(host: FakeHost, *override: str) -> None:
    handover.dry_run(host.machine, host.places, Request(override=frozenset(override)))


_DRIVE = ("-drive", "file=/v/base,format=raw,if=virtio,id=vda")


def test_an_image_of_a_plain_drive_is_followed(
    host: FakeHost, answers_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = host.start("a", *_DRIVE)
    _follow(answers_of, "/v/snap", "/v/snap")
    before = guest.config()
    found = doctor.examine(host.machine, host.places, default_kernel(host.machine))
    (finding,) = [it for it in found if it.id == "rehearsal.a"]
    assert (finding.status, finding.text) == (
        Status.NOTE,
        "guest a goes on with what it has now, disk vda: /v/snap",
    )
    _dry_run(host)
    assert guest.config() == before
    seen = []

    def stop(*_: object) -> None:
        seen.append(guest.config().arguments)
        raise PkernfsError("far enough")

    monkeypatch.setattr(planning, "write", stop)
    with pytest.raises(PkernfsError, match="far enough"):
        handover.update(host.machine, host.places, Request(), lambda _: None)
    assert "file=/v/snap,format=raw,if=virtio,id=vda" in seen[0]
    assert guest.config().arguments == seen[0]


def test_what_following_does_not_bring_is_refused(host: FakeHost, answers_of: Path) -> None:
    """The successor with the new command line is not what runs either."""
    host.start("a", *_DRIVE)
    _follow(answers_of, "/v/snap", "/v/other")
    with pytest.raises(PkernfsError, match=_SAYS):
        _dry_run(host)


_SAYS = "guest a: disk vda: the running QEMU has /v/snap, its command line names /v/base"


def test_another_image_stops_the_update_unless_overridden(host: FakeHost, answers_of: Path) -> None:
    host.start("a")
    _write(answers_of, "/v/base", "/v/base")
    _dry_run(host)
    _write(answers_of, "/v/snap", "/v/base")
    with pytest.raises(PkernfsError, match=_SAYS) as caught:
        _dry_run(host)
    assert "--override rehearsal.a" in caught.value.hint
    _dry_run(host, "rehearsal.a")
    assert host.states() == {"a": "running"}


def test_an_override_is_for_one_guest_that_needs_it(host: FakeHost, answers_of: Path) -> None:
    host.start("a")
    host.start("b")
    with pytest.raises(UsageError, match="doctor finds no such blocker"):
        _dry_run(host, "rehearsal.a")
    _write(answers_of, "/v/snap", "/v/base")
    with pytest.raises(PkernfsError, match="guest b: disk vda"):
        _dry_run(host, "rehearsal.a")


def test_doctor_rehearses_and_names_the_finding(host: FakeHost, answers_of: Path) -> None:
    host.start("a")
    _write(answers_of, "/v/snap", "/v/base")
    found = doctor.examine(host.machine, host.places, default_kernel(host.machine))
    (blocker,) = [it for it in found if it.status is Status.BLOCKER]
    assert (blocker.id, blocker.text, blocker.overridable) == ("rehearsal.a", _SAYS, True)


def test_a_successor_that_does_not_start_is_told_in_its_words(
    host: FakeHost, answers_of: Path
) -> None:
    host.start("a")
    host.misbehave("dies")
    with pytest.raises(PkernfsError) as caught:
        _dry_run(host)
    assert caught.value.what == (
        "guest a: its successor does not start: fake-qemu: -device nonsense: not a valid device"
    )
    assert host.states() == {"a": "running"}


def _tried(host: FakeHost) -> list[str]:
    """Command lines of rehearsed QEMUs."""
    listed = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True
    )
    home = str(host.root.parent)
    return [it for it in listed.stdout.splitlines() if home in it and "-incoming" in it]


def test_a_rehearsal_ends_with_its_process(
    host: FakeHost, answers_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = host.start("a")
    contents = Contents()

    async def deadly(_: object) -> Contents:
        assert len(_tried(host)) == 2  # with who ends it
        die()
        return contents

    monkeypatch.setattr(living, "ask", deadly)
    killed(in_child(lambda: asyncio.run(rehearsal.finding(guest, contents))))
    deadline = time.monotonic() + 10
    while _tried(host) or any(host.places.run.glob(".try-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert host.states() == {"a": "running"}


def test_a_rehearsal_ends_when_it_is_interrupted(
    host: FakeHost, answers_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = host.start("a")

    async def interrupted(_: object) -> Contents:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(10)
        return Contents()

    monkeypatch.setattr(living, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(rehearsal.finding(guest, Contents()))
    assert _tried(host) == []
