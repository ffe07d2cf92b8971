# SPDX-License-Identifier: GPL-2.0-only
"""The table of failures in docs/operations.md is the one that the tests say."""

from __future__ import annotations

from tests import answers


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    text = answers.DOC.read_text(encoding="utf-8")
    assert answers.replaced(text) == text, "python -m tests.answers --write"


def test_every_phase_has_an_answer() -> None:
    assert {answer.phase for answer in answers.collect()} == set(answers.PHASES)
    assert all("|" not in answer.failure + answer.outcome for answer in answers.collect())
