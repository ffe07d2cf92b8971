# SPDX-License-Identifier: GPL-2.0-only
"""How the next kernel's launches are written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pkernfs.vmm import launch, protocol
from pkernfs.vmm.launch import Launch, dump, parse
from tests.unit.vmm.fakes import FakeHost

_LAUNCH = Launch(
    "a", "/s/vms/a", "/s/vms/a/ram", 4096, "/r/a", "/", "1", "{}\n{}\n", ("q", "", "x\ny")
)


def test_launches_are_read_as_they_were_written() -> None:
    for launches in ([], [_LAUNCH], [_LAUNCH, _LAUNCH]):
        assert [vars(it) for it in parse(dump(launches))] == [vars(it) for it in launches]


@pytest.mark.parametrize("text", ["", "something else", "pkernfs-launch/1", "pkernfs-launch/2\00"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_a_list_that_is_cut_short_is_refused() -> None:
    words = dump([_LAUNCH, _LAUNCH]).split("\0")
    for count in range(len(words)):
        with pytest.raises(ValueError):
            parse("\0".join(words[:count]))


def test_a_launch_is_complete(host: FakeHost) -> None:
    guest = host.start("a", "-smp", "2")
    it = protocol.launch_of(guest)
    assert (it.ram, it.ram_bytes) == (str(guest.ram), guest.ram.stat().st_size)
    assert it.argv[0] == guest.config().qemu
    assert it.argv[it.argv.index("-smp") :][:2] == ("-smp", "2")
    assert "-incoming" in it.argv
    requests = [json.loads(line) for line in it.requests.splitlines()]
    assert [request["execute"] for request in requests] == [
        "qmp_capabilities",
        "migrate-set-capabilities",
        "migrate-set-parameters",
        "migrate-incoming",
    ]
    assert requests[-1]["arguments"]["uri"] == f"file:{guest.state}"


@pytest.mark.parametrize(("ram_bytes", "told"), [(launch.LARGE - 1, False), (launch.LARGE, True)])
def test_only_the_qemu_of_a_large_guest_gets_huge_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ram_bytes: int, told: bool
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    pid, _ = launch.spawn(("/bin/sh", "-c", "env"), "/", str(tmp_path / "run"), ram_bytes)
    os.waitpid(pid, 0)
    said = (tmp_path / "run/qemu.log").read_text()
    assert "PATH=" in said
    assert ("GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in said) == told


def test_who_sets_tunables_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    pid, _ = launch.spawn(("/bin/sh", "-c", "env"), "/", str(tmp_path / "run"), launch.LARGE)
    os.waitpid(pid, 0)
    assert "GLIBC_TUNABLES=glibc.malloc.check=0\n" in (tmp_path / "run/qemu.log").read_text()


@pytest.mark.parametrize(
    ("argv", "loads"),
    [
        (("qemu", "-netdev", "tap,id=n,ifname=tap0"), True),
        (("qemu", "-netdev", '{"type":"tap","id":"n"}'), True),
        (("qemu", "-netdev", "id=n,type=tap"), True),
        (("qemu", "-netdev", "user,id=n"), False),
    ],
)
def test_the_driver_of_taps_is_loaded_where_nobody_has_done_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], loads: bool
) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(os, "spawnlp", lambda _, *words: said.append(words))
    launch._have_taps(argv, str(tmp_path / "tun"))
    assert said == ([("modprobe", "modprobe", "-q", "tun")] if loads else [])
    said.clear()
    (tmp_path / "tun").touch()
    launch._have_taps(argv, str(tmp_path / "tun"))
    assert said == []
