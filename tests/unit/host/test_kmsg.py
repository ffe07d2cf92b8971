# SPDX-License-Identifier: GPL-2.0-only
"""What is read from the kernel log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pkernfs.host.kmsg import first_program_ns
from pkernfs.host.machine import Machine

_RECORDS = (
    b"6,0,0,-;Linux version 7.3.4\n",
    b"6,612,3896057,-;Run /init as init process\n",
    b"6,613,4334156,-;Run /other as init process\n",
)


_TIME = 3_896_057_000


@pytest.mark.parametrize(("count", "found"), [(0, None), (1, None), (2, _TIME), (3, _TIME)])
def test_the_first_program_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, found: int | None
) -> None:
    """Every read of /dev/kmsg gives one record; at the end there is nothing to read yet."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").touch()
    records = iter(_RECORDS[:count])

    def read(fd: int, size: int) -> bytes:
        try:
            return next(records)
        except StopIteration:
            raise BlockingIOError from None

    monkeypatch.setattr(os, "read", read)
    assert first_program_ns(Machine(tmp_path)) == found


def test_a_host_without_a_log_has_no_answer(tmp_path: Path) -> None:
    assert first_program_ns(Machine(tmp_path)) is None
