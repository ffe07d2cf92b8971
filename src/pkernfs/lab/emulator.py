# SPDX-License-Identifier: GPL-2.0-only
"""Which QEMU emulates the virtual hosts: the one out of the host image.

So every machine has the same, as new as the one that the hosts' guests run on. The image's
dynamic loader starts it with the image's libraries, firmware and modules; no chroot is needed.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pkernfs.errors import PkernfsError
from pkernfs.lab.guests import image_program

if TYPE_CHECKING:
    from pkernfs.lab.image import HostImage

#: Another QEMU to emulate the hosts: a program of this machine, such as qemu-system-x86_64.
SETTING = "PKERNFS_LAB_QEMU"
_PROGRAM = "usr/bin/qemu-system-x86_64"
_MODULES = "usr/lib/x86_64-linux-gnu/qemu"
#: Where Debian puts firmware: QEMU's own, and that of the package seabios.
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios")


@dataclass(frozen=True)
class Emulator:
    """A QEMU that can be started.

    :ivar command: the program and what always goes with it.
    :ivar environment: what it needs beside the lab's own environment.
    """

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """The environment to start it in."""
        return {**os.environ, **self.environment}

    def version(self) -> str:
        """What it calls itself, one line.

        :raises PkernfsError: it does not start.
        """
        try:
            done = subprocess.run(
                [*self.command, "-version"],
                capture_output=True,
                text=True,
                check=True,
                env=self.environ(),
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise PkernfsError(
                f"the lab's emulator does not start: {error}",
                f"pkernfs lab image --rebuild, or {SETTING}=qemu-system-x86_64 for this machine's",
            ) from error
        return done.stdout.splitlines()[0]


def emulator(host: HostImage) -> Emulator:
    """The QEMU that emulates hosts: the image's, unless PKERNFS_LAB_QEMU names another."""
    chosen = os.environ.get(SETTING)
    if chosen:
        return Emulator((chosen,))
    command = image_program(host, host.root / _PROGRAM)
    for folder in _FIRMWARE:
        command += ["-L", str(host.root / folder)]
    return Emulator(tuple(command), {"QEMU_MODULE_DIR": str(host.root / _MODULES)})


def program() -> list[str]:
    """The emulator's command, its environment before it: for whoever runs it by hand."""
    from pkernfs.lab.image import host_image

    chosen = emulator(host_image())
    words = [f"{name}={value}" for name, value in chosen.environment.items()]
    return ["env", *words, *chosen.command]
