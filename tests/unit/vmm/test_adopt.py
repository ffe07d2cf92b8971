# SPDX-License-Identifier: GPL-2.0-only
"""Adopting guests: what their command lines become, and which are refused."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.vmm import adopt, adopt_process, process
from pkernfs.vmm.adopt_arguments import Circumstances, NotAdoptable, memory_of, successor
from pkernfs.vmm.adopt_process import Found, Mapping
from pkernfs.vmm.config import Guest
from pkernfs.vmm.options import Option, Properties, parse
from tests.unit.vmm.fakes import RAM, FakeHost

_LINES = Path(__file__).with_name("adopt_lines")

#: What a script writes that keeps to the documentation.
SCRIPT = shlex.split(
    "-name web -daemonize -pidfile /run/web.pid -accel kvm -m 1G"
    " -object memory-backend-file,id=ram,size=1G,mem-path=/mnt/pkernfs/web.ram,share=on,prealloc=on"
    " -machine q35,memory-backend=ram -smp 2"
    " -drive file=/srv/web.qcow2,if=virtio"
    " -netdev user,id=net -device virtio-net-pci,netdev=net,id=nic"
    " -qmp unix:/run/web.qmp,server,nowait -display none -S"
)

ABOUT = Circumstances("ram", "/mnt/pkernfs/vms/web/ram", "pc-q35-11.1", "/run/pkernfs/web")


def libvirt_line() -> list[str]:
    """The command line of a domain, recorded from libvirt 11.3 with QEMU 11.1."""
    return _LINES.joinpath("libvirt").read_text(encoding="utf-8").splitlines()[1:]


def test_a_script_gets_its_own_arguments_back() -> None:
    done = successor(SCRIPT, ABOUT)
    text = " ".join(done.arguments)
    for word in ("-S", "-daemonize", "-pidfile", "prealloc"):
        assert word not in text
    assert "-machine pc-q35-11.1,memory-backend=ram" in text
    assert "id=ram,size=1G,mem-path=/mnt/pkernfs/vms/web/ram,share=on" in text
    # Its own monitor is there again, and holds nothing up.
    assert "-qmp unix:/run/web.qmp,server=on,wait=off" in text
    assert "-netdev user,id=net -device virtio-net-pci,netdev=net,id=nic" in text
    assert done.notes == []


@pytest.mark.parametrize(
    ("word", "after"),
    [
        ("-serial mon:unix:/x,server=on", "-serial mon:unix:/x,server=on,wait=off"),
        ("-debugcon unix:/x,server", "-debugcon unix:/x,server=on,wait=off"),
        # A client stays one.
        ("-serial unix:/x,server=false", "-serial unix:/x,server=false"),
        ('-chardev {"id":"a","server":false}', '-chardev {"id":"a","server":false}'),
    ],
)
def test_a_server_waits_for_nobody_and_a_client_is_none(word: str, after: str) -> None:
    assert after in " ".join(successor([*SCRIPT, *word.split()], ABOUT).arguments)


def test_what_a_file_or_a_helper_says_is_not_adopted() -> None:
    for words in ("-readconfig f", "-tpmdev emulator,id=t,chardev=c"):
        with pytest.raises(NotAdoptable):
            successor([*SCRIPT, *words.split()], ABOUT)
    done = successor([*SCRIPT, "-set", "object.ram.discard-data=on"], ABOUT)
    assert "discard-data" not in " ".join(done.arguments)


@pytest.mark.parametrize(
    "memory",
    [
        "memory-backend-file,id=ram,size=1G,mem-path=/x,share=on,discard-data=on",
        '{"qom-type":"memory-backend-file","id":"ram","size":1,"share":true,"discard-data":true}',
    ],
)
def test_the_successor_keeps_its_memory_when_it_ends(memory: str) -> None:
    done = successor(["-object", memory, "-machine", "q35,memory-backend=ram"], ABOUT)
    assert "discard" not in " ".join(done.arguments)


def test_a_line_of_libvirt_can_be_started_without_libvirt() -> None:
    line = libvirt_line()
    ram_id, memory = memory_of(line)
    assert (ram_id, memory.is_on("share")) == ("pc.ram", True)
    about = replace(
        ABOUT,
        ram_id=ram_id,
        user="64055:993",
        taps={int(n): "vnet7" for n in range(64)},
        files=dict.fromkeys(range(64), "pipe:[1]"),
    )
    done = successor(line, about)
    text = "\n".join(done.arguments)
    unwanted = ("fd=", '"fd"', "/dev/fdset", "-add-fd", "masterKey0", "charmonitor", "-S\n")
    for word in (*unwanted, "-no-shutdown", "elevateprivileges"):
        assert word not in text, word
    assert '"mem-path":"/mnt/pkernfs/vms/web/ram"' in text
    assert done.arguments[-2:] == ("-run-with", "user=64055:993")
    # Everything that the guest sees is as it was.
    before, after = (
        [str(o) for o in parse(words) if o.name in ("device", "blockdev", "cpu", "smp", "uuid")]
        for words in (line, done.arguments)
    )
    assert before == after


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-snapshot"], "temporary file"),
        (["-display", "gtk"], "window"),
        (["-device", "vfio-pci,host=01:00.0"], "passed-through"),
        (["-device", '{"driver":"vhost-user-fs-pci","chardev":"fs"}'], "process of this host"),
        (["-netdev", "vhost-user,id=n,chardev=c"], "process of this host"),
        (["-netdev", "socket,id=n,fd=7"], "opened for it"),
        (["-netdev", '{"type":"stream","id":"n","addr":{"type":"fd","str":"7"}}'], "opened for it"),
        (["-netdev", "tap,id=n,fd=9"], "no tap interface"),
        (
            ["-add-fd", "set=3,fd=5", "-blockdev", "driver=file,filename=/dev/fdset/3,node-name=d"],
            "opened for it",
        ),
        (
            [
                *("-object", "secret,id=masterKey0,format=raw,file=/x/master-key.aes"),
                *("-object", "secret,id=disk,keyid=masterKey0,iv=AA,data=BB"),
            ],
            "masterKey0",
        ),
        (["-mem-path", "/mnt/pkernfs/x"], "memory-backend-file"),
        (["-run-with", "async-teardown=on,chroot=/srv"], "must be found"),
        (["-object", "pr-manager-helper,id=p,path=/var/lib/p"], "process of this host"),
        (["-drive", "file=/tmp/a.img,if=virtio"], "onto a disk"),
        (["/run/a.img"], "onto a disk"),
    ],
)
def test_what_can_not_be_made_anew_is_refused_by_name(words: list[str], says: str) -> None:
    with pytest.raises(NotAdoptable) as error:
        successor([*SCRIPT, *words], ABOUT)
    assert says in f"{error.value.what}: {error.value.hint}"
    assert error.value.hint


def test_passed_taps_and_sockets_are_made_anew() -> None:
    words = [
        *("-netdev", '{"type":"tap","fds":"33:34","vhost":true,"vhostfds":"35:36","id":"net0"}'),
        *("-chardev", "socket,id=agent,fd=40,server=on,wait=off"),
        *("-chardev", "pty,id=con,logfile=/dev/fdset/0,logappend=on"),
        *("-add-fd", "set=0,fd=41,opaque=con-log"),
    ]
    about = replace(ABOUT, taps={33: "vnet0", 34: "vnet0"}, files={41: "/var/log/web.log"})
    done = successor([*SCRIPT, *words], about)
    text = " ".join(done.arguments)
    assert '"vhost":true,"id":"net0"' not in text
    tap = next(o.properties() for o in parse(done.arguments) if '"tap"' in (o.value or ""))
    assert tap.items == {
        "type": "tap",
        "id": "net0",
        "ifname": "vnet0",
        "script": "no",
        "downscript": "no",
        "vhost": True,
        "queues": 2,
    }
    assert "socket,id=agent,path=/run/pkernfs/web/agent.sock,server=on,wait=off" in text
    assert "pty,id=con,logfile=/var/log/web.log,logappend=on" in text
    assert any("vnet0" in note for note in done.notes)
    assert any("agent.sock" in note for note in done.notes)


@pytest.mark.parametrize(
    "words",
    [
        "-m 1G",
        "-object memory-backend-ram,id=ram,size=1G -machine q35,memory-backend=ram",
        "-object memory-backend-file,id=ram,size=1G,mem-path=/mnt/pkernfs/x",
        "-object memory-backend-memfd,id=ram,size=1G,share=on",
    ],
)
def test_memory_outside_of_a_store_says_what_to_write(words: str) -> None:
    with pytest.raises(NotAdoptable) as error:
        memory_of(words.split())
    assert "share=on" in error.value.hint
    assert '<access mode="shared"/>' in error.value.hint
    assert "memory_backing_dir" in error.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "socket,id=a,path=/x,,y,server=on,wait=off",
        "file,id=a,path=/x,append=on",
        '{"driver":"virtio-blk-pci","drive":"a","bootindex":1}',
        "q35,accel=kvm",
    ],
)
def test_properties_are_written_as_they_were_read(text: str) -> None:
    assert str(Properties.parse(text, "kind")) == text


def test_options_know_which_of_them_have_a_value() -> None:
    assert parse(["-S", "-m", "1G", "--no-reboot", "disk.img", "-enable-kvm"]) == [
        Option("S"),
        Option("m", "1G"),
        Option("no-reboot"),
        Option("", "disk.img"),
        Option("enable-kvm"),
    ]


def test_maps_show_what_is_shared() -> None:
    text = (
        "7f00-7f01 rw-s 00000000 00:2a 7      /mnt/pkernfs/web ram\n"
        "7f01-7f04 rw-s 00001000 00:2a 7      /mnt/pkernfs/web ram\n"
        "7f10-7f11 r-xp 00000000 08:01 9      /usr/bin/qemu\n"
        "7f20-7f21 rw-p 00000000 00:00 0 \n"
    )
    assert adopt_process.parse_maps(text) == (
        Mapping(Path("/mnt/pkernfs/web ram"), 4, shared=True),
        Mapping(Path("/usr/bin/qemu"), 1, shared=False),
    )


def test_the_process_behind_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qmp"
    with pytest.raises(PkernfsError, match="nobody answers"):
        adopt_process.find(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setattr(adopt_process, "_is_qemu", lambda pid: pid == os.getpid())
        assert adopt_process.find(path) == os.getpid()
        # As libvirt does it: another process has made the socket.
        answers = iter([False])
        monkeypatch.setattr(
            adopt_process, "_is_qemu", lambda pid: next(answers, pid == os.getpid())
        )
        assert adopt_process.find(path) == os.getpid()
        monkeypatch.setattr(adopt_process, "_is_qemu", lambda _: False)
        with pytest.raises(PkernfsError, match="0 processes of QEMU"):
            adopt_process.find(path)
    me = adopt_process.read(os.getpid())
    assert me.uid == os.geteuid() and me.directory == Path.cwd()


@pytest.fixture
def stranger(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Found]:
    """A guest that a script started, its memory in the store, its process a fake one."""
    started = host.start("stranger")
    child = process.running(started)
    assert child is not None
    ram = host.places.store / "stranger.ram"
    started.ram.rename(ram)
    started.config_file.unlink()
    started.boot_file.unlink()
    started.directory.rmdir()
    host_socket = host.places.run / "stranger.qmp"
    started.socket.rename(host_socket)
    line = [word.replace("/mnt/pkernfs/web.ram", str(ram)) for word in SCRIPT]
    line[line.index("-drive") : line.index("-drive") + 2] = []
    found = Found(
        pid=child.pid,
        program=Path(host.machine.root.parent / "bin/qemu-system-x86_64"),
        arguments=tuple(line),
        directory=Path("/"),
        uid=os.getuid(),
        gid=os.getgid(),
        mappings=(Mapping(ram, RAM, shared=True),),
    )
    monkeypatch.setattr(adopt_process, "find", lambda _: child.pid)
    monkeypatch.setattr(adopt_process, "read", lambda _: found)
    yield found
    process.kill(child)


def test_an_adopted_guest_is_one_of_the_hosts(
    host: FakeHost, stranger: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket_path = host.places.run / "stranger.qmp"
    done = adopt.adopt(host.places, socket_path, machine=host.machine)
    assert (done.name, done.pid, done.ram_bytes) == ("web", stranger.pid, RAM)
    guest = Guest("web", host.places)
    assert guest.ram.stat().st_size == RAM
    assert guest.config().ram_id == "ram"
    assert guest.config().machine == "pc-q35-11.1"
    assert host.states() == {"web": "running"}
    moved = replace(stranger, mappings=(Mapping(guest.ram, RAM, shared=True),))
    monkeypatch.setattr(adopt_process, "read", lambda _: moved)
    with pytest.raises(PkernfsError, match="is the guest web already"):
        adopt.adopt(host.places, socket_path, machine=host.machine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mappings": ()}, "no file of"),
        ({"mappings": (Mapping(Path("/elsewhere"), RAM, shared=True),)}, "no file of"),
        ({"arguments": (*SCRIPT, "-drive", "file=/no/such.img")}, "not there"),
        ({"arguments": (*SCRIPT, "-device", "edu,id=later")}, "was unplugged"),
        ({"arguments": tuple(word for word in SCRIPT if "id=nic" not in word)}, "was plugged in"),
    ],
)
def test_a_refused_guest_is_left_as_it_was(
    host: FakeHost,
    stranger: Found,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, tuple[str, ...]],
    says: str,
) -> None:
    monkeypatch.setattr(adopt_process, "read", lambda _: replace(stranger, **change))  # type: ignore[arg-type]
    with pytest.raises(PkernfsError, match=says):
        adopt.adopt(host.places, host.places.run / "stranger.qmp", machine=host.machine)
    assert host.states() == {}
    assert (host.places.store / "stranger.ram").stat().st_size == RAM
    assert not Guest("web", host.places).runtime.exists()


@pytest.mark.parametrize("how", ["discards", "empties"])
def test_an_adopted_qemu_keeps_its_memory_when_it_ends(
    host: FakeHost, stranger: Found, how: str
) -> None:
    host.misbehave(how)
    socket_path = host.places.run / "stranger.qmp"
    if how == "empties":
        with pytest.raises(NotAdoptable, match="empties its memory"):
            adopt.adopt(host.places, socket_path, machine=host.machine)
        assert host.states() == {}
        return
    adopt.adopt(host.places, socket_path, machine=host.machine)
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rw") as talk:
        client.connect(str(Guest("web", host.places).socket))
        talk.readline()
        talk.write('{"execute": "qom-get", "arguments": {}}')
        talk.flush()
        assert '"return": false' in talk.readline()
