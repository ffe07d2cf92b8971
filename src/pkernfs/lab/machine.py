# SPDX-License-Identifier: GPL-2.0-only
"""A virtual host: a QEMU process, its kernel log, and the line to the agent in it.

    with Machine(HostConfig(kernel="6.12")) as host:
        host.run(["pkernfs", "doctor"]).check()

Leaving the block ends the process, whatever happened, and fails if the kernel log has
something that should not be there.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.lab import debug_checks, files, hardware, qemu, scan
from pkernfs.lab.cache import remove_tree
from pkernfs.lab.console import Console
from pkernfs.lab.debug_kernel import SLOWDOWN
from pkernfs.lab.emulator import emulator
from pkernfs.lab.image import host_image, is_debug
from pkernfs.lab.layer import Stack, stack
from pkernfs.lab.link import Hello, Link, Result, Sink
from pkernfs.lab.memory import Layout, RangeFile, leave_junk
from pkernfs.lab.patience import patient, slower

#: Emulated, on a busy machine, with systemd: minutes, not seconds.
_BOOT_TIMEOUT_S = 300.0
#: A boot loader that reads by the firmware, and an initrd for every machine: twice that.
_INSTALLED_TIMEOUT_S = 600.0
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@dataclass(frozen=True)
class HostConfig:
    """What a virtual host is like.

    :ivar kernel: name of the kernel it boots, such as ``6.12``, or ``debug``: with such a
        host the lab waits longer for everything, and asks it at its end (debug_checks).
    :ivar layout: RAM and region.
    :ivar share: directory that the host sees as /mnt/share; a temporary one by default.
    :ivar append: more words for the boot line.
    :ivar systemd: boot the distribution's init instead of the lab's short one.
    :ivar units: boot with systemd, and have the units of packaging/systemd mount the store
        and resume the guests, not the lab.
    :ivar full: boot the second image, with D-Bus, logind and libvirt in it.
    :ivar store: load pkernfs and mount it at /mnt/pkernfs.
    :ivar allowed: regular expressions of kernel log lines that are expected.
    :ivar devices: devices that it has, names of hardware.HARDWARE.
    :ivar extra: more arguments for QEMU.
    :ivar scratch: size of the scratch disk, bytes; sparse.
    :ivar used: bytes of the RAM that will really be used, for a host with more RAM than this
        machine has; None: all of it. What is never touched takes nothing.
    :ivar iommu: which IOMMU it has, a name of qemu.IOMMUS.
    :ivar zeroed: memory starts as zeros, not full of what others left in it.
    :ivar installed: an ordinary Debian host with pkernfs, see pkernfs.lab.installed: from a disk
        of its own by GRUB, which starts 6.12; no region yet, no share, no scratch disk, and the
        boot line is the one on that disk. What it writes there stays until the host ends.
    :ivar kvm: guests in it run under KVM; otherwise QEMU emulates them, without KVM in the host.
        This decides on processors, too: two, or one with KVM. The lab's emulator runs each in a
        thread of its own, and nested KVM in several of them panics the host under load, without
        our modules ("corrupted stack end detected inside scheduler").
    :ivar cpus: so many virtual processors, whatever ``kvm`` says.
    """

    kernel: str = "6.12"
    layout: Layout = field(default_factory=Layout.of)
    share: Path | None = None
    append: tuple[str, ...] = ()
    systemd: bool = False
    units: bool = False
    full: bool = False
    store: bool = True
    allowed: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    kvm: bool = False
    cpus: int | None = None
    scratch: int = 2 << 30
    used: int | None = None
    zeroed: bool = False
    iommu: str = "vtd"
    installed: bool = False

    def __post_init__(self) -> None:
        if self.iommu not in qemu.IOMMUS:
            raise UsageError(
                f"no IOMMU named {self.iommu!r} in the lab", f"there are: {', '.join(qemu.IOMMUS)}"
            )
        hardware.check(self.devices)
        if self.processors < 1:
            raise UsageError("a host has at least one processor", "for example --cpus 2")
        if self.installed and (
            self.append or self.systemd or self.units or self.full or self.share
        ):
            raise UsageError(
                "an installed host has what is on its disk: it boots that, and has no share",
                "change its boot line from within, by /etc/default/grub and update-grub",
            )

    @property
    def processors(self) -> int:
        """How many virtual processors it has."""
        if self.cpus is None:
            return 1 if self.kvm else 2
        return self.cpus


def _die_with_parent() -> None:
    """In the child: be killed when the lab dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """A running virtual host. A context manager; see the module's description."""

    def __init__(
        self,
        config: HostConfig | None = None,
        *,
        on: Stack | None = None,
        disk: qemu.Disk | None = None,
    ) -> None:
        self.config = config or HostConfig()
        self.stack = on or stack(debug=is_debug(self.config.kernel))
        self._disk = disk
        self.version = self.stack.host.kernel(self.config.kernel)
        if self.config.installed and disk is None:
            self._disk = self._installed_disk()
        self._undo = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0
        self._allowed: list[str] = []
        self.boot_seconds = 0.0

    def _installed_disk(self) -> qemu.Disk:
        from pkernfs.lab import installed

        first = self.stack.host.kernels[0]
        if self.version != first:
            raise UsageError(
                f"an installed host starts {first}",
                "another one from within: grub-set-default, and reboot",
            )
        return installed.disk(self.stack.host)

    def __enter__(self) -> Machine:
        try:
            self._start()
            self._wait_boot(1)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.runs and is_debug(self.hello.kernel):
                debug_checks.check(self)
        finally:
            self._undo.close()
        if kind is None:
            self.check_log()

    # What a test or a verb does with a host

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: bytes = b"",
        timeout: float = 600,
        sink: Sink | None = None,
    ) -> Result:
        """Run a command in the host as root.

        :param timeout: seconds.
        :param sink: gets output as it comes, with the stream's number (1 or 2).
        :returns: its output; the status is None if the host's kernel was replaced meanwhile.
        :raises PkernfsError: the command can't be started or took too long, or the host died.
        """
        self._alive()
        limit = patient(timeout)
        return self.link.run(argv, env=env, cwd=cwd, stdin=stdin, timeout=limit, sink=sink)

    def sh(self, script: str, *, timeout: float = 600) -> Result:
        """Run a shell script in the host; see :meth:`run`."""
        return self.run(["sh", "-c", script], timeout=timeout)

    def wait_reboot(self, timeout: float | None = None) -> Hello:
        """Wait for the host's next kernel, the one after the last that was waited for.

        :param timeout: seconds; None: what such a host may take.
        :raises PkernfsError: it did not come up, or its setup failed.
        """
        return self._wait_boot(self._seen + 1, timeout)

    def wait_off(self, timeout: float = _BOOT_TIMEOUT_S) -> None:
        """Wait until the host has switched itself off.

        :param timeout: seconds.
        :raises PkernfsError: it did not.
        """
        assert self._process is not None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise PkernfsError(f"the host is not off after {timeout:.0f} s") from error

    def upload(self, source: Path, name: str | None = None) -> str:
        """Put a file into the share; its path inside the host."""
        shutil.copyfile(source, self.share / (name or source.name))
        return f"/mnt/share/{name or source.name}"

    @property
    def hello(self) -> Hello:
        """The agent's word on the kernel that runs now."""
        return self.link.hellos[-1]

    @property
    def runs(self) -> bool:
        """Has the QEMU that emulates the host not ended?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the QEMU that emulates the host."""
        assert self._process is not None
        return self._process.pid

    @property
    def range_file(self) -> RangeFile:
        """The (first) region, readable from outside at any moment."""
        return RangeFile(self.ram_file, self.config.layout.offset, self.config.layout.region)

    @property
    def problems(self) -> list[str]:
        """Kernel log lines so far that fail the run."""
        allowed = (*self.config.allowed, *self._allowed)
        return scan.findings((line.text for line in self.console.lines), allowed)

    def allow(self, pattern: str) -> None:
        """Expect kernel log lines that match a regular expression from now on."""
        self._allowed.append(pattern)

    def check_log(self) -> None:
        """Look through the kernel log of all boots.

        :raises PkernfsError: it has a line that should not be there.
        """
        found = self.problems
        if found:
            raise PkernfsError(
                f"the host's kernel log has {len(found)} bad lines, the first: {found[0].strip()}",
                f"the log is {self.logs / 'console.log'}",
            )

    # Start and end

    def _start(self) -> None:
        undo = self._undo
        config = self.config
        if is_debug(self.version):
            undo.enter_context(slower(SLOWDOWN))
        self.ram_dir = files.new_home(config.used or config.layout.ram)
        undo.callback(remove_tree, self.ram_dir)
        self.ram_file = self.ram_dir / "ram"
        self.logs = files.new_logs()
        self.share = config.share or self.ram_dir / "share"
        self.share.mkdir(exist_ok=True)
        scratch = self.ram_dir / "scratch.ext4"
        files.make_scratch(scratch, config.scratch)
        hardware.prepare(config.devices, self.ram_dir)
        for node, size in enumerate(config.layout.nodes or (config.layout.ram,)):
            with qemu.ram_file(self.ram_file, node).open("wb") as file:
                file.truncate(size)
        if not config.zeroed:
            leave_junk(self.ram_file, config.layout)
        pairs = {name: socket.socketpair() for name in qemu.LINES}
        chosen = emulator(self.stack.host)
        plan = qemu.Plan(
            config=config,
            program=chosen.command,
            kernel=self.stack.host.vmlinuz(self.version),
            initrd=self.stack.initrd(self.version),
            base=host_image(full=True).disk if config.full else self.stack.host.disk,
            layer=self.stack.layer,
            scratch=scratch,
            ram=self.ram_file,
            share=self.share,
            lines={name: theirs.fileno() for name, (_, theirs) in pairs.items()},
            disk=self._disk,
        )
        self.started = time.monotonic()
        with (self.logs / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                plan.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=chosen.environ(),
                pass_fds=list(plan.lines.values()),
                preexec_fn=_die_with_parent,
            )
        undo.callback(self._stop)
        for _, theirs in pairs.values():
            theirs.close()
        self.console = undo.enter_context(Console(pairs["console"][0], self.logs / "console.log"))
        self.serials = tuple(
            undo.enter_context(Console(pairs[name][0], self.logs / f"{name}.log"))
            for name in qemu.SERIALS
        )
        self.link = Link(pairs["agent"][0])
        undo.callback(self.link.close)

    def _stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _wait_boot(self, count: int, timeout: float | None = None) -> Hello:
        if timeout is None:
            timeout = _INSTALLED_TIMEOUT_S if self.config.installed else _BOOT_TIMEOUT_S
        hello = self.link.wait_hello(count, patient(timeout), self._alive)
        self._seen = count
        if count == 1:
            self.boot_seconds = hello.at - self.started
        if hello.problems:
            raise PkernfsError(
                f"the host came up, but {hello.problems.strip()}",
                f"the kernel log is {self.logs / 'console.log'}",
            )
        return hello

    def _alive(self) -> None:
        """Raise when the host can't answer any more."""
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            said = (self.logs / "qemu.log").read_text(errors="replace").strip()
            tail = "\n".join(line.text for line in self.console.lines[-15:])
            raise PkernfsError(
                f"the host's QEMU ended with status {status}: {said}\n{tail}",
                f"all it said is in {self.logs}",
            )


def poll(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until something holds.

    :param timeout: seconds.
    :raises PkernfsError: it does not within that time.
    """
    limit = patient(timeout)
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise PkernfsError(f"{what}: not within {limit:g} s")
        time.sleep(0.1)
