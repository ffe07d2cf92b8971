# SPDX-License-Identifier: GPL-2.0-only
"""The first thing that ``pkernfs resume`` does: start the guests that the update wrote down.

Paused guests wait for it, and loading the rest of this program takes longer than starting
QEMU. So nothing is imported here but :mod:`pkernfs.vmm.launch`, nothing is asked, and nothing
is reported. Whatever is not as the update left it is left to :mod:`pkernfs.update.resume`.
"""

from __future__ import annotations

import fcntl
import os
import time

from pkernfs.vmm.launch import Launch, Launcher, parse, start_time

#: In the directory of an update's records: what the next kernel starts, the first one first.
LAUNCH_FILE = "launch"

#: How long those who only look may seem to hold the lock (seconds): it is a moment.
READ_S = 1.0


class Early:
    """What was done.

    :ivar lock: descriptor that holds the lock of updates.
    :ivar began_ns: when this process began; all times are CLOCK_BOOTTIME.
    :ivar loaded_ns: when the first line of this module ran.
    :ivar checked_ns: when all files had been looked at.
    :ivar launcher: knows what became of the guests.
    """

    def __init__(
        self, lock: int, began_ns: int, loaded_ns: int, checked_ns: int, launcher: Launcher
    ) -> None:
        self.lock = lock
        self.began_ns = began_ns
        self.loaded_ns = loaded_ns
        self.checked_ns = checked_ns
        self.launcher = launcher


def now_ns() -> int:
    """CLOCK_BOOTTIME, nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def process_began_ns() -> int:
    """When this process began, CLOCK_BOOTTIME (exact to a clock tick, 10 ms)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _update_of(line: str) -> str | None:
    """Id of the update that started this kernel, from its boot line."""
    found = None
    for word in line.split():
        if word.startswith("pkernfs_update="):
            found = word.partition("=")[2]
    return found


def _number(text: str, member: str) -> int:
    """A member of a JSON object that this program has written, one member on a line."""
    return int(text.partition(f'"{member}": ')[2].partition("\n")[0].rstrip(","))


def _is_saved(launch: Launch, update: str) -> bool | None:
    """Did the guest run when this update saved it? None when its files are not as it left them."""
    try:
        with open(f"{launch.files}/saved.json", encoding="utf-8") as file:
            text = file.read()
        same = f'"update": "{update}"' in text and text.endswith("}\n")
        same &= os.stat(launch.ram).st_size == launch.ram_bytes
        same &= os.stat(f"{launch.files}/state").st_size == _number(text, "state_bytes")
        same &= not _has_process(launch.runtime)
    except (OSError, ValueError):
        return None
    return '"was_running": true' in text if same else None


def _has_process(runtime: str) -> bool:
    try:
        with open(f"{runtime}/pid", encoding="ascii") as file:
            pid, began = file.read().split()
    except (OSError, ValueError):
        return False
    return start_time(int(pid)) == began


def only_read(lock: int) -> bool:
    """Does nobody hold the lock but those who look whether somebody does?

    :param lock: descriptor of its file; it does not hold the lock.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _lock(run: str) -> int | None:
    os.makedirs(run, mode=0o700, exist_ok=True)
    lock = os.open(f"{run}/update.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = now_ns() + int(READ_S * 1e9)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not only_read(lock) or now_ns() > deadline:
                os.close(lock)
                return None
        time.sleep(0.005)
    # What pkernfs.update.lock writes: who holds it.
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()} resume\n".encode())
    return lock


def _written_down(store: str, boot_line: str) -> list[tuple[Launch, bool]]:
    try:
        with open(boot_line, encoding="utf-8", errors="replace") as file:
            update = _update_of(file.read())
        if update is None:
            return []
        with open(f"{store}/updates/{update}/{LAUNCH_FILE}", encoding="utf-8") as file:
            launches = parse(file.read())
    except (OSError, ValueError):
        return []
    found = [(launch, _is_saved(launch, update)) for launch in launches]
    return [(launch, run) for launch, run in found if run is not None]


def begin(
    store: str = "/mnt/pkernfs", run: str = "/run/pkernfs", boot_line: str = "/proc/cmdline"
) -> Early | None:
    """Start the guests, and wait for them as long as that holds back nobody.

    :returns: None when there is nothing to start, or the store is not mounted yet.
    """
    loaded = now_ns()
    launches = _written_down(store, boot_line)
    lock = _lock(run) if launches else None
    if lock is None:
        return None
    checked = now_ns()
    launcher = Launcher(launches)
    launcher.run(to_the_end=False)
    return Early(lock, process_began_ns(), loaded, checked, launcher)
