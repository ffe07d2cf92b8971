# SPDX-License-Identifier: GPL-2.0-only
"""A next kernel with a lesser processor: no guest runs on one that it has not seen."""

from __future__ import annotations

import json

import pytest

from pkernfs.errors import PARTLY
from pkernfs.lab import demo
from tests.answers import answers
from tests.conftest import HostFactory

from . import tick

# The features of a processor are this host's only under KVM.
pytestmark = [pytest.mark.system, pytest.mark.kvm, pytest.mark.timeout(1200)]


@answers(
    phase="resume",
    failure="the next kernel (or microcode) has no more a feature that a guest's processor has",
    outcome="that guest stays saved, and the feature is named; the others run. "
    "pkernfs resume --any-processor NAME lets it run without",
)
def test_a_feature_that_is_gone_keeps_its_guest_saved(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12")
    plain = tick.start(host, "plain")  # its model has no rdrand
    fitted = tick.start(host, "fitted", arguments=("-cpu", "host"))
    counts = plain.count(), fitted.count()
    lesser = ["--append", "clearcpuid=rdrand", "--watchdog", "0"]
    assert host.run(["pkernfs", "update", *lesser]).status is None
    hello = host.wait_reboot()
    assert hello.resume == PARTLY
    assert counts[0] < plain.wait_count(counts[0] + 1) < counts[0] + 2000
    errors = {vm["name"]: vm["error"] for vm in demo.report_of(host)["vms"]}
    assert errors["plain"] == ""
    assert "rdrand" in errors["fitted"], errors
    again = host.run(["pkernfs", "resume"])
    assert again.status == 1
    assert "rdrand" in again.stderr
    assert "pkernfs resume --any-processor fitted" in again.stderr
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    assert {vm["name"]: vm["state"] for vm in listed} == {"plain": "running", "fitted": "saved"}

    assert host.run(["pkernfs", "resume", "--any-processor", "plain"]).status == 1
    host.run(["pkernfs", "resume", "--any-processor", "fitted"]).check()
    assert counts[1] < fitted.wait_count(counts[1] + 1) < counts[1] + 2000
    # What it has now is what the next kernel has to have.
    host.run(["pkernfs", "update", "--dry-run"]).check()
