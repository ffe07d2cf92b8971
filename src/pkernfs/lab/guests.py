# SPDX-License-Identifier: GPL-2.0-only
"""Guests of the lab's hosts: kernel and initrds, in one directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from pkernfs.lab import cache
from pkernfs.lab.image import HostImage


def build(host: HostImage) -> Path:
    """The directory with the guests' kernel and initrds."""
    version = host.kernels[0]

    def make(target: Path) -> None:
        shutil.copyfile(host.vmlinuz(version), target / "vmlinuz")

    return cache.artifact("guests", cache.digest([host.key, version]), make, keep=2)
