# SPDX-License-Identifier: GPL-2.0-only
"""What can't be preserved is said in one place."""

from __future__ import annotations

from tests import refusals

#: dma_message[] in kernel/dma/device.c, CANDIDATE_LINE_MAX in control.c.
_ROOM = 192


def test_the_documentation_has_every_refusal() -> None:
    assert len(refusals.rows()) == refusals.HEADER.read_text().count("\nDMA_REFUSAL(")
    assert refusals.DOC.read_text() == refusals.written()


def test_each_fits_into_a_line_of_the_module() -> None:
    for words, why in refusals.rows():
        assert len(f"0000:00:00.0 can't be preserved: it {words}: {why}") < _ROOM
