# SPDX-License-Identifier: GPL-2.0-only
"""How the blackout and its phases are read from what the consoles said."""

from __future__ import annotations

import pytest

from bench.measures.blackout import Tick, gap, phases, ticks
from bench.stage import GuestSize, qemu, tick_arguments
from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Line

_CONSOLE = [
    Line(1.0, "[    9.0] kexec_core: Starting new kernel, which is an old line"),
    Line(11.0, "[   20.0] bench: jump"),
    Line(11.5, "[   20.1] kexec_core: Starting new kernel"),
    Line(13.0, "[    0.0] Linux version 7.3.4"),
    Line(16.0, "[    2.0] Run /init as init process"),
    Line(17.0, "[    3.0] bench: restore"),
]


def test_phases_follow_each_other_without_a_gap() -> None:
    found = phases(_CONSOLE, 10.0, 20.0)
    assert found == [
        ("save", 10.0, 11.5),
        ("leave", 11.5, 13.0),
        ("kernel", 13.0, 16.0),
        ("user space", 16.0, 17.0),
        ("restore", 17.0, 20.0),
    ]


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(PkernfsError, match="Run /init"):
        phases(_CONSOLE[:4], 10.0, 20.0)


def test_the_gap_is_between_ticks_of_the_same_guest() -> None:
    lines = [
        Line(1.0, "00000010"),
        Line(1.1, "00000011"),
        Line(1.15, "0000"),
        Line(9.0, "00000012"),
        Line(9.1, "00000013"),
    ]
    before, after = gap(ticks(lines))
    assert (before, after) == (Tick(1.1, 0x11), Tick(9.0, 0x12))


@pytest.mark.parametrize("after", [0x01, 0x11, 0x4000])
def test_a_guest_that_began_anew_has_not_survived(after: int) -> None:
    with pytest.raises(PkernfsError, match="counted"):
        gap([Tick(1.0, 0x10), Tick(1.1, 0x11), Tick(9.0, after), Tick(9.1, after + 1)])


def test_large_guests_are_sparse_and_have_an_address_for_each_byte() -> None:
    small, large = GuestSize.of(256 << 20), GuestSize.of(1 << 40)
    assert (small.name, small.sparse, large.name, large.sparse) == ("256M", False, "1T", True)
    assert "qemu64" in tick_arguments(small.ram)
    assert "qemu64,phys-bits=46" in tick_arguments(large.ram)
    assert "-incoming file:/x" in qemu("/ram", small.ram, "file:/x")
    assert "-incoming" not in qemu("/ram", small.ram)
