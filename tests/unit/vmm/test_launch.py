# SPDX-License-Identifier: GPL-2.0-only
"""How the next kernel's launches are written down."""

from __future__ import annotations

import json

import pytest

from pkernfs.vmm import protocol
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
