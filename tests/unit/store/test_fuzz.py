# SPDX-License-Identifier: GPL-2.0-only
"""Whatever a range contains, the checker says what it is and never raises."""

from __future__ import annotations

import json
import os
import random
from collections import Counter

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.store.check import CheckResult, check
from pkernfs.store.export import dump_value
from pkernfs.store.findings import Code, Verdict
from tests.conftest import Tell
from tests.fuzzing import IMAGES

from .mutate import BASES, Mutator

SEED = int(os.environ.get("PKERNFS_FUZZ_SEED", "1"))


def use(result: CheckResult) -> None:
    """All that the verbs do with a result."""
    json.dumps(dump_value(result))
    for finding in result.findings:
        assert str(finding).isprintable(), str(finding)
    if result.tree is None:
        assert not result.mountable
        return
    assert result.mountable <= (result.tree.usage().free_blocks >= 0)
    try:
        assert len(list(result.tree.walk())) <= len(result.tree.inodes)
    except PkernfsError:
        assert not result.mountable


def fuzz(images: int, seed: int) -> tuple[Counter[Verdict], Counter[Code]]:
    rng = random.Random(seed)
    mutators = [Mutator(base(), rng) for base in BASES]
    verdicts: Counter[Verdict] = Counter()
    codes: Counter[Code] = Counter()
    for number in range(images):
        with mutators[number % len(mutators)].damaged() as writer:
            result = check(writer.image())
            use(result)
        verdicts[result.verdict] += 1
        codes.update({finding.code for finding in result.findings})
    for mutator in mutators:
        assert check(mutator.writer.image()).verdict is Verdict.CLEAN, "not put back in order"
    return verdicts, codes


def test_fuzz_a_little() -> None:
    verdicts, codes = fuzz(3000, SEED)
    assert set(verdicts) == set(Verdict)
    assert len(codes) > len(Code) * 0.9, f"never seen: {set(Code) - set(codes)}"


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
def test_fuzz_a_lot(tell: Tell) -> None:
    verdicts, codes = fuzz(IMAGES, SEED)
    tell(f"{IMAGES} images, seed {SEED}: {dict(verdicts)}")
    assert set(codes) == set(Code), f"never seen: {set(Code) - set(codes)}"
