# SPDX-License-Identifier: GPL-2.0-only
"""What is in an initrd, as the distribution's own tool lists it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

#: Of initramfs-tools, of dracut.
_LISTERS = ("lsinitramfs", "lsinitrd")
_MODULE = re.compile(r"(?:^|[\s/])([^\s/]+)\.ko(?:\.(?:xz|zst|gz))?$")


def module_name(name: str) -> str:
    """A module's name as the kernel writes it: ``-`` and ``_`` are the same to modprobe."""
    return name.replace("-", "_")


def modules(initrd: Path) -> frozenset[str] | None:
    """Names of the modules in an initrd; None when there is no tool that can list it."""
    for lister in _LISTERS:
        try:
            done = subprocess.run([lister, str(initrd)], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            lines = done.stdout.decode("utf-8", "replace").splitlines()
            found = (_MODULE.search(line) for line in lines)
            return frozenset(module_name(match[1]) for match in found if match)
    return None


def drivers(modalias: str, release: str) -> frozenset[str]:
    """Names of the modules that udev would load for a device in a kernel; may be empty.

    :param modalias: the device's, as in its directory of sysfs.
    """
    command = ["modprobe", f"--set-version={release}", "--resolve-alias", modalias]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return frozenset()
    return frozenset(module_name(name) for name in done.stdout.split())
