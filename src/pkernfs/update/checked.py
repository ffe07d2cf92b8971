# SPDX-License-Identifier: GPL-2.0-only
"""Is the metadata of the stores whole? For an update before it begins, and after guests run."""

from __future__ import annotations

from pkernfs.errors import PkernfsError
from pkernfs.store.check import check
from pkernfs.store.findings import Verdict
from pkernfs.store.regions import open_region, region_names

CLEAN = "clean"


def check_store() -> str:
    """Check the metadata of every region; "clean", or what is wrong."""
    wrong = []
    for name in region_names():
        try:
            with open_region(name) as image:
                result = check(image)
        except PkernfsError as error:
            wrong.append(error.what)
            continue
        if result.verdict is not Verdict.CLEAN:
            wrong.append(f"{name}: {result.verdict}: {'; '.join(map(str, result.findings[:3]))}")
    return "; ".join(wrong) or CLEAN
