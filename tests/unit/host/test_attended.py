# SPDX-License-Identifier: GPL-2.0-only
"""Boots that wait for a person, on machines made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.host import attended, doctor
from pkernfs.host.machine import Machine
from tests.answers import answers

_ROOT, _DATA = "254:0", "254:1"


def _machine(home: Path, crypttab: str = "", line: str = "quiet") -> Machine:
    """A host whose root lies on an encrypted volume, and that has a second one, for data."""

    def put(path: str, text: str) -> None:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text + "\n")

    put("proc/cmdline", line)
    put("etc/crypttab", crypttab)
    put("proc/self/mountinfo", f"22 1 {_ROOT} / / rw - ext4 /dev/mapper/vda3_crypt rw")
    for number, name in ((_ROOT, "vda3_crypt"), (_DATA, "data")):
        device = f"sys/class/block/dm-{number[-1]}"
        put(f"{device}/dev", number)
        put(f"{device}/dm/name", name)
        put(f"{device}/dm/uuid", f"CRYPT-LUKS2-{name}")
        (home / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (home / "sys/dev/block" / number).symlink_to(home / device)
    return Machine(home)


_DATA_BY_KEY = "\ndata UUID=2 /etc/keys/data luks"


@pytest.mark.parametrize(
    ("crypttab", "names"),
    [
        ("vda3_crypt UUID=1 none luks,discard", ["vda3_crypt"]),
        ("vda3_crypt UUID=1 - luks", ["vda3_crypt"]),
        ("vda3_crypt UUID=1", ["vda3_crypt"]),
        ("vda3_crypt UUID=1 /boot/key luks,initramfs", []),
        ("vda3_crypt UUID=1 none luks,tpm2-device=auto", []),
        ("vda3_crypt UUID=1 none luks,fido2-device=auto", ["vda3_crypt"]),
        ("vda3_crypt UUID=1 none luks,keyscript=/lib/cryptsetup/scripts/passdev", []),
        ("vda3_crypt UUID=1 none luks,keyscript=decrypt_keyctl", ["vda3_crypt"]),
        ("# nothing", ["vda3_crypt"]),
        ("vda3_crypt UUID=1 /key luks\ndata UUID=2 none luks", ["data"]),
        ("vda3_crypt UUID=1 /key luks\ndata UUID=2 none luks,nofail", []),
        ("vda3_crypt UUID=1 /key luks\nother UUID=3 none luks", []),
    ],
)
def test_who_is_asked_for_a_passphrase(tmp_path: Path, crypttab: str, names: list[str]) -> None:
    machine = _machine(tmp_path, crypttab)
    assert attended.waits_for(machine) == [f"the passphrase of {name}" for name in names]


def test_clevis_answers_for_the_person(tmp_path: Path) -> None:
    machine = _machine(tmp_path, "vda3_crypt UUID=1 none luks")
    hook = tmp_path / "usr/share/initramfs-tools/hooks/clevis"
    hook.parent.mkdir(parents=True)
    hook.touch()
    assert attended.waits_for(machine) == []


@answers(
    phase="check",
    failure="the next kernel's boot asks for a passphrase, or its boot line stops for somebody",
    outcome="refused, unless overridden: guests would stand still until somebody comes",
)
def test_doctor_says_so_before(tmp_path: Path) -> None:
    machine = _machine(tmp_path, "vda3_crypt UUID=1 none luks", "quiet single")
    found = [f for f in doctor.examine(machine, tmp_path, None) if f.id == "boot.attended"]
    assert [(f.status, f.overridable) for f in found] == [(doctor.Status.BLOCKER, True)]
    assert "the passphrase of vda3_crypt and single in the boot line" in found[0].text
