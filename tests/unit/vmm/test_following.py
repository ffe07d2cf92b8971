# SPDX-License-Identifier: GPL-2.0-only
"""A command line that follows the disks, where that is simple."""

from __future__ import annotations

import pytest

from pkernfs.vmm.following import followed
from pkernfs.vmm.living import Disk, Image

_BASE = Disk((Image("raw", "/v/base"),))
_SNAP = Disk((Image("qcow2", "/v/snap"), Image("raw", "/v/base")))
_JSON = 'json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/v/part"}}'


def _followed(text: str, running: Disk, written: Disk = _BASE, name: str = "d") -> str | None:
    found = followed(text.split(), {name: running}, {name: written}, "/v")
    return None if found is None else " ".join(found)


@pytest.mark.parametrize(
    ("before", "running", "after"),
    [
        (
            "-drive file=/v/base,format=raw,if=virtio,id=d -smp 2",
            _SNAP,
            "-drive file=/v/snap,format=qcow2,if=virtio,id=d -smp 2",
        ),
        ("-drive id=d,file=/v/base", _SNAP, "-drive file=/v/snap,id=d,format=qcow2"),
        ("-drive file=/v/base,format=raw", _SNAP, "-drive file=/v/snap,format=qcow2"),
        ("-drive file=/v/base,media=cdrom,id=d", Disk(()), "-drive media=cdrom,id=d"),
        (
            "-drive file=/v/base,id=d",
            Disk((Image("raw", "/v/a,b"),)),
            "-drive file=/v/a,,b,id=d,format=raw",
        ),
    ],
)
def test_a_plain_drive_gets_what_is_in_it_now(before: str, running: Disk, after: str) -> None:
    assert _followed(before, running) == after


def test_a_drive_that_was_empty_gets_its_medium() -> None:
    assert (
        _followed("-drive media=cdrom,id=d", _BASE, Disk(()))
        == "-drive file=/v/base,media=cdrom,id=d,format=raw"
    )


@pytest.mark.parametrize(
    ("before", "running"),
    [
        ("-drive file=/v/base,id=d", _BASE),  # nothing to follow
        ("-blockdev driver=file,filename=/v/base,node-name=d", _SNAP),
        ("-drive file=/v/base -drive file=/v/base", _SNAP),  # which?
        ("-drive file=/v/base,id=d,backing.driver=raw", _SNAP),
        ("-drive file=/v/base,id=d,snapshot=on", _SNAP),
        ("-drive file=/v/base,id=other", _SNAP),
        ("-drive file=/v/base,id=d", Disk((Image("raw", _JSON),))),  # more than a path
        ("-drive file=/v/base,id=d", Disk((Image("raw", "/tmp/gone"),))),
    ],
)
def test_what_is_not_simple_is_left_as_it_is(before: str, running: Disk) -> None:
    assert _followed(before, running) is None


def test_one_disk_that_can_not_be_followed_leaves_all_as_they_are() -> None:
    words = ["-drive", "file=/v/base,id=d", "-blockdev", "driver=raw,file=f,node-name=e"]
    assert followed(words, {"d": _SNAP, "e": _SNAP}, {"d": _BASE, "e": _BASE}, "/v") is None
