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
