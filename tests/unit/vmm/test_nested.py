# SPDX-License-Identifier: GPL-2.0-only
"""Guests that run guests of their own, before a kernel that would not let them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.doctor import Status, default_kernel
from pkernfs.host.kernels import Kernel
from pkernfs.update import doctor, handover
from pkernfs.update.handover import Request
from pkernfs.vmm import nested
from tests.answers import answers
from tests.unit.vmm.fakes import FakeHost

_NEXT = Kernel("7.3.4", Path("/boot/vmlinuz-7.3.4"), None)


@pytest.fixture
def nests(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host with a guest that has run guests on its second processor."""
    stats = [
        {"provider": "kvm", "qom-path": f"cpu{cpu}", "stats": [{"name": "nested_run", "value": 7}]}
        for cpu in range(2)
    ]
    stats[0]["stats"] = [{"name": "nested_run", "value": 0}]
    file = host.root.parent / "answers"
    file.write_text(json.dumps({"running": {"query-stats": stats}, "next": {}}))
    monkeypatch.setenv("FAKE_ANSWERS", str(file))
    host.start("a")
    return host


def _dry_run(host: FakeHost, *override: str, append: str = "") -> None:
    request = Request(override=frozenset(override), append=append)
    handover.dry_run(host.machine, host.places, request)


@answers(
    phase="check",
    failure="a guest runs guests of its own, and the next kernel's KVM does not let it",
    outcome="refused, unless --override nested.NAME; names it and the parameter",
)
def test_a_guest_that_nests_stops_the_update(nests: FakeHost) -> None:
    with pytest.raises(PkernfsError, match="guest a runs guests of its own") as caught:
        _dry_run(nests)
    assert "allow_unsafe_mappings=1" in caught.value.hint
    assert "--override nested.a" in caught.value.hint
    _dry_run(nests, "nested.a")
    _dry_run(nests, append="kvm.allow_unsafe_mappings=1")
    assert nests.states() == {"a": "running"}


def test_doctor_names_the_guest(nests: FakeHost) -> None:
    found = doctor.examine(nests.machine, nests.places, default_kernel(nests.machine))
    (finding,) = [each for each in found if each.id == "nested.a"]
    assert (finding.status, finding.overridable) == (Status.BLOCKER, True)


def test_a_guest_that_does_not_nest_is_taken(host: FakeHost) -> None:
    host.start("a")
    _dry_run(host)


@pytest.mark.parametrize(
    ("release", "word", "option", "pages", "refused"),
    [
        ("7.3.4", "", "", "0", True),
        ("6.13-rc1", "", "", "0", True),
        ("6.12.118+deb13-amd64", "", "", "0", False),
        ("7.3.4", "", "", "1", False),
        ("7.3.4", "kvm.allow_unsafe_mappings=1", "", "0", False),
        ("7.3.4", "kvm.allow_unsafe_mappings=0", "allow_unsafe_mappings=1", "0", True),
        ("7.3.4", "", "nx_huge_pages=off allow_unsafe_mappings=Y", "0", False),
        ("7.3.4", "", "allow_unsafe_mappings=N", "0", True),
    ],
)
def test_which_kernel_refuses(
    host: FakeHost, release: str, word: str, option: str, pages: str, refused: bool
) -> None:
    host.put("proc/cmdline", f"{host.machine.read('proc/cmdline')} {word}")
    host.put("etc/modprobe.d/kvm.conf", f"# of ours\noptions kvm {option}\noptions kvm_amd npt=1")
    host.put("sys/fs/pkernfs/pkernfs/pages", pages)
    assert nested.refuses(host.machine, Kernel(release, Path("/v"), None)) is refused


@pytest.mark.parametrize(("intel", "amd", "said"), [("Y", "0", 1), ("N", "1", 1), ("N", "0", 0)])
def test_a_host_that_offers_it_is_told(host: FakeHost, intel: str, amd: str, said: int) -> None:
    host.put("sys/module/kvm_intel/parameters/nested", intel)
    host.put("sys/module/kvm_amd/parameters/nested", amd)
    found = list(nested.of_host(host.machine, _NEXT))
    assert [(each.id, each.status) for each in found] == [("nested", Status.NOTE)] * said
    assert not list(nested.of_host(host.machine, None))
