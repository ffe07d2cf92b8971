# SPDX-License-Identifier: GPL-2.0-only
"""Numbers and tables for people."""

from __future__ import annotations

import pytest

from pkernfs.words import count, size, table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (285218, "278.5 KiB"), (32 << 20, "32 MiB"),
        (16 << 30, "16 GiB"), (3 << 39, "1.5 TiB"), ((1 << 30) - 1, "1024 MiB"),
    ],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


def test_counts() -> None:
    assert [count(number, "guest") for number in (0, 1, 2)] == ["0 guests", "1 guest", "2 guests"]


def test_columns_are_as_wide_as_their_widest_entry() -> None:
    rows = [["guest", "s", ""], ["a-long-name", "1.000", "runs"], ["b", "10.000", ""]]
    assert list(table(rows)) == [
        "guest             s",
        "a-long-name   1.000  runs",
        "b            10.000",
    ]
