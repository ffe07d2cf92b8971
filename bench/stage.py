# SPDX-License-Identifier: GPL-2.0-only
"""The virtual hosts that the comparison runs in, and the counting guest that all peers get.

A host has everything that any peer needs, so that the peers can take turns in one: a range
for pkernfs, a range that is persistent memory (``memmap=nn!ss``), ordinary memory, a disk.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from bench.meter import Meter
from pkernfs.errors import PkernfsError
from pkernfs.host.ranges import format_size
from pkernfs.lab.layer import Stack, stack
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import GIB, HIGH_START, MIB, Layout

#: In the host, on the disk that outlives its kernels.
HOME = "/mnt/scratch/bench"
EARLY = f"{HOME}/early"
INSIDE = Path(__file__).parent / "inside"
_LOW = 2 * GIB
_WORDS = ("pkernfs_lab_store=no", "pkernfs_lab_resume=no", f"pkernfs_lab_early={EARLY}")


@dataclass(frozen=True)
class Room:
    """What a host is made of.

    :ivar kernel: name of its kernel.
    :ivar region: bytes of pkernfs's range, sparse.
    :ivar pmem: bytes of persistent memory, sparse; 0: none.
    :ivar ordinary: bytes of memory beyond the first 2 GiB and these ranges.
    :ivar scratch: bytes of the disk.
    :ivar used: bytes that will really be used of it all.
    :ivar words: more words of the boot line.
    """

    kernel: str = "7.3"
    region: int = GIB
    pmem: int = 0
    ordinary: int = GIB
    scratch: int = 4 * GIB
    used: int = 4 * GIB
    words: tuple[str, ...] = ()

    def config(self) -> HostConfig:
        """The lab's description of it."""
        words = [*_WORDS, *self.words]
        if self.pmem:
            words.append(f"memmap={format_size(self.pmem)}!{format_size(HIGH_START + self.region)}")
        return HostConfig(
            kernel=self.kernel,
            kvm=True,
            layout=Layout(_LOW + self.region + self.pmem + self.ordinary, self.region),
            append=tuple(words),
            scratch=self.scratch,
            used=self.used,
        )


@dataclass
class Stage:
    """A host of the comparison. Boots when it is first asked for, and again after a failure.

    :ivar on: image and layer other than the lab's usual ones.
    :ivar commands: what was run in it by whom, for the results.
    :ivar image: path in the host of the kernel to jump to; None: the lab's.
    """

    name: str
    room: Room
    on: Callable[[], Stack] = stack
    commands: dict[str, list[str]] = field(default_factory=dict)
    image: str | None = None
    _host: Machine | None = None
    #: Marks set by prepare() of peers and measures: done once per boot.
    done: set[str] = field(default_factory=set)
    #: What measures know of this boot.
    known: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def host(self) -> Machine:
        """The running host.

        :raises PkernfsError: it does not boot.
        """
        if self._host is None:
            host = Machine(self.room.config(), on=self.on())
            host.__enter__()
            self._host = host
            self.done.clear()
            self.known.clear()
            host.sh(f"mkdir -p {HOME}").check()
            for path in INSIDE.glob("*.py"):
                shutil.copyfile(path, host.share / path.name)
            host.sh(f"cp /mnt/share/*.py {HOME}/").check()
        return self._host

    @property
    def running(self) -> bool:
        """Has anybody asked for the host?"""
        return self._host is not None

    @property
    def kernel(self) -> str:
        """Full version of the host's kernel."""
        return self.host.version

    def close(self) -> None:
        """End the host, if there is one; the next question for it boots another."""
        host, self._host = self._host, None
        if host is not None:
            with contextlib.suppress(PkernfsError):
                host.__exit__(None, None, None)

    def once(self, mark: str) -> bool:
        """True the first time that this is asked in a boot of the host."""
        fresh = mark not in self.done
        self.done.add(mark)
        return fresh

    def sh(self, who: str, script: str, timeout: float = 600) -> str:
        """Run a script in the host for a peer, noted with the results; its output."""
        self.note(who, script)
        return self.host.sh(script, timeout=timeout).check().stdout

    def run(self, who: str, command: list[str], timeout: float = 600) -> str:
        """Run a command in the host for a peer, noted with the results; its output."""
        self.note(who, " ".join(command))
        return self.host.run(command, timeout=timeout).check().stdout

    def note(self, who: str, command: str) -> None:
        """Remember a command line, each once."""
        known = self.commands.setdefault(who, [])
        if command not in known:
            known.append(command)

    def write_early(self, who: str, script: str) -> None:
        """Say what the next kernel runs where pkernfs would resume its guests."""
        text = f"#!/bin/sh\necho '<6>bench: restore' >/dev/kmsg\n{script}\n"
        self.note(who, f"(next kernel) {script}")
        (self.host.share / "early").write_text(text)
        self.host.sh(f"install -m 755 /mnt/share/early {EARLY}").check()

    def clear_early(self) -> None:
        """Nothing is run early in the next kernel."""
        self.host.sh(f"rm -f {EARLY}").check()

    @property
    def image_path(self) -> str:
        """Path in the host of the kernel to jump to: the one that runs."""
        return self.image or f"/boot/vmlinuz-{self.kernel}"

    def next_kernel(self) -> dict[str, str]:
        """Image, initrd and boot line of the kernel to jump to: the one that runs."""
        image = self.image_path
        line = self.host.sh("cat /proc/cmdline").check().stdout.split()
        kept = [word for word in line if not word.startswith(("pkernfs_update=", "elfcorehdr="))]
        initrd = f"/boot/pkernfs-lab-initrd-{self.kernel}"
        return {"kernel": image, "initrd": initrd, "line": " ".join(kept)}

    def work_clock(self) -> Meter:
        """A clock of the work that this host's emulation does; a context manager."""
        return Meter.of_process(self.host.pid)


@dataclass(frozen=True)
class Plan:
    """What ``leave.py`` is told; see there."""

    qmp: str | None = None
    uri: str = ""
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, object] = field(default_factory=dict)
    sync: tuple[str, ...] = ()
    umount: tuple[str, ...] = ()


def leave(stage: Stage, who: str, plan: Plan) -> None:
    """Save by QMP, jump, wait for the next kernel.

    :raises PkernfsError: it did not come to that.
    """
    words = json.dumps({**stage.next_kernel(), **plan.__dict__})
    stage.note(who, f"migrate {plan.uri} {plan.capabilities} {plan.parameters}; kexec -s")
    result = stage.host.run(["python3", "-I", "-S", f"{HOME}/leave.py", words])
    if result.status is not None:
        result.check()
        raise PkernfsError("the host's kernel was not replaced")
    stage.host.wait_reboot()


@dataclass(frozen=True)
class GuestSize:
    """Memory of a guest.

    :ivar ram: bytes.
    :ivar filled: MiB from 16 MiB on that hold data; the rest is sparse.
    """

    ram: int
    filled: int

    @classmethod
    def of(cls, ram: int) -> GuestSize:
        """All of a guest of up to 1 GiB, so much of it as a small one has of a larger one.

        The border keeps clear of what the firmware writes at the end of low memory.
        """
        full = ram if ram <= GIB else 256 * MIB
        return cls(ram, (full >> 20) - 16 - 32)

    @property
    def name(self) -> str:
        """Such as 256M."""
        return format_size(self.ram)

    @property
    def sparse(self) -> bool:
        """Is there memory that nobody ever wrote?"""
        return self.filled + 48 < self.ram // MIB


def tick_arguments(size: int, serial: str = "/dev/ttyS1", disk: str = "tick.img") -> list[str]:
    """QEMU's arguments for the counting guest, but for its memory.

    :param size: bytes of that.
    :param serial: where its lines go.
    :param disk: see :func:`tick_image`.
    """
    bits = ",phys-bits=46" if size >= 512 * GIB else ""
    return [
        *("-cpu", f"qemu64{bits}"),
        *("-drive", f"file={HOME}/{disk},format=raw,if=ide,file.locking=off"),
        *("-serial", serial),
    ]


def qemu(path: str, size: int, incoming: str = "", *, options: str = "") -> str:
    """A shell line that starts QEMU for the counting guest in the background.

    :param path: the file that is its memory.
    :param size: bytes.
    :param incoming: where its state comes from.
    :param options: more words.
    """
    memory = f"memory-backend-file,id=ram,size={size},mem-path={path},share=on"
    words = [
        *("qemu-system-x86_64", "-name", "bench", "-no-user-config", "-nodefaults"),
        *("-object", memory, "-machine", "q35,memory-backend=ram", "-accel", "kvm"),
        *("-m", f"{size >> 20}M", "-display", "none", *tick_arguments(size)),
        *("-qmp", "unix:/run/bench.qmp,server=on,wait=off"),
        *(options.split()),
        *(("-incoming", incoming) if incoming else ()),
    ]
    return " ".join(words) + " </dev/null >/run/bench.log 2>&1 &"


#: A counting guest that says so at every 16th tick, about once a second.
QUIET = "quiet.img"


def tick_image(stage: Stage) -> None:
    """Put the counting guests' disks into the host, once."""
    from tests.system.tick import image

    if stage.once("tick image"):
        for name, every in (("tick.img", 1), (QUIET, 16)):
            (stage.host.share / name).write_bytes(image(every))
            stage.host.sh(f"cp /mnt/share/{name} {HOME}/{name}").check()
