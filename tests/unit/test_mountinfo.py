# SPDX-License-Identifier: GPL-2.0-only
"""What is mounted where."""

from __future__ import annotations

from pathlib import Path

from pkernfs.host.machine import Machine
from pkernfs.mountinfo import Mounted, parse

TEXT = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 22 0:40 / /mnt/a\\040store rw shared:3 master:4 - pkernfs main rw
41 22 0:41 / /run rw - tmpfs  rw,size=4k
42 22
"""


def test_parse() -> None:
    assert parse(TEXT) == [
        Mounted("8:1", Path("/"), "ext4", "/dev/sda1", ("rw", "errors=remount-ro")),
        Mounted("0:40", Path("/mnt/a store"), "pkernfs", "main", ("rw",)),
        Mounted("0:41", Path("/run"), "tmpfs", "", ("rw", "size=4k")),
    ]


def test_a_store_at_a_path_with_a_space(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(TEXT)
    machine = Machine(tmp_path)
    assert machine.filesystem_of(Path("/mnt/a store")) == "pkernfs"
    assert machine.mounts_of("main") == {Path("/mnt/a store")}
