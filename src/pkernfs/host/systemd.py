# SPDX-License-Identifier: GPL-2.0-only
"""systemd: units for guests, and what it is about to do with the host.

Spoken to by systemctl, which works for root without a D-Bus daemon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine

_TEMPLATE = "pkernfs-vm@.service"
KEEPER = "pkernfs-kexec.service"

#: Where units lie, as far as an administrator or a package puts any there, the first one that
#: counts first (systemd.unit(5), "System Unit Search Path").
UNIT_DIRECTORIES = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)

#: Seconds that systemd may take for an answer.
_ANSWER_S = 60.0


def guest_unit(name: str) -> str:
    """Name of a guest's unit. The characters of a guest's name need no escapes but "-".

    systemd.unit(5): in the name of an instance a dash stays a dash as long as nobody
    unescapes it (``%I``), and the units use ``%i``.
    """
    return _TEMPLATE.replace("@", f"@{name}")


def booted(machine: Machine) -> bool:
    """Is systemd the first program of this host? (sd_booted(3))"""
    return (machine.root / "run/systemd/system").is_dir()


def has_units(machine: Machine) -> bool:
    """Does systemd run here, and are the units of guests installed?"""
    return booted(machine) and _file(machine, _TEMPLATE) is not None


def _file(machine: Machine, unit: str) -> Path | None:
    """The file of a unit that counts; None when there is none."""
    paths = (machine.root / directory / unit for directory in UNIT_DIRECTORIES)
    return next((path for path in paths if path.exists() or path.is_symlink()), None)


def is_masked(machine: Machine, unit: str) -> bool:
    """Is a unit one that systemd never starts: linked to /dev/null, or empty?"""
    path = _file(machine, unit)
    if path is None:
        return False
    if path.is_symlink() and path.readlink() == Path(os.devnull):
        return True
    return path.is_file() and path.stat().st_size == 0


def commands(machine: Machine, unit: str) -> list[str] | None:
    """The programs that a service is started by, as its ExecStart= names them.

    :returns: None when there is no such unit.
    """
    path = _file(machine, unit)
    if path is None or not path.is_file():
        return None
    # Drop-ins count after the unit's own file, by name; one in a directory that comes earlier
    # replaces those of its name.
    drop_ins: dict[str, Path] = {}
    for directory in reversed(UNIT_DIRECTORIES):
        for file in (machine.root / directory / f"{unit}.d").glob("*.conf"):
            drop_ins[file.name] = file
    found: list[str] = []
    for file in (path, *(drop_ins[name] for name in sorted(drop_ins))):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, mark, value = line.partition("=")
            if not mark or key.strip() != "ExecStart":
                continue
            words = value.split()
            # An empty one takes back those before it; what stands before a program says how
            # to run it (systemd.service(5), "Command lines").
            found = [*found, words[0].lstrip("@-:+!|")] if words else []
    return found


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PkernfsError(f"systemctl {arguments[0]} does not answer: {error}") from error


def enter_units(names: Sequence[str], machine: Machine) -> None:
    """Have guests that run move into their units, as soon as systemd comes to it.

    Without systemd, or without the units, they stay where they are.

    :param names: the guests.
    :raises PkernfsError: systemd refuses.
    """
    if not names or not has_units(machine):
        return
    done = _systemctl("start", "--no-block", *(guest_unit(name) for name in names))
    if done.returncode:
        raise PkernfsError(
            f"systemd does not take the guests over: {done.stderr.strip()}",
            "they run, but a shutdown would end them: "
            f"systemctl start {' '.join(guest_unit(name) for name in names)}",
        )


def leave_unit(name: str, machine: Machine) -> None:
    """Wait until systemd has noticed that a guest is off, so that it can be started again."""
    if has_units(machine):
        _systemctl("stop", guest_unit(name))
        _systemctl("reset-failed", guest_unit(name))


def going_down_by_kexec() -> bool:
    """Is the host on its way down, into another kernel by kexec?

    :raises PkernfsError: systemd does not answer.
    """
    jobs = _systemctl("list-jobs", "--plain", "--no-legend", "--full").stdout
    return any(line.split()[1:3] == ["kexec.target", "start"] for line in jobs.splitlines())


def call_shutdown_off(reason: str) -> None:
    """Stay up: drop all that systemd was about to stop, and start again what it has stopped.

    :param reason: told to everybody who is logged in; systemctl has long come back.
    :raises PkernfsError: systemd does not answer.
    """
    _systemctl("cancel")
    # The keeper is the one that calls this, while it is being stopped.
    _systemctl("start", "--no-block", "default.target", KEEPER)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["wall", reason], check=False, timeout=_ANSWER_S, capture_output=True)


def is_active(unit: str) -> bool:
    """Is a unit up?

    :raises PkernfsError: systemd does not answer.
    """
    return _systemctl("is-active", "--quiet", unit).returncode == 0


def move_here(pid: int) -> None:
    """Move a process into the unit that this program runs in.

    :raises PkernfsError: the kernel refuses, or this is no unit.
    """
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    # cgroups(7): "0::PATH" is the unified hierarchy, the one that systemd watches.
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if path is None:
        raise PkernfsError(
            "this host has no unified cgroup hierarchy",
            "boot without systemd.unified_cgroup_hierarchy=0",
        )
    try:
        Path(f"/sys/fs/cgroup{path}/cgroup.procs").write_text(f"{pid}\n", encoding="ascii")
    except OSError as error:
        raise PkernfsError(f"process {pid} can't be moved to {path}: {error.strerror}") from error


def now_main(pid: int) -> None:
    """Tell systemd that the unit is up, and that this process is what it consists of.

    sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(address)
        notify.sendall(f"MAINPID={pid}\nREADY=1\n".encode())
