# SPDX-License-Identifier: GPL-2.0-only
"""Virtual machines of this host that are no guests of ours: a kexec ends them without a word.

Found where nobody can hide them: a process that has a machine of KVM's open, or whose program
is QEMU, which runs machines without KVM too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.host.machine import Machine
from pkernfs.mountinfo import FSTYPE
from pkernfs.vmm.options import parse

#: A descriptor of a virtual machine (kvm_dev_ioctl_create_vm() in virt/kvm/kvm_main.c).
_KVM_VM = "anon_inode:kvm-vm"

#: QEMU by the names that distributions give it; not qemu-img, qemu-nbd or the guest agent.
_QEMU = re.compile(r"qemu-system-.+|qemu-kvm|kvm")

#: What has QEMU say something and end.
_ASKS = frozenset({"version", "h", "help"})


@dataclass(frozen=True)
class Outsider:
    """A virtual machine that is no guest of ours.

    :ivar name: by -name; empty when it has none.
    :ivar program: name of its program.
    :ivar store: mount point of the store that it has memory of; None: of none.
    """

    pid: int
    name: str
    program: str
    store: Path | None = None


class Census:
    """Looks at all processes. What has been looked at before need not be looked at again.

    A process may become a virtual machine later on, but QEMU is one from its first moment, by
    its name: so a second look costs a moment, and is right about every QEMU.
    """

    def __init__(self, machine: Machine) -> None:
        self._proc = machine.root / "proc"
        self._stores = _stores(machine)
        self._others: set[tuple[int, str]] = set()

    def outsiders(self, own: Collection[int]) -> list[Outsider]:
        """All virtual machines but these.

        :param own: processes of guests of ours.
        """
        found = []
        for pid in self._pids():
            if pid in own:
                continue
            key = pid, _program(f"{self._proc}/{pid}")
            if key in self._others:
                continue
            outsider = self._look(*key)
            if outsider is not None:
                found.append(outsider)
            elif not _QEMU.fullmatch(key[1]):
                self._others.add(key)
        return found

    def _pids(self) -> Iterator[int]:
        with contextlib.suppress(OSError), os.scandir(self._proc) as entries:
            yield from sorted(int(entry.name) for entry in entries if entry.name.isdigit())

    def _look(self, pid: int, program: str) -> Outsider | None:
        home = self._proc / str(pid)
        if _QEMU.fullmatch(program):
            words = _words(home)
            if words is None or _only_asks(words):
                return None
            return Outsider(pid, _name(words), program, self._store_of(home))
        if program and _has_machine(home):
            return Outsider(pid, "", program, self._store_of(home))
        return None

    def _store_of(self, home: Path) -> Path | None:
        try:
            lines = (home / "maps").read_text(errors="surrogateescape").splitlines()
        except OSError:
            return None
        # proc_pid_maps(5): address, permissions, offset, device, inode, path.
        devices = (line.split(None, 4)[3] for line in lines if line)
        return next((self._stores[it] for it in devices if it in self._stores), None)


def _stores(machine: Machine) -> Mapping[str, Path]:
    """Mount points of the stores, by the device number as proc_pid_maps(5) writes it."""
    found: dict[str, Path] = {}
    for mounted in machine.mounted():
        if mounted.fstype == FSTYPE:
            major, _, minor = mounted.number.partition(":")
            found[f"{int(major):02x}:{int(minor):02x}"] = mounted.point
    return found


def _program(home: str) -> str:
    """Name of a process's program, also if its file was replaced since; empty for none."""
    try:
        # Guests stand still at the second look, and a Path takes ten times as long.
        target = os.readlink(f"{home}/exe")  # noqa: PTH115
    except PermissionError:  # of another user: what it says of itself
        words = _words(Path(home))
        target = words[0] if words else ""
    except OSError:  # a thread of the kernel, or it is gone
        return ""
    return target.rpartition("/")[2].removesuffix(" (deleted)")


def _words(home: Path) -> list[str] | None:
    try:
        text = (home / "cmdline").read_bytes()
    except OSError:
        return None
    return [os.fsdecode(word) for word in text.rstrip(b"\0").split(b"\0")] if text else None


def _has_machine(home: Path) -> bool:
    try:
        for entry in (home / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()) == _KVM_VM:
                    return True
    except OSError:
        return False
    return False


def _only_asks(words: Sequence[str]) -> bool:
    """Does this QEMU say what it can and end, or run without a machine (libvirt's questions)?"""
    for option in parse(words[1:]):
        if option.name in _ASKS or option.value in ("help", "?"):
            return True
        kind = option.properties().text("type") if option.name in ("machine", "M") else ""
        if kind in ("none", "help"):
            return True
    return False


def _name(words: Sequence[str]) -> str:
    """What QEMU's -name says: guest=NAME,... or NAME,..."""
    for option in parse(words[1:]):
        if option.name == "name" and option.value:
            return option.properties().text("guest") or option.value.partition(",")[0]
    return ""
