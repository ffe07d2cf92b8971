# SPDX-License-Identifier: GPL-2.0-only
"""The file for GRUB: what the shell that reads it makes of it, and what becomes of a failure."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.host import grub
from pkernfs.host.machine import Machine
from pkernfs.host.ranges import Range, Region
from pkernfs.host.reserve import boot_words
from tests.answers import answers

_name = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", fullmatch=True)
_region = st.builds(
    Region, _name, st.builds(Range, st.integers(4, 1 << 20), st.integers(1, 1 << 14))
).map(lambda r: Region(r.name, Range(r.range.start << 30, r.range.size << 30)))
_words = st.lists(_region, min_size=1, max_size=4).map(boot_words)


def sourced(files: Sequence[Path]) -> str:
    """GRUB_CMDLINE_LINUX after a shell read the files, as grub-mkconfig does."""
    script = 'for x; do . "$x"; done; printf %s "$GRUB_CMDLINE_LINUX"'
    command = ["sh", "-ec", script, "sh", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_by_grub(text: str) -> str:
    """A backslash protects the next character (GRUB manual, "Quoting")."""
    assert "$" not in text.replace(r"\$", "")
    return text.replace(r"\$", "$")


@settings(deadline=None, max_examples=50)  # a shell each time
@given(_words)
def test_the_shell_and_grub_make_the_words_of_it(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]
) -> None:
    file = tmp_path_factory.mktemp("grub") / "pkernfs.cfg"
    file.write_text(grub.render(words))
    assert _read_by_grub(sourced([file])).split() == list(words)
    assert grub.words_of(file.read_text()) == words


def test_what_others_put_into_the_boot_line_stays(tmp_path: Path) -> None:
    before, after = tmp_path / "grub", tmp_path / "zz.cfg"
    before.write_text('GRUB_CMDLINE_LINUX="quiet iommu=pt"\n')
    after.write_text('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX debug"\n')
    own = tmp_path / "pkernfs.cfg"
    own.write_text(grub.render(["memmap=1G$0x100000000"]))
    assert sourced([before, own, after]) == r"quiet iommu=pt memmap=1G\$0x100000000 debug"
    own.write_text(grub.render([]))
    assert sourced([before, own, after]) == "quiet iommu=pt debug"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "etc/default/grub.d").mkdir(parents=True)
    (tmp_path / "etc/default/grub").write_text('GRUB_CMDLINE_LINUX="quiet"\n')
    return Machine(tmp_path)


def _update_grub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/update-grub"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_no_file_of_ours_is_not_the_same_as_no_region(machine: Machine) -> None:
    assert grub.regions(machine) is None
    grub.write(machine, [], update=False)
    assert grub.regions(machine) == ()


def test_update_grub_runs_with_the_new_file(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / grub.DROP_IN
    _update_grub(tmp_path, monkeypatch, f"cp {own} {tmp_path}/seen; echo ${{GRUB_X-none}} >&2")
    monkeypatch.setenv("GRUB_X", "taken for a setting")
    region = Region("a", Range(4 << 30, 1 << 30))
    assert grub.write(machine, boot_words([region]))
    assert (tmp_path / "seen").read_text() == own.read_text()
    assert grub.regions(machine) == (region,)
    # grub-mkconfig reads it as root, and so may anybody.
    assert own.stat().st_mode & 0o777 == 0o644


@answers(
    phase="input",
    failure="update-grub fails with the new regions",
    outcome="the file for GRUB is as it was before",
)
@pytest.mark.parametrize("before", [None, ["memmap=1G$0x100000000"]])
def test_a_failing_update_grub_leaves_the_file_as_it_was(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str] | None,
) -> None:
    own = tmp_path / grub.DROP_IN
    if before is not None:
        grub.write(machine, before, update=False)
    _update_grub(tmp_path, monkeypatch, "echo grub-probe: no device >&2; exit 1")
    with pytest.raises(PkernfsError, match="no device"):
        grub.write(machine, ["memmap=2G$0x100000000"])
    assert (own.read_text() if own.exists() else None) == (
        None if before is None else grub.render(before)
    )
    assert sorted(path.name for path in own.parent.iterdir()) == (
        [] if before is None else [own.name]
    )


@pytest.mark.parametrize("path", ["etc/default/grub", "etc/default/grub.d/local.cfg"])
def test_a_region_that_somebody_else_wrote_there_is_refused(
    machine: Machine, tmp_path: Path, path: str
) -> None:
    file = tmp_path / path
    file.write_text('# pkernfs.region=1G!4G\nGRUB_CMDLINE_LINUX="quiet"\n')
    grub.check_others(machine)
    file.write_text('GRUB_CMDLINE_LINUX="memmap=1G\\\\\\$4G pkernfs.region=1G!4G"\n')
    with pytest.raises(PkernfsError, match=r"names pkernfs\.region already") as caught:
        grub.check_others(machine)
    assert str(file) in caught.value.what


#: update-grub as far as it matters: sources the files, writes an entry for each kernel.
_MAKES = r"""
GRUB_CMDLINE_LINUX=
for file in ROOT/etc/default/grub ROOT/etc/default/grub.d/*.cfg; do . "$file"; done
mkdir -p ROOT/boot/grub
cat >ROOT/boot/grub/grub.cfg <<EOF
### BEGIN /etc/grub.d/10_linux ###
	linux	/boot/vmlinuz-7 root=/dev/vda1 ro ${GRUB_CMDLINE_LINUX} quiet
	linux	/boot/vmlinuz-6 root=/dev/vda1 ro ${GRUB_CMDLINE_LINUX} OLD
### END /etc/grub.d/10_linux ###
### BEGIN /etc/grub.d/30_os-prober ###
	linux	/vmlinuz-of-others root=/dev/vdb1
### END /etc/grub.d/30_os-prober ###
EOF
"""
_WORDS = boot_words([Region("a", Range(4 << 30, 1 << 30))])


def _makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str = "") -> None:
    script = _MAKES.replace("ROOT", str(tmp_path))
    found, other = ("${GRUB_CMDLINE_LINUX} OLD", old) if old else (" OLD", "")
    _update_grub(tmp_path, monkeypatch, script.replace(found, other))


def test_a_file_that_is_read_before_ours_may_set_the_line_anew(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _makes(tmp_path, monkeypatch)
    (tmp_path / "etc/default/grub.d/usb.cfg").write_text('GRUB_CMDLINE_LINUX="console=ttyS0"\n')
    # As an earlier version wrote it, which was read before that one.
    (tmp_path / "etc/default/grub.d/pkernfs.cfg").write_text(grub.render(_WORDS))
    assert grub.regions(machine) is not None
    assert grub.write(machine, _WORDS)
    assert grub.missing(machine) == []
    lines = grub.entries(machine)
    assert list(lines) == ["/boot/vmlinuz-7", "/boot/vmlinuz-6"]
    assert all(set(_WORDS) < set(line.words) for each in lines.values() for line in each)
    left = sorted(path.name for path in (tmp_path / "etc/default/grub.d").iterdir())
    assert left == ["usb.cfg", "zz-pkernfs.cfg"]


@answers(
    phase="input",
    failure="a file behind pkernfs's own in /etc/default/grub.d sets GRUB_CMDLINE_LINUX anew",
    outcome="said by reserve, which names it; the file for GRUB is as it was before",
)
def test_a_file_that_is_read_after_ours_is_named(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _makes(tmp_path, monkeypatch)
    behind = tmp_path / "etc/default/grub.d/zzz.cfg"
    behind.write_text('GRUB_CMDLINE_LINUX="quiet"\n')
    with pytest.raises(PkernfsError, match=r"not in the entry of /boot/vmlinuz-7") as caught:
        grub.write(machine, _WORDS)
    assert "grub.d/zzz.cfg sets GRUB_CMDLINE_LINUX anew" in caught.value.hint
    assert grub.regions(machine) is None
    behind.write_text('GRUB_CMDLINE_LINUX="${GRUB_CMDLINE_LINUX} quiet"\n')
    assert grub.write(machine, _WORDS)


def test_one_entry_without_the_words_is_enough(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _makes(tmp_path, monkeypatch, old="nomodeset")
    with pytest.raises(PkernfsError, match=r"not in the entry of /boot/vmlinuz-6") as caught:
        grub.write(machine, _WORDS)
    assert "another program" in caught.value.hint


def test_another_loader_says_who_it_is(machine: Machine, tmp_path: Path) -> None:
    assert grub.other_loader(machine) == ""
    file = tmp_path / "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    file.parent.mkdir(parents=True)
    for name, other in (("systemd-boot 257.9\0", "systemd-boot 257.9"), ("GRUB 2.12\0", "")):
        file.write_bytes(b"\x06\0\0\0" + name.encode("utf-16-le"))
        assert grub.other_loader(machine) == other
