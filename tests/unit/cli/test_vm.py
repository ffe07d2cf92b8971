# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs vm list`` says what each guest does, and what to do about it."""

from __future__ import annotations

from pkernfs.cli import vm
from pkernfs.vmm.guests import GuestStatus
from pkernfs.words import table


def test_a_guest_that_waits_says_for_what() -> None:
    found = [
        GuestStatus("web", "running", 16 << 30, 4711, "/mnt/pkernfs"),
        GuestStatus("db", "saved", 32 << 20, None, "/mnt/pkernfs-node1"),
        GuestStatus("mail", "postmigrate", 1 << 30, 12, "/mnt/pkernfs"),
    ]
    head, web, db, mail = table(vm._rows(found), left=(0, 1, 4, 5))
    assert head.split() == ["guest", "state", "memory", "process", "store"]
    assert web.split() == ["web", "running", "16", "GiB", "4711", "/mnt/pkernfs"]
    assert db.endswith("/mnt/pkernfs-node1  waits for pkernfs resume")
    assert "pkernfs update --recover" in mail
