# SPDX-License-Identifier: GPL-2.0-only
"""Will anything run ``pkernfs resume`` in the next kernel? Guests wait for it, in vain if not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pkernfs.host import systemd
from pkernfs.host.doctor import Finding, blocker, ok
from pkernfs.host.machine import Machine

_TOPIC = "units"

#: What is enabled; it wants the mounts, resume and the watchdog.
_TARGET = "pkernfs.target"
_RESUME = "pkernfs-resume.service"
_ENABLE = f"make install-units in the sources of pkernfs, then systemctl enable {_TARGET}"

#: Where what systemd wants is linked: by systemctl enable, and by the boot line's
#: systemd.wants= (systemd-debug-generator(8)), which the next kernel gets as well.
_WANTS = (*systemd.UNIT_DIRECTORIES, "run/systemd/generator.early", "run/systemd/generator")

#: Where systemd looks for a program that a unit names without its path (systemd-path(1),
#: search-binaries-default).
_PROGRAMS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin")

#: What other inits run when they start: sysvinit, OpenRC, runit, s6, and whoever has an rc.local.
_SCRIPTS = (
    *("etc/inittab", "etc/rc.local", "etc/rc.d/rc.local", "etc/init.d/*", "etc/local.d/*.start"),
    *("etc/sv/*/run", "etc/s6/sv/*/run", "etc/s6-rc/source/*/up", "etc/rc[S2-5].d/S*"),
)

#: Longer files are programs (bytes).
_SCRIPT_LIMIT = 1 << 20

_RESUMES = re.compile(r"^[^#\n]*\bpkernfs[ \t]+resume\b", re.MULTILINE)


def examine(machine: Machine) -> Iterator[Finding]:
    """Look for what has the guests resumed, by systemd or by another init."""
    yield from _by_systemd(machine) if systemd.booted(machine) else _by_scripts(machine)


def _by_systemd(machine: Machine) -> Iterator[Finding]:
    if not any(_wanted(machine, unit) for unit in (_TARGET, _RESUME)):
        yield _blocker(
            f"{_TARGET} is not enabled: after an update nobody brings the guests back by itself",
            _ENABLE,
            "units.disabled",
        )
        return
    for unit in (_TARGET, _RESUME):
        if systemd.is_masked(machine, unit):
            yield _blocker(
                f"{unit} is masked: systemd starts it never",
                f"systemctl unmask {unit}",
                "units.masked",
            )
            return
    commands = systemd.commands(machine, _RESUME)
    if commands is None:
        yield _blocker(f"there is no {_RESUME}", _ENABLE, "units.missing")
        return
    for command in commands or [""]:
        if not _is_program(machine, command):
            yield _blocker(
                f"{_RESUME} runs {command or 'nothing'}, which systemd finds nowhere or can't run",
                'ln -s "$(command -v pkernfs)" /usr/local/bin/pkernfs, or ExecStart= with its path',
                "units.program",
            )
            return
    yield ok(_TOPIC, f"{_TARGET} is enabled: systemd brings the guests back after an update")


def _blocker(text: str, hint: str, id: str) -> Finding:
    return blocker(_TOPIC, text, hint, id, overridable=True)


def _wanted(machine: Machine, unit: str) -> bool:
    homes = (machine.root / home for home in _WANTS)
    links = [f"*.{kind}/{unit}" for kind in ("wants", "requires")]
    return any(any(home.glob(link)) for home in homes for link in links)


def _is_program(machine: Machine, name: str) -> bool:
    """Does systemd find this program, and may it run it?"""
    if name.startswith("/"):
        return _executable(machine.root / name[1:])
    return bool(name) and any(_executable(machine.root / home / name) for home in _PROGRAMS)


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _by_scripts(machine: Machine) -> Iterator[Finding]:
    script = next((path for path in _scripts(machine) if _resumes(path)), None)
    if script is not None:
        where = Path("/") / script.relative_to(machine.root)
        yield ok(_TOPIC, f"the host is not run by systemd; {where} runs pkernfs resume")
        return
    yield _blocker(
        "the host is not run by systemd, and no script of its init runs pkernfs resume:"
        " after an update nobody brings the guests back by itself",
        "have its init run pkernfs resume (and pkernfs watchdog) when it starts",
        "units.no-systemd",
    )


def _scripts(machine: Machine) -> Iterator[Path]:
    """The first program, if it is a script, and what the usual ones run."""
    for word in (machine.read("proc/1/cmdline") or "").split("\0"):
        if word.startswith("/"):
            yield machine.root / word[1:]
    for pattern in _SCRIPTS:
        yield from sorted(machine.root.glob(pattern))


def _resumes(script: Path) -> bool:
    try:
        if script.stat().st_size > _SCRIPT_LIMIT:
            return False
        text = script.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return _RESUMES.search(text) is not None
