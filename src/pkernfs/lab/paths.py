# SPDX-License-Identifier: GPL-2.0-only
"""Where the lab finds the sources and keeps what it builds."""

from __future__ import annotations

import os
from pathlib import Path

from pkernfs.errors import PkernfsError


def source_tree() -> Path:
    """The checkout that this package runs from.

    :raises PkernfsError: the package was installed without its sources.
    """
    tree = Path(__file__).resolve().parents[3]
    if not (tree / "kernel" / "format.h").is_file():
        raise PkernfsError(
            "the lab needs the source tree of pkernfs", "run it from a checkout: make demo"
        )
    return tree


def cache_root() -> Path:
    """The directory of everything that can be built again, ``~/.cache/pkernfs`` by default."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = (Path(base) if base else Path.home() / ".cache") / "pkernfs"
    root.mkdir(parents=True, exist_ok=True)
    return root


def build_root() -> Path:
    """``build/`` of the source tree: reports and logs of runs."""
    root = source_tree() / "build"
    root.mkdir(exist_ok=True)
    return root
