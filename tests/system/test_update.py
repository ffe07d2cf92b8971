# SPDX-License-Identifier: GPL-2.0-only
"""The update on real kernels: what it keeps, and that every failure leaves the guests running."""

from __future__ import annotations

import json
import re

import pytest

from pkernfs.lab import demo, tree
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

from . import tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

# Random bytes where the guest's own code never writes.
_FILL_RAM = (
    "dd if=/dev/urandom of={0}/ram bs=1M seek=8 count=16 conv=notrunc status=none && "
    "dd if={0}/ram bs=1M skip=8 count=16 status=none | sha256sum"
)
_DIGEST_RAM = "dd if={0}/ram bs=1M skip=8 count=16 status=none | sha256sum"


def _lines(host: Machine, script: str) -> list[str]:
    return host.sh(script).check().stdout.splitlines()


def test_an_update_keeps_files_guests_and_tells_the_truth(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    tree.make(host)
    files = tree.describe(host)
    assert len(files) > 50
    guests = [
        tick.start(host, "one", "32M"),
        tick.start(host, "two", "64M", arguments=("-smp", "2")),
    ]
    _check_processors(host)
    digests = [_lines(host, _FILL_RAM.format(guest.directory)) for guest in guests]
    before = [guest.count() for guest in guests]
    boot_ids = [_lines(host, "cat /proc/sys/kernel/random/boot_id")[0]]
    kernels = [_lines(host, "uname -r")[0]]

    told = demo.update(host, ["--json"])

    boot_ids.append(_lines(host, "cat /proc/sys/kernel/random/boot_id")[0])
    kernels.append(_lines(host, "uname -r")[0])
    assert boot_ids[0] != boot_ids[1]
    assert kernels[1].startswith("7.3")
    for guest, count, digest in zip(guests, before, digests, strict=True):
        after = guest.wait_count(count + 1)
        # A guest that had started anew would count from the beginning.
        assert count < after < count + 2000
        assert _lines(host, _DIGEST_RAM.format(guest.directory)) == digest
        guest.counts_on()
    assert tree.describe(host) == files
    host.run(["pkernfs", "check"]).check()
    _check_report(host, kernels, boot_ids)
    _check_events(told, kernels)
    _check_page(host)
    assert "pkernfs_update=" in host.sh("cat /proc/cmdline").stdout
    assert _lines(host, "ls /mnt/pkernfs/vms/*/state /mnt/pkernfs/vms/*/saved.json || :") == []


def _check_processors(host: Machine) -> None:
    """Of the host there are two, and its guests are emulated on them."""
    assert _lines(host, "nproc") == ["2"]
    words = _lines(host, r"tr '\0' ' ' </proc/$(pgrep -f '[g]uest=two')/cmdline")[0]
    assert " -accel tcg " in words


def _check_events(told: str, kernels: list[str]) -> None:
    """What came before the jump; the last line may be cut, or lost, with the kernel."""
    events = [json.loads(line) for line in told.splitlines()[:-1]]
    assert {event["schema"] for event in events} == {"pkernfs-event/1"}
    (plan,) = [event["plan"] for event in events if event["event"] == "plan"]
    assert [plan["kernel_before"], plan["kernel_after"]] == kernels
    assert [vm["name"] for vm in plan["guests"]] == ["one", "two"]
    order = [(event["event"], event["subject"]) for event in events]
    assert order[0] == ("begin", "check")
    assert order.index(("end", "check")) < order.index(("end", "load"))


def _check_page(host: Machine) -> None:
    """Bars of both guests on the page, the longer blackout the wider bar."""
    host.run(["pkernfs", "report", "--html", "/mnt/share/page.html"]).check()
    page = (host.share / "page.html").read_text()
    bars = re.findall(
        r'<rect class="dark" [^>]*width="([\d.]+)"[^>]*><title>(\w+): blackout ([\d.]+) s', page
    )
    assert [name for _, name, _ in bars] == ["one", "two"]
    (width, blackout), (other_width, other) = [(float(w), float(s)) for w, _, s in bars]
    assert width / other_width == pytest.approx(blackout / other, rel=0.01)
    log = host.sh("cat /run/pkernfs-lab/resume.log").check().stdout
    assert re.search(r"^two: blackout [\d.]+ s$", log, re.M), log


def _check_report(host: Machine, kernels: list[str], boot_ids: list[str]) -> None:
    report = demo.report_of(host)
    assert report["outcome"] == "completed"
    assert report["store"] == "clean"
    assert report["host"] == {
        "kernel_before": kernels[0],
        "kernel_after": kernels[1],
        "boot_id_before": boot_ids[0],
        "boot_id_after": boot_ids[1],
    }
    assert [(vm["name"], vm["ram_bytes"], vm["survived"]) for vm in report["vms"]] == [
        ("one", 32 << 20, True),
        ("two", 64 << 20, True),
    ]
    assert {vm["accelerator"] for vm in report["vms"]} == {"tcg"}
    assert host.run(["pkernfs", "report"]).check().stdout.count("runs, emulated") == 2
    phases = {phase["name"]: phase for phase in report["phases"]}
    assert list(phases)[:2] == ["check", "load"]
    assert all(phase["start_s"] <= phase["end_s"] for phase in report["phases"])
    # What can be done before the pause is done before it.
    assert phases["load"]["end_s"] <= phases["pause"]["start_s"]
    for vm in report["vms"]:
        own = {phase["name"]: phase for phase in vm["phases"]}
        assert list(own) == ["pause", "save", "fingerprint", "start", "load state", "run"]
        assert vm["stopped_s"] == pytest.approx(own["pause"]["end_s"], abs=0.01)
        assert vm["running_s"] == pytest.approx(own["run"]["end_s"], abs=0.01)
        # The memory is not in the state.
        assert 0 < vm["state_bytes"] < 8 << 20
        blackout = phases["run"]["end_s"] - phases["pause"]["start_s"]
        assert phases["kernel"]["end_s"] - phases["kernel"]["start_s"] < vm["blackout_s"]
        assert vm["blackout_s"] <= blackout + 0.1
    assert report["clock"]["name"] == "tsc"
    # 2 ms on an idle machine; one that emulates beside other work was 150 ms off.
    assert report["clock"]["exact_to_s"] < 1
    stored = host.sh("cat /mnt/pkernfs/updates/*/report.json").check().stdout
    assert json.loads(stored) == report
    table = host.run(["pkernfs", "report"]).check().stdout
    assert all(word in table for word in ("hand over", "blackout", "one", "two", "stamp counter"))
