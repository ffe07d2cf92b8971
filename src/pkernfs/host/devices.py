# SPDX-License-Identifier: GPL-2.0-only
"""Devices that keep working through a live update: the orders to pkernfs_dma.ko.

Its interface is /sys/fs/pkernfs_dma, described in kernel/dma/control.c.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import BootLine

MODULE = "pkernfs_dma"
CONTROL = Path("/sys/fs/pkernfs_dma")

#: The IOMMU driver has to be on in the next kernel too, and in legacy mode, whatever that
#: kernel was built to do by itself.
_IOMMU_MODE = ("on", "sm_off")
_IOMMU_MODES = frozenset({*_IOMMU_MODE, "off", "sm_on", ""})


@dataclass(frozen=True)
class Device:
    """A preserved device.

    :ivar bdf: PCI name, such as ``0000:01:00.0``.
    :ivar state: ``preserved``, ``inherited`` (works on the tables of the kernel before) or
        ``cut-off`` (did not pass the checks after a kexec).
    :ivar model: vendor and device id, four hex digits each, with a colon.
    :ivar leaves: translations that go or went along.
    :ivar mapped_bytes: what they translate.
    :ivar table_pages: pages of 4 KiB that they take.
    :ivar dropped: translations that do not go along: they lead to memory of no file.
    :ivar adopted: how often it was adopted in this kernel.
    :ivar switch_us: how long the last switch took, microseconds.
    :ivar adopt_us: the same with attaching and comparing.
    :ivar taken: a VFIO user has attached it, and waits for the switch.
    :ivar reason: why it was cut off, or why adopting it was refused; may be empty.
    """

    bdf: str
    state: str
    model: str
    leaves: int
    mapped_bytes: int
    table_pages: int
    dropped: int
    adopted: int
    switch_us: float
    adopt_us: float
    taken: bool
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A device that VFIO drives.

    :ivar bdf: PCI name.
    :ivar objection: why it can't be preserved, as the end of a sentence that begins with "it";
        empty if it can.
    """

    bdf: str
    objection: str


def parse_candidate(line: str) -> Candidate:
    """Read a line of ``candidates``."""
    bdf, reason = shlex.split(line)
    return Candidate(bdf, reason.removeprefix("reason="))


def parse_device(line: str) -> Device:
    """Read a line of ``devices``."""
    bdf, *pairs = shlex.split(line)
    value = dict(pair.split("=", 1) for pair in pairs)
    return Device(
        bdf=bdf,
        state=value["state"],
        model=f"{value['vendor']}:{value['device']}",
        leaves=int(value["leaves"]),
        mapped_bytes=int(value["bytes"]),
        table_pages=int(value["pages"]),
        dropped=int(value["dropped"]),
        adopted=int(value["adopted"]),
        switch_us=int(value["switch_ns"]) / 1000,
        adopt_us=int(value["adopt_ns"]) / 1000,
        taken=value["held"] == "1",
        reason=value["reason"],
    )


@dataclass(frozen=True)
class Control:
    """The module's interface.

    :ivar root: its directory; another one only in tests.
    """

    root: Path = CONTROL

    @classmethod
    def load(cls) -> Self:
        """The interface, the module loaded if need be.

        :raises PkernfsError: the module refuses this kernel, or is not installed.
        """
        control = cls()
        if not control.present:
            command = ["modprobe", MODULE]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PkernfsError(
                    f"{MODULE} can't be loaded: {done.stderr.strip()}",
                    "the kernel log says what it misses",
                )
        return control

    @property
    def present(self) -> bool:
        """Whether the module is loaded."""
        return self.root.is_dir()

    def devices(self) -> list[Device]:
        """All devices that the module knows; none when it is not loaded.

        :raises PkernfsError: only root may know.
        """
        return [parse_device(line) for line in self._lines("devices")]

    def candidates(self) -> list[Candidate]:
        """All devices that VFIO drives; none when the module is not loaded.

        :raises PkernfsError: only root may know.
        """
        return [parse_candidate(line) for line in self._lines("candidates")]

    def _lines(self, name: str) -> list[str]:
        if not self.present:
            return []
        try:
            return (self.root / name).read_text().splitlines()
        except FileNotFoundError:  # an older module
            return []
        except PermissionError as error:
            raise PkernfsError("only root may see preserved devices", "run as root") from error

    def preserve(self, bdf: str) -> None:
        """Name a device that later updates keep working."""
        self._order("preserve", bdf, f"{bdf} can't be preserved")

    def release(self, bdf: str) -> None:
        """Forget a device. One that was inherited and not adopted can't reach memory then."""
        self._order("release", bdf, f"{bdf} can't be released")

    def adopt(self, bdf: str) -> None:
        """Switch an inherited device to the tables of the VFIO user that has taken it.

        :raises PkernfsError: the new mappings differ; the device stays on the old ones.
        """
        self._order("adopt", bdf, f"{bdf} can't be adopted")

    def arm(self) -> tuple[str, ...]:
        """Make ready to hand the devices over at the next kexec.

        Reserves what the tables need and rehearses the copy. May be repeated, to check
        again just before the kexec.

        :returns: words that the next kernel's boot line needs.
        :raises PkernfsError: the tables don't fit, or a device is in no state to be preserved.
        """
        self._order("arm", "1", "the devices can't be handed over")
        record = (self.root / "record").read_text().strip()
        return (f"elfcorehdr={record}",)

    def disarm(self) -> None:
        """Take :meth:`arm` back."""
        self._order("arm", "0", "the hand-over can't be taken back")

    @property
    def armed(self) -> bool:
        """Whether a kexec would hand over."""
        return self.present and (self.root / "arm").read_text().strip() == "1"

    def _order(self, name: str, value: str, what: str) -> None:
        try:
            (self.root / name).write_text(value)
        except FileNotFoundError as error:
            raise PkernfsError(f"{MODULE} is not loaded", f"modprobe {MODULE}") from error
        except PermissionError as error:
            try:
                said = self._message()
            except PermissionError:
                said = ""
            if not said:
                raise PkernfsError(what, "run as root") from error
            raise PkernfsError(f"{what}: {said}") from error
        except OSError as error:
            raise PkernfsError(f"{what}: {self._message() or error.strerror}") from error

    def _message(self) -> str:
        return (self.root / "message").read_text().strip()


def next_kernel_line(line: BootLine, words: Sequence[str]) -> BootLine:
    """The next kernel's boot line with what a hand-over needs.

    :param line: the line without it.
    :param words: the result of :meth:`Control.arm`.
    """
    names = [word.partition("=")[0] for word in words]
    line = line.without(*names)
    said = ",".join(line.values("intel_iommu")).split(",")
    iommu = ",".join((*_IOMMU_MODE, *(word for word in said if word not in _IOMMU_MODES)))
    line = line.without("intel_iommu")
    return line.plus(BootLine((f"intel_iommu={iommu}", *words)))
