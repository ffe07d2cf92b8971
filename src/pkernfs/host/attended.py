# SPDX-License-Identifier: GPL-2.0-only
"""Does the boot of the next kernel wait for a person? Guests stand still meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pkernfs.host.machine import Machine
from pkernfs.host.mounts import under

_CRYPTTAB = "etc/crypttab"
#: What says that somebody is asked (crypttab(5) of systemd and of cryptsetup).
_NO_KEY = frozenset(("none", "-", ""))
_ASKING_SCRIPT = re.compile(r"keyscript=\S*(decrypt_keyctl|askpass|decrypt_(gnupg|opensc|ssl))")
_PRESENT = re.compile(r"(fido2-device|pkcs11-uri)=")
#: Unlocked by the machine itself, or by another one over the network.
_UNATTENDED = re.compile(r"(tpm2-device|keyscript)=")
_HELPERS = ("usr/share/initramfs-tools/hooks/clevis", "usr/share/initramfs-tools/hooks/mandos")
#: Words of the boot line at which a boot stops for somebody (initramfs-tools(7), systemd(1),
#: dracut.cmdline(7)).
_STOPS = re.compile(
    r"break(=.*)?|rd\.break(=.*)?|single|[sS1]|emergency|rescue|systemd\.confirm_spawn(=.*)?"
    r"|systemd\.unit=(emergency|rescue)\.target|rd\.systemd\.unit=(emergency|rescue)\.target"
)


def waits_for(machine: Machine) -> list[str]:
    """What the next kernel's boot waits for a person with; empty if it goes through by itself."""
    return [
        *(f"the passphrase of {name}" for name in _asked(machine)),
        *(f"{word} in the boot line" for word in machine.boot_line.words if _STOPS.fullmatch(word)),
    ]


def _asked(machine: Machine) -> Iterator[str]:
    """Encrypted volumes that are open now, and are opened at each boot by what somebody types."""
    if any((machine.root / helper).exists() for helper in _HELPERS):
        return
    table = dict(_table(machine))
    below_root = under(machine, Path("/"))
    for number, name in _open_volumes(machine):
        entry = table.get(name)
        if entry is None:
            # Without an entry it is opened by hand later on, unless the root lies on it.
            if number in below_root:
                yield name
            continue
        key, options = entry
        words = options.split(",")
        if number not in below_root and {"noauto", "nofail"} & set(words):
            continue
        if (
            _ASKING_SCRIPT.search(options)
            or _PRESENT.search(options)
            or (key in _NO_KEY and not _UNATTENDED.search(options))
        ):
            yield name


def _table(machine: Machine) -> Iterator[tuple[str, tuple[str, str]]]:
    """Volumes of /etc/crypttab with their key and options."""
    for line in (machine.read(_CRYPTTAB) or "").splitlines():
        fields = line.split()
        if len(fields) >= 2 and not line.lstrip().startswith("#"):
            key, options = (*fields[2:4], "", "")[:2]
            yield fields[0], (key, options)


def _open_volumes(machine: Machine) -> Iterator[tuple[str, str]]:
    """Number and name of each volume of dm-crypt that cryptsetup has opened."""
    for home in sorted((machine.root / "sys/class/block").glob("dm-*")):
        path = home.relative_to(machine.root)
        if (machine.read(f"{path}/dm/uuid") or "").startswith("CRYPT-"):
            yield machine.read(f"{path}/dev") or "", machine.read(f"{path}/dm/name") or home.name
