# SPDX-License-Identifier: GPL-2.0-only
"""Starting QEMU, and having it load a saved state, with next to nothing imported.

Paused guests wait for this module. So it imports only what the interpreter has built in or
frozen, and it asks QEMU nothing: all that QEMU has to be told is written to its socket before
it is up. What QEMU answers is kept, with QEMU's own time stamps, for :mod:`pkernfs.vmm.restore`
to read once the guests run.
"""

from __future__ import annotations

import os
import select
import time

# Not socket: that imports selectors and enum, which cost more than QEMU's exec.
from _socket import AF_UNIX
from _socket import socket as Socket

#: The descriptor of the listening QMP socket in QEMU.
MONITOR_FD = 3
#: That of the socket on which it waits for passed-through devices, if it has any.
DEVICES_FD = 4

#: How long QEMU may take to greet, and then to load its state (seconds).
START_S = 120.0
LOAD_S = 120.0

#: A guest that is not up after this time (seconds) does not hold back the next one.
SLOT_S = 5.0

#: Guests from this size on get what pays only for them (bytes).
LARGE = 64 << 30
#: QEMU marks every page of a guest's memory dirty, three times, when it starts (ram_block_add()
#: in system/physmem.c): 96 MiB of bitmaps for 1 TiB, in blocks of 256 KiB. The C library is to
#: take them from one piece, of huge pages (glibc's manual, "Memory Allocation Tunables"; it takes
#: no larger threshold): 2,600 page faults instead of 30,000. What that saves in time was not told
#: from noise under emulation.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.top_pad=33554432"
)

_MAGIC = "pkernfs-launch/1"
_POLL_MS = 50
#: SIGPIPE and SIGXFSZ (signal(7)), which Python ignores: QEMU gets their defaults.
_DEFAULT_SIGNALS = (13, 25)


class Launch:
    """One QEMU that is to continue a saved guest.

    :ivar name: the guest's name.
    :ivar files: the guest's directory in the store.
    :ivar ram: the file with its memory, and :ivar ram_bytes: the size that it must have.
    :ivar runtime: directory for socket, process id and log.
    :ivar directory: working directory.
    :ivar node: number of the NUMA node whose processors run it; "" for all.
    :ivar requests: what QEMU is told, in QMP.
    :ivar argv: command; its monitor listens at :data:`MONITOR_FD`.
    """

    def __init__(
        self,
        name: str,
        files: str,
        ram: str,
        ram_bytes: int,
        runtime: str,
        directory: str,
        node: str,
        requests: str,
        argv: tuple[str, ...],
    ) -> None:
        self.name = name
        self.files = files
        self.ram = ram
        self.ram_bytes = ram_bytes
        self.runtime = runtime
        self.directory = directory
        self.node = node
        self.requests = requests
        self.argv = argv


def dump(launches: list[Launch]) -> str:
    """As text, in the order of the list. No field can contain a NUL: they are C strings."""
    words = [_MAGIC, str(len(launches))]
    for it in launches:
        words += [it.name, it.files, it.ram, str(it.ram_bytes), it.runtime, it.directory, it.node]
        words += [it.requests, str(len(it.argv)), *it.argv]
    return "\0".join(words)


def parse(text: str) -> list[Launch]:
    """Read what :func:`dump` wrote.

    :raises ValueError: it is something else, or not complete.
    """
    words = text.split("\0")[::-1]
    try:
        if words.pop() != _MAGIC:
            raise ValueError("not a list of launches")
        return [_parse_one(words) for _ in range(int(words.pop()))]
    except IndexError:
        raise ValueError("the list of launches is cut short") from None


def _parse_one(words: list[str]) -> Launch:
    name, files, ram, size, runtime, directory, node = (words.pop() for _ in range(7))
    requests, count = words.pop(), int(words.pop())
    argv = tuple([words.pop() for _ in range(count)])
    return Launch(name, files, ram, int(size), runtime, directory, node, requests, argv)


def start_time(pid: int) -> str | None:
    """When a process began (clock ticks since boot); None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # proc_pid_stat(5): the name, in parentheses, may contain anything; field 3 is the
    # state, field 22 the start time.
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _environment(ram_bytes: int) -> dict[str, str]:
    if ram_bytes < LARGE:
        return dict(os.environ)
    return {"GLIBC_TUNABLES": _TUNABLES, **os.environ}


def _have_taps(argv: tuple[str, ...], tun: str = "/dev/net/tun") -> None:
    """Load the driver of taps where no node of it is there yet: guests come before udev."""
    if not os.path.exists(tun) and any(
        word.startswith(("tap,", "bridge,")) or '"tap"' in word or "type=tap" in word
        for word in argv
    ):
        os.spawnlp(os.P_WAIT, "modprobe", "modprobe", "-q", "tun")


def spawn(
    argv: tuple[str, ...],
    directory: str,
    runtime: str,
    ram_bytes: int,
    more: dict[int, int] | None = None,
) -> tuple[int, str]:
    """Start QEMU. It can be connected to at ``qmp.sock`` as soon as this returns.

    :param directory: working directory; / when it is not there.
    :param runtime: directory for socket, process id and log; made when it is not there.
    :param ram_bytes: of its guest.
    :param more: descriptors that QEMU inherits, by their numbers in QEMU.
    :returns: its process id, and when it began.
    :raises OSError: it can't be started.
    """
    os.makedirs(runtime, mode=0o700, exist_ok=True)
    path = f"{runtime}/qmp.sock"
    if os.path.lexists(path):
        os.unlink(path)
    _have_taps(argv)
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fresh = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    log = os.open(f"{runtime}/qemu.log", fresh, 0o600)
    listener = Socket(AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(1)
        os.chdir(directory if os.path.isdir(directory) else "/")
        pid = os.posix_spawn(
            argv[0],
            argv,
            _environment(ram_bytes),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), MONITOR_FD),
                *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in (more or {}).items()),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    finally:
        listener.close()
        os.close(log)
        os.fchdir(here)
        os.close(here)
    began = start_time(pid) or ""
    with open(f"{runtime}/pid", "w", encoding="ascii") as file:
        file.write(f"{pid} {began}\n")
    return pid, began


def processors(node: str) -> set[int]:
    """Processors of a NUMA node that this process may use; all that it may use if none is."""
    allowed = os.sched_getaffinity(0)
    found = set()
    try:
        # A list like 0-3,8: Documentation/admin-guide/cputopology.rst.
        with open(f"/sys/devices/system/node/node{node}/cpulist", encoding="ascii") as file:
            for part in file.read().strip().split(","):
                first, _, last = part.partition("-")
                found |= set(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        pass
    return found & allowed or allowed


class Attempt:
    """A launch under way, or over.

    :ivar run: did the guest run when it was saved?
    :ivar spawned_ns: when QEMU was started, CLOCK_BOOTTIME.
    :ivar pid: QEMU's process id; 0 when it could not be started.
    :ivar received: everything that QEMU said.
    :ivar greeted: has QEMU said anything?
    :ivar told: was it told to let the guest run? It may run then, whatever else is known.
    :ivar done: does the guest run, or stand still as it did before?
    :ivar error: why it never will; "" if it does, or if that is not known yet.
    """

    def __init__(self, launch: Launch, run: bool) -> None:
        self.launch = launch
        self.run = run
        self.spawned_ns = 0
        self.pid = 0
        self.began = ""
        self.connection: Socket | None = None
        self.received = b""
        self.done = False
        self.error = ""
        self._since = 0.0
        self._read = 0
        self.told = False
        self._loaded = self._runs = False

    def start(self) -> None:
        """Start QEMU and tell it everything."""
        self.spawned_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._since = time.monotonic()
        launch = self.launch
        try:
            self._spawn()
            self.connection = Socket(AF_UNIX)
            self.connection.connect(f"{launch.runtime}/qmp.sock")
            self.connection.sendall(launch.requests.encode())
            self.connection.setblocking(False)
        except OSError as error:
            self.error = f"can't start {launch.argv[0]}: {error.strerror}"

    def _spawn(self) -> None:
        launch = self.launch
        before = os.sched_getaffinity(0)
        if launch.node:
            os.sched_setaffinity(0, processors(launch.node))
        try:
            self.pid, self.began = spawn(
                launch.argv, launch.directory, launch.runtime, launch.ram_bytes
            )
        finally:
            if launch.node:
                os.sched_setaffinity(0, before)

    @property
    def over(self) -> bool:
        """Is it decided?"""
        return self.done or bool(self.error)

    @property
    def greeted(self) -> bool:
        """Has QEMU said anything?"""
        return bool(self.received)

    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._since

    def receive(self) -> None:
        """Take in what QEMU has said."""
        assert self.connection is not None
        try:
            chunk = self.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.error = "QEMU ended"
            return
        if not self.received:
            self._since = time.monotonic()
        self.received += chunk
        end = self.received.rfind(b"\n") + 1
        for line in self.received[self._read : end].splitlines():
            self._look_at(line.replace(b" ", b""))
        self._read = max(self._read, end)
        if self._loaded and self.run and not self.told and not self.error:
            self._let_run()
        self.done = not self.error and self._loaded and (self._runs or not self.run)

    def _let_run(self) -> None:
        """Let the processors run; see :meth:`pkernfs.vmm.config.Guest.begins_to_run`."""
        assert self.connection is not None
        try:
            self._rename("saved.json", "started.json")
            self.told = True
            self.connection.sendall(b'{"execute": "cont"}\n')
        except OSError as error:
            self.error = f"can't let it run: {error.strerror}"

    def _take_back(self) -> None:
        """The guest does not run: QEMU refuses before that (qmp_cont() in monitor/qmp-cmds.c)."""
        self.told = False
        try:
            self._rename("started.json", "saved.json")
        except OSError as error:
            self.error = f"QEMU refuses, and its files can't be renamed: {error.strerror}"

    def _rename(self, old: str, new: str) -> None:
        if os.path.lexists(f"{self.launch.files}/{old}"):
            os.rename(f"{self.launch.files}/{old}", f"{self.launch.files}/{new}")

    def _look_at(self, line: bytes) -> None:
        # Quotes inside of a JSON string are escaped, so none of this can be part of one.
        if line.startswith(b'{"error":'):
            self.error = "QEMU refuses"
            if self.told:
                self._take_back()
        elif b'"event":"RESUME"' in line:
            self._runs = True
        elif b'"event":"MIGRATION"' in line:
            if b'"status":"completed"' in line:
                self._loaded = True
            elif b'"status":"failed"' in line:
                self.error = "its state can't be loaded"

    def check_time(self) -> None:
        """Give it up when it has taken too long."""
        limit = LOAD_S if self.greeted else START_S
        if not self.over and self.age() > limit:
            what = "load its state" if self.greeted else "start"
            if self.told:
                what = "let the guest run"
            self.error = f"QEMU did not {what} within {limit:g} s"


class Launcher:
    """Starts QEMUs in their order, so many at a time, and waits for their guests to run.

    :ivar attempts: those that were started, in order.
    """

    def __init__(self, launches: list[tuple[Launch, bool]], slots: int | None = None) -> None:
        """Prepare.

        :param launches: each with whether its guest ran when it was saved.
        :param slots: how many start at a time; None: one on each processor.
        """
        self.attempts: list[Attempt] = []
        self._waiting = [Attempt(launch, run) for launch, run in launches]
        self._slots = slots or len(os.sched_getaffinity(0))
        self._poll = select.poll()
        self._by_fd: dict[int, Attempt] = {}

    def run(self, *, to_the_end: bool) -> bool:
        """Start all, and wait until each is decided.

        :param to_the_end: False: return as well when nothing is left to start and those that
            are not decided have had :data:`SLOT_S`, so that others need not wait.
        :returns: is every one decided?
        """
        while True:
            self._start_some()
            pending = [it for it in self.attempts if not it.over]
            if not pending and not self._waiting:
                return True
            if not to_the_end and not self._waiting and all(it.age() > SLOT_S for it in pending):
                return False
            for fd, _ in self._poll.poll(_POLL_MS):
                self._by_fd[fd].receive()
            for attempt in pending:
                attempt.check_time()
                if attempt.over:
                    self._forget(attempt)

    def _start_some(self) -> None:
        busy = sum(not it.over and it.age() < SLOT_S for it in self.attempts)
        while self._waiting and busy < self._slots:
            attempt = self._waiting.pop(0)
            attempt.start()
            self.attempts.append(attempt)
            if attempt.error or attempt.connection is None:
                continue
            busy += 1
            self._by_fd[attempt.connection.fileno()] = attempt
            self._poll.register(attempt.connection.fileno(), select.POLLIN)

    def _forget(self, attempt: Attempt) -> None:
        if attempt.connection is not None:
            del self._by_fd[attempt.connection.fileno()]
            self._poll.unregister(attempt.connection.fileno())
