# SPDX-License-Identifier: GPL-2.0-only
"""An update that is killed: its guard brings everything back, or ``--recover`` does."""

from __future__ import annotations

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.answers import answers

from .refusal import lines
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


# Runs "pkernfs update", which never comes to its jump: it is killed when it has written a
# certain line of its timeline (its guard first if "both" is said), or by somebody else.
_KILLED_AT = r"""
import json, os, signal, sys, time
sys.path.insert(0, "/usr/lib/pkernfs")
from pkernfs.host import kexec
from pkernfs.update import journal
from pkernfs.update.timeline import Timeline
from pkernfs.vmm.config import Places
event, subject, both = sys.argv[1:]
mark = Timeline.mark
def deadly(self, found, about, *args, **kwargs):
    mark(self, found, about, *args, **kwargs)
    if (found, about) != (event, subject):
        return
    if both == "both":
        lines = journal.path_of(Places()).read_text().splitlines()
        os.kill(int(dict(map(json.loads, lines))["guard"]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
Timeline.mark = deadly
kexec.jump = lambda: time.sleep(600)
sys.argv = ["pkernfs", "update"]
from pkernfs.cli import main
main()
"""


def _kill_at(host: Machine, event: str, subject: str, both: str = "update") -> None:
    (host.share / "killed.py").write_text(_KILLED_AT)
    script = f"python3 /mnt/share/killed.py {event} '{subject}' {both}; echo $?"
    assert host.sh(script).stdout.splitlines()[-1] == "137"


def _all_as_before(guest: Tick) -> None:
    guest.counts_on()
    host = guest.host
    # Guests come first; the guard unloads the kernel after that, and its record goes last.
    gone = "for i in $(seq 300); do [ -e /run/pkernfs/update.journal ] || exit 0; sleep 0.2; done"
    host.sh(gone, timeout=120)
    assert lines(host, "cat /sys/kernel/kexec_loaded") == ["0"]
    assert lines(host, "ls /run/pkernfs/update.journal 2>/dev/null || :") == []
    assert lines(host, f"ls {guest.directory}/s* 2>/dev/null || :") == []
    # A filesystem that stayed frozen would let this wait without end.
    host.sh("echo thawed >/mnt/scratch/thawed && sync -f /mnt/scratch", timeout=60).check()


@answers(
    phase="up to the jump",
    failure="killed by SIGKILL at the end of a phase",
    outcome="its guard lets all guests run on at once, thaws disks, unloads the kernel",
)
@pytest.mark.parametrize(
    ("event", "subject"),
    [("end", "check"), ("end", "load"), ("end", "pause"), ("end", "save"), ("begin", "kernel")],
)
def test_killed_in_any_phase_the_guest_runs_on_at_once(
    guest: Tick, event: str, subject: str
) -> None:
    """The last one is after the disks were frozen, right before the jump."""
    _kill_at(guest.host, event, subject)
    _all_as_before(guest)
    if event == "end" and subject == "save":
        report = demo.report_of(guest.host)
        assert (report["outcome"], report["text"]) == ("rolled back", "it was killed")
        assert [vm["survived"] for vm in report["vms"]] == [True]


@answers(
    phase="up to the jump",
    failure="killed together with its guard",
    outcome="paused until pkernfs update --recover brings all back; no other update begins",
)
def test_killed_together_with_its_guard_it_is_undone_by_recover(guest: Tick) -> None:
    host = guest.host
    _kill_at(host, "begin", "kernel", "both")
    count = guest.count()
    listed = host.run(["pkernfs", "vm", "list"]).check().stdout
    assert "postmigrate" in listed
    assert guest.count() == count
    assert lines(host, "cat /sys/kernel/kexec_loaded") == ["1"]
    refused = host.run(["pkernfs", "update"])
    assert refused.status == 1
    assert "was killed and is not undone (guests tick)" in refused.stderr
    assert "as before: tick" in host.run(["pkernfs", "update", "--recover"]).check().stdout
    _all_as_before(guest)
    assert "nothing to undo" in host.run(["pkernfs", "update", "--recover"]).check().stdout


@answers(
    phase="up to the jump",
    failure="killed by SIGKILL at any moment",
    outcome="its guard brings everything back",
)
def test_killed_at_random_moments_the_guest_runs_on(guest: Tick) -> None:
    host = guest.host
    (host.share / "killed.py").write_text(_KILLED_AT)
    for seconds in (1.0, 2.5, 4.0, 7.0):
        host.sh(
            f"python3 /mnt/share/killed.py no such update & sleep {seconds}; kill -KILL $!; "
            "wait $!; flock -w 60 /run/pkernfs/update.lock true"
        ).check()
        _all_as_before(guest)
