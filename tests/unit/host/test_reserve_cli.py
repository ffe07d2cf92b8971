# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs reserve`` on machines made of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pkernfs.cli import build_app
from pkernfs.errors import PkernfsError
from pkernfs.host import grub
from tests.unit.host.test_reserve import NODE0, NODE1, machine_of_two

Reserve = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / grub.DROP_INS).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def reserve(root: Path, monkeypatch: pytest.MonkeyPatch) -> Reserve:
    """Runs the verb; its output."""
    machine = machine_of_two(root)
    monkeypatch.setattr("pkernfs.host.machine.Machine", lambda: machine)
    monkeypatch.setenv("PATH", "/nowhere")
    app = build_app("reserve")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["reserve", *arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


def _refused(reserve: Reserve, says: str, *arguments: str, status: int = 1) -> PkernfsError:
    with pytest.raises(PkernfsError, match=says) as caught:
        reserve(*arguments)
    assert caught.value.hint
    assert caught.value.status == status
    return caught.value


def test_one_region_after_the_other(reserve: Reserve, root: Path) -> None:
    assert "run update-grub, then reboot" in reserve("--size", "1G", "--node", "0")
    assert "node1:1G!0x140000000" in reserve("--size", "1G", "--node", "1")
    assert grub.words_of((root / grub.DROP_IN).read_text()) == (
        "memmap=2G$0x100000000",
        f"pkernfs.region={NODE0},{NODE1}",
    )
    assert reserve("--remove", "node0").startswith(
        f"/{grub.DROP_IN}: memmap=1G$0x140000000 pkernfs.region={NODE1}\n"
    )
    assert ": no region\n" in reserve("--remove", "node1")
    assert grub.words_of((root / grub.DROP_IN).read_text()) == ()
    _refused(reserve, "no region is named node1", "--remove", "node1")


def test_a_dry_run_prints_the_words_alone(reserve: Reserve, root: Path) -> None:
    said = reserve("--size", "2G", "--node", "1", "--name", "big", "--dry-run")
    assert said == "memmap=2G$0x140000000 pkernfs.region=big:2G!0x140000000\n"
    assert list((root / grub.DROP_INS).iterdir()) == []
    value = json.loads(reserve("--size", "1G", "--dry-run", "--json"))
    assert value["schema"] == "pkernfs-reserve/1"
    assert value["written"] is False
    assert value["words"] == ["memmap=1G$0x100000000", "pkernfs.region=1G!0x100000000"]
    assert [region["name"] for region in value["regions"]] == ["pkernfs"]


def test_the_list_says_what_is_and_what_will_be(reserve: Reserve) -> None:
    reserve("--size", "1G", "--node", "1", "--no-update-grub")
    text = reserve("--list").splitlines()
    assert text[0].split()[:4] == ["node1", "1G", "node", "1"]
    assert text[0].endswith("next boot")
    assert text[1:] == ["room on node 0      1G", "room on node 1      1G"]
    value = json.loads(reserve("--list", "--json"))
    (region,) = value["regions"]
    assert (region["node"], region["now"], region["next_boot"]) == (1, False, True)


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        ((), "one of --size, --remove and --list", 2),
        (("--size", "1G", "--list"), "one of --size, --remove and --list", 2),
        (("--list", "--node", "0"), "go with --size", 2),
        (("--size", "1G", "--node", "0", "--node", "1", "--name", "x"), "one name", 2),
        (("--size", "1G", "--name", "none"), "can't be the name", 2),
        (("--size", "1G", "--name", "a,b"), "can't be the name", 2),
        (("--size", "1G", "--name", ".a"), "can't be the name", 2),
        (("--size", "1G", "--name", "x" * 32), "can't be the name", 2),
        (("--size", "much"), "is not a size", 1),
        (("--size", "3G"), "no 3G in one piece", 1),
        (("--size", "1G", "--node", "2"), "no NUMA node 2", 1),
    ],
)
def test_what_can_not_be_meant(
    reserve: Reserve, root: Path, arguments: tuple[str, ...], says: str, status: int
) -> None:
    _refused(reserve, says, *arguments, status=status)
    assert list((root / grub.DROP_INS).iterdir()) == []


def test_words_that_were_typed_by_hand_are_taken_over(reserve: Reserve, root: Path) -> None:
    (root / "proc/cmdline").write_text("quiet memmap=1G$6G pkernfs.region=1G!6G\n")
    defaults = root / grub.DEFAULTS
    defaults.write_text('GRUB_CMDLINE_LINUX="memmap=1G\\\\\\$6G pkernfs.region=1G!6G"\n')
    error = _refused(reserve, "names pkernfs.region already", "--size", "1G", "--node", "1")
    assert "remove that word" in error.hint
    defaults.write_text('GRUB_CMDLINE_LINUX=""\n')
    assert "pkernfs.region=1G!0x180000000,node1:1G!0x140000000" in reserve(
        "--size", "1G", "--node", "1"
    )


def test_another_boot_loader_gets_the_words_said(reserve: Reserve, root: Path) -> None:
    (root / grub.DROP_INS).rmdir()
    error = _refused(reserve, "no GRUB that reads it", "--size", "1G", "--node", "0")
    assert error.hint.endswith("memmap=1G$0x100000000 pkernfs.region=node0:1G!0x100000000")


def test_the_same_words_again_are_written_anew(reserve: Reserve, root: Path) -> None:
    """Instead of asking for the name of a further region."""
    first = reserve("--size", "1G")
    (root / grub.DROP_IN).write_text(grub.render(["pkernfs.region=1G!0x100000000"]))
    assert reserve("--size", "1G") == first
    error = _refused(reserve, "a further region needs a name", "--size", "2G")
    assert "--name" in error.hint


def test_a_host_that_boots_by_another_loader_is_told_what_to_write(
    reserve: Reserve, root: Path
) -> None:
    file = root / "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x06\0\0\0" + "systemd-boot 257\0".encode("utf-16-le"))
    error = _refused(reserve, "boots by systemd-boot 257", "--size", "1G")
    assert "/etc/kernel/cmdline: memmap=1G$0x100000000 pkernfs.region=" in error.hint
    assert list((root / grub.DROP_INS).iterdir()) == []
