# SPDX-License-Identifier: GPL-2.0-only
"""A guest's processor, written out for its successor; QEMU's own words are those of 11.1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.update import handover
from pkernfs.update.handover import Request
from pkernfs.update.waiting import what_now
from pkernfs.vmm import command, processor
from pkernfs.vmm.config import GuestConfig
from pkernfs.vmm.differences import differences
from pkernfs.vmm.living import Contents
from pkernfs.vmm.processor import Processor
from tests.unit.update.fakes import FakeKexec, jumper, kexec_to
from tests.unit.vmm.fakes import FakeHost, host

__all__ = ["host", "jumper"]

_SEEN = Processor("EPYC-v4", {"svm": False, "rdrand": True, "sse4.1": True})
_REFUSED = """\
qemu-system-x86_64: warning: This feature depends on other features that were not requested: \
MSR(48Bh).vmx-ept [bit 1]
qemu-system-x86_64: warning: host doesn't support requested feature: \
CPUID[eax=01h].ECX.rdrand [bit 30]
qemu-system-x86_64: warning: host doesn't support requested feature: CPUID.01H:ECX.sse4.1 [bit 19]
qemu-system-x86_64: warning: host doesn't support requested feature: \
CPUID[eax=0Dh,ecx=01h].EAX [bit 9]
qemu-system-x86_64: Host doesn't support requested features
"""


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("", "EPYC-v4,rdrand=on,sse4.1=on,svm=off,enforce=on"),
        ("-cpu max -cpu host", "host,rdrand=on,sse4.1=on,svm=off,enforce=on"),
        (
            "-cpu host,+svm,-sse4.1,kvm=off,hv-time,enforce=off",
            "host,svm=on,sse4.1=off,kvm=off,hv-time,enforce=off"
            ",rdrand=on,sse4.1=on,svm=off,enforce=on",
        ),
    ],
)
def test_each_feature_is_said_and_counts_more_than_what_was_typed(typed: str, written: str) -> None:
    assert processor.written_out(typed.split(), _SEEN) == written


def test_what_the_running_qemu_does_not_know_is_not_had() -> None:
    newer = Processor("EPYC-v4", {**_SEEN.features, "avx11": True, "avx12": False})
    unknown = processor.more(_SEEN, newer)
    assert unknown == ["avx11"]
    assert "avx11=off" in processor.written_out((), _SEEN, unknown)
    (found,) = differences(Contents(processor=_SEEN), Contents(processor=newer))
    assert found.text == "processor: avx11 would be otherwise"


def test_a_processor_that_is_not_known_is_left_as_typed() -> None:
    assert processor.written_out(["-cpu", "host"], Processor()) == ""


def test_only_a_start_from_a_saved_state_has_it() -> None:
    config = GuestConfig("g", 1, "/q", "11.1.3", "m", ("-cpu", "host", "-smp", "2"), "/")
    config = replace(config, processor="host,rdrand=on,enforce=on")
    resumed = command.start_arguments(config, 3, incoming=True)
    assert [value for word, value in command.options(resumed) if word == "cpu"] == [
        config.processor
    ]
    assert "-smp" in resumed
    assert command.start_arguments(config, 3, incoming=False)[1:5] == list(config.arguments)


def test_what_qemu_lacks_is_read_by_name() -> None:
    assert processor.read_lost(_REFUSED) == ("vmx-ept", "rdrand", "sse4.1", "bit 9")
    assert processor.read_lost("qemu: no disk") == ()


def test_a_guest_that_lost_a_feature_is_told_what_to_type(host: FakeHost) -> None:
    guest = host.start("a")
    assert "--any-processor" not in what_now(guest)
    guest.log.write_text(_REFUSED)
    assert what_now(guest).endswith("pkernfs resume --any-processor a")
    # QEMU warns, and goes on, where nothing is enforced.
    guest.log.write_text("".join(_REFUSED.splitlines(keepends=True)[:-1]))
    assert "--any-processor" not in what_now(guest)


def _said(**features: bool) -> dict[str, Any]:
    values = [{"name": name, "type": "bool", "value": has} for name, has in features.items()]
    values.append({"name": "type", "type": "string", "value": "max-x86_64-cpu"})
    values.append({"name": "hv-time", "type": "bool", "value": True})
    known = {"model-id": "x", "apic": False, **features}
    return {
        "query-cpus-fast": [{"qom-path": "/cpu"}],
        "query-cpu-model-expansion": {"model": {"name": "base", "props": known}},
        "qom-list-get": [{"properties": values}],
    }


@pytest.fixture
def answers_of(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What QEMUs say is in this file."""
    file = host.root.parent / "answers"
    monkeypatch.setenv("FAKE_ANSWERS", str(file))
    yield file


def test_an_update_writes_down_the_processor_of_the_running_qemu(
    host: FakeHost, answers_of: Path, jumper: FakeKexec
) -> None:
    guest = host.start("a", "-cpu", "host,+rdrand")
    said = _said(rdrand=True, svm=False, apic=False)
    answers_of.write_text(json.dumps({"running": said, "next": said}))
    before = guest.config()
    handover.dry_run(host.machine, host.places, Request())
    assert guest.config() == before
    kexec_to(host, jumper)
    assert guest.config().processor == "host,rdrand=on,rdrand=on,svm=off,enforce=on"
    assert guest.config().arguments == before.arguments
    (file,) = host.places.updates.glob("*/launch")
    assert "host,rdrand=on,rdrand=on,svm=off,enforce=on" in file.read_text().split("\0")


def test_a_feature_of_a_newer_qemu_is_tried_once_more_without(
    host: FakeHost, answers_of: Path
) -> None:
    host.start("a", "-cpu", "host")
    said = {
        "running": _said(rdrand=True),
        "next": _said(rdrand=True, avx11=True),
        "when": ["avx11=off", _said(rdrand=True, avx11=False)],
    }
    answers_of.write_text(json.dumps(said))
    handover.dry_run(host.machine, host.places, Request())
    del said["when"]
    answers_of.write_text(json.dumps(said))
    with pytest.raises(PkernfsError, match="processor: avx11 would be otherwise"):
        handover.dry_run(host.machine, host.places, Request())


class _Old:
    """A session with a QEMU that says one property at a time."""

    async def execute(self, name: str, arguments: dict[str, Any]) -> Any:
        said = _said(rdrand=True, svm=False)
        if name == "qom-get":
            (found,) = said["qom-list-get"]
            values = {entry["name"]: entry["value"] for entry in found["properties"]}
            return values[arguments["property"]]
        assert name != "qom-list-get"
        return said[name]


def test_an_older_qemu_is_asked_for_one_after_the_other() -> None:
    old: Any = _Old()
    found = asyncio.run(processor.ask(old, (9, 0, 0), "/cpu"))
    assert found == Processor("max", {"rdrand": True, "svm": False})
