# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel says about itself, and the store's mount."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pkernfs import mountinfo
from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import MARKER, BootLine
from pkernfs.host.ranges import Range, Region, parse_iomem, parse_regions
from pkernfs.mountinfo import FSTYPE, Mounted

MODULE = "pkernfs"
DEFAULT_STORE = Path("/mnt/pkernfs")


@dataclass(frozen=True)
class Machine:
    """The machine seen through its file tree.

    :ivar root: where the tree begins; another one than ``/`` only in tests.
    """

    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """Text of a file, stripped; None when it can't be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def log(self, line: bytes) -> None:
        """Write a line into the kernel log.

        :raises OSError: it can't be written.
        """
        with (self.root / "dev/kmsg").open("wb", buffering=0) as log:
            log.write(line)

    @property
    def kernel(self) -> str:
        """Release of the running kernel, like ``uname -r``."""
        return self.read("proc/sys/kernel/osrelease") or os.uname().release

    @property
    def boot_id(self) -> str:
        """A random id, new at every start of a kernel."""
        return self.read("proc/sys/kernel/random/boot_id") or ""

    @property
    def boot_line(self) -> BootLine:
        """The running kernel's boot line."""
        return BootLine.parse(self.read("proc/cmdline") or "")

    @property
    def update_marker(self) -> str | None:
        """Id of the update that started this kernel; None when none did."""
        values = self.boot_line.values(MARKER)
        return values[-1] if values else None

    def regions(self) -> tuple[Region, ...]:
        """The regions of the loaded module, or else those of the boot line.

        The module's own word counts: modprobe may have it from a configuration file.
        """
        parameter = self.read(f"sys/module/{MODULE}/parameters/region")
        if parameter and parameter != "(null)":
            return parse_regions(parameter)
        return self.boot_line.regions()

    def memory(self) -> list[tuple[Range, str]]:
        """The physical address space as /proc/iomem shows it to root."""
        return parse_iomem(self.read("proc/iomem") or "")

    def module_loaded(self) -> bool:
        """Is pkernfs.ko in the running kernel?"""
        return (self.root / "sys/module" / MODULE).is_dir()

    def module_file(self, release: str, module: str = MODULE) -> Path | None:
        """A module's file for a kernel; None when it is not installed for it."""
        for tree in ("lib/modules", "usr/lib/modules"):
            for suffix in ("", ".xz", ".zst", ".gz"):
                found = sorted((self.root / tree / release).glob(f"**/{module}.ko{suffix}"))
                if found:
                    return found[0]
        return None

    def mounted(self) -> list[Mounted]:
        """What is mounted, in the order in which it was."""
        return mountinfo.parse(self.read("proc/self/mountinfo") or "")

    def filesystem_of(self, path: Path) -> str | None:
        """Type of the filesystem that is mounted at exactly ``path``; None when none is."""
        types = (each.fstype for each in reversed(self.mounted()) if each.point == path)
        return next(types, None)

    def mounts_of(self, region: str) -> set[Path]:
        """Where the store of a region is mounted; the module names it as the mount's source."""
        return {
            each.point for each in self.mounted() if each.fstype == FSTYPE and each.source == region
        }


def require_store(store: Path, machine: Machine | None = None) -> None:
    """Make sure that a store is mounted.

    :raises PkernfsError: there is none at ``store``.
    """
    found = (machine or Machine()).filesystem_of(store)
    if found != FSTYPE:
        what = f"is a {found} filesystem" if found else "is not a mount point"
        raise PkernfsError(
            f"no store at {store}: it {what}",
            "pkernfs mount (pkernfs doctor says what is missing)",
        )


class NoStoreError(PkernfsError):
    """A region that holds no store, as a new one does."""


#: What the module means by an error (find_super() and check_super() in kernel/fs/load.c,
#: pkernfs_get_tree() in kernel/fs/super.c).
_REFUSED = {
    errno.EINVAL: ("there is no store in the region", "pkernfs mount --init makes one"),
    errno.EOPNOTSUPP: (
        "a newer version of pkernfs made it",
        "install that version, or boot the kernel that has it; nothing was changed",
    ),
    errno.ENXIO: (
        "it was made for a range of another size or place",
        "reserve the same range again: dmesg says which; nothing was changed",
    ),
    errno.EUCLEAN: (
        "it is damaged",
        "pkernfs check says where; nothing was changed. If nothing in it is wanted any more:"
        " modprobe -r pkernfs && pkernfs make --force",
    ),
    errno.ENODEV: ("there is no such region", "ls /sys/fs/pkernfs"),
}


def mount_store(
    store: Path, machine: Machine | None = None, region: str = "none", *, init: bool = False
) -> bool:
    """Load the module and mount the store, whichever of both is not done yet.

    :param region: name of the store's region; "none" is the first one.
    :param init: make a store first if the range was never used.
    :returns: True when this call mounted it.
    :raises NoStoreError: there is none in that region.
    :raises PkernfsError: the module or the mount failed; carries the kernel's reason.
    """
    machine = machine or Machine()
    if machine.filesystem_of(store) == FSTYPE:
        return False
    if not machine.module_loaded():
        load_module(machine)
    store.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    data = b"init" if init else None
    if libc.mount(region.encode(), os.fsencode(store), FSTYPE.encode(), 0, data):
        code = ctypes.get_errno()
        reason, hint = _REFUSED.get(code, (os.strerror(code), "dmesg has the reason"))
        kind = NoStoreError if code == errno.EINVAL else PkernfsError
        raise kind(f"the store can't be mounted at {store}: {reason}", hint)
    return True


def load_module(machine: Machine) -> None:
    """Load the module.

    :raises PkernfsError: it does not load.
    """
    done = subprocess.run(["modprobe", MODULE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PkernfsError(
            f"the kernel module does not load: {done.stderr.strip()}",
            f"the kernel log has the reason; the module must be installed for {machine.kernel}",
        )
