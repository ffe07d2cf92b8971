# SPDX-License-Identifier: GPL-2.0-only
"""The verbs make, ls, check and dump, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pkernfs.cli import build_app, target
from pkernfs.errors import PkernfsError
from pkernfs.store import regions

from .test_image import region
from .writer import BASE, sample


def run(*words: object) -> Result:
    """Run a verb; expected failures are raised as :class:`PkernfsError`."""
    result = CliRunner().invoke(build_app(str(words[0])), [str(word) for word in words])
    if isinstance(result.exception, PkernfsError):
        raise result.exception
    return result


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "store.img"
    sample().save(path)
    return path


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_make_then_check(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    made = run("make", path, "--size", "8M", "--base", "4G", "--label", "main")
    assert made.exit_code == 0
    assert "8 MiB" in made.output
    checked = run("check", path)
    assert checked.exit_code == 0
    assert checked.output.splitlines()[-1].startswith(f"{path}: clean, 0 files, 1 directory")
    with pytest.raises(PkernfsError, match="not blank"):
        run("make", path)
    assert run("make", path, "--force").exit_code == 0


def test_make_refuses_without_touching_anything(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    for words in (("--size", "7M"), ("--size", "8M", "--base", "4K"), ("--size", "x")):
        with pytest.raises(PkernfsError):
            run("make", path, *words)
    with pytest.raises(PkernfsError, match="says its address"):
        run("make", "8M!4G", "--base", "4G")


def test_check_says_each_finding_and_sums_up(image: Path) -> None:
    damage(image, 4096 * 4 + 50)
    result = run("check", image)
    assert result.exit_code == 1
    finding, last = result.output.splitlines()
    assert finding.startswith("damage: slot-checksum: slot 4: wrong checksum (perhaps inode ")
    assert finding.endswith(" 'ram')")
    assert last.startswith(f"{image}: damaged, 1 slot left out, 3 files")
    assert last.endswith(" 0 of 16 blocks free")
    damage(image, 4096 + 50)
    lines = run("check", image).output.splitlines()
    assert lines[2] == "error: root: /: there is no root directory"
    assert lines[-1].startswith(f"{image}: damaged, 1 error, 2 slots left out")


def test_check_repair_gives_up_what_is_damaged(image: Path) -> None:
    damage(image, 4096 * 4 + 50)
    before = image.read_bytes()
    assert run("check", image).exit_code == 1
    assert image.read_bytes() == before, "only when told so"
    result = run("check", image, "--repair")
    assert result.exit_code == 0
    given_up, last = result.output.splitlines()
    assert given_up.startswith("given up: slot 4, perhaps inode ")
    assert given_up.endswith(" 'ram'")
    assert last == f"{image}: clean, 3 files, 3 directories, 1 symlink, 11 of 16 blocks free"
    after = bytearray(before)
    after[4096 * 4 : 4096 * 4 + 8] = bytes(8)
    assert image.read_bytes() == after, "one word has changed"
    assert run("check", image, "--repair").output.splitlines() == [last]


def test_check_repair_keeps_what_it_can_not_repair(image: Path) -> None:
    damage(image, 4096 + 50)
    before = image.read_bytes()
    with pytest.raises(PkernfsError, match="more is damaged"):
        run("check", image, "--repair")
    with pytest.raises(PkernfsError, match="no JSON"):
        run("check", image, "--repair", "--json")
    assert image.read_bytes() == before


def test_check_of_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "zero"
    path.write_bytes(bytes(8 << 20))
    result = run("check", path)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"{path}: not a store, 1 error"
    with pytest.raises(PkernfsError) as caught:
        run("check", tmp_path / "nothing")
    assert caught.value.status == 2


def test_check_json(image: Path) -> None:
    value = json.loads(run("check", image, "--json").output)
    assert value["schema"] == "pkernfs-check/1"
    assert (value["verdict"], value["findings"]) == ("clean", [])
    assert value["usage"]["free_blocks"] == 8


def test_parts_of_files(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    sample().save(path, 8192, behind=5)
    assert run("check", f"{path}@8K").exit_code == 0
    assert run("check", path, "--offset", "0x2000").exit_code == 0
    assert run("check", path, "--offset", "8K", "--size", "32M").exit_code == 0
    assert run("check", path, "--offset", "8K", "--size", "16M").exit_code == 1
    assert run("check", path).exit_code == 2


def test_ls(image: Path) -> None:
    assert run("ls", image).output.split() == ["nothing", "paged", "vm"]
    assert run("ls", image, "/vm").output.split() == ["empty", "far", "link", "ram"]
    assert run("ls", image, "vm/ram").output.split() == ["/vm/ram"]
    assert run("ls", image, "-R").output.split()[-1] == "/vm/ram"
    with pytest.raises(PkernfsError, match="no such file"):
        run("ls", image, "vm/rom")


def test_ls_long_shows_addresses(image: Path) -> None:
    lines = run("ls", image, "/vm", "-l").output.splitlines()
    ram = lines.index(next(line for line in lines if line.endswith(" ram")))
    assert lines[ram].startswith("-rw-r--r--")
    first = BASE + 2 * (2 << 20)
    assert lines[ram + 1].split() == [
        "0x0000000000",
        "4",
        "MiB",
        f"{first:#x}-{first + (4 << 20) - 1:#x}",
    ]
    assert any(line.endswith("link -> ../nothing") for line in lines)
    assert any(line.startswith("-rwS") or line.startswith("-rw") for line in lines)


def test_ls_json(image: Path) -> None:
    value = json.loads(run("ls", image, "/vm", "--json").output)
    (ram,) = [item for item in value if item["path"] == "/vm/ram"]
    assert ram["extents"][0] == {"offset": 0, "address": BASE + (4 << 20), "size": 4 << 20}


def test_ls_of_a_damaged_store_warns(image: Path) -> None:
    damage(image, 4096 * 3 + 50)
    assert "damaged" in run("ls", image).stderr


def test_dump(image: Path) -> None:
    value = json.loads(run("dump", image, "--json").output)
    assert value["schema"] == "pkernfs-dump/1"
    assert value["super"]["base"] == BASE
    assert len(value["inodes"]) == 8
    assert value["metadata_blocks"] == [0, 6]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one region, not mounted."""
    directory = tmp_path / "sys"
    region(directory / "main", sample())

    def names() -> list[str]:
        return regions.region_names(directory)

    def open_region(name: str) -> Any:
        return regions.open_region(name, directory)

    monkeypatch.setattr(target, "region_names", names)
    monkeypatch.setattr(target, "only_region", lambda: regions.only_region(directory))
    monkeypatch.setattr(target, "open_region", open_region)
    return directory


def test_the_region_of_this_host(host: Path) -> None:
    assert host.is_dir()
    assert run("check").output.startswith("main: clean")
    assert run("check", "main").exit_code == 0
    assert run("ls", "main", "/vm").exit_code == 0
    with pytest.raises(PkernfsError, match="held by the module"):
        run("make", "main")
    with pytest.raises(PkernfsError, match="go with an image file"):
        run("check", "--size", "8M")


def test_a_mount_point_is_its_region(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.is_dir()
    mount = regions.Mount(Path("/mnt/pkernfs"), "main")

    def mount_of(path: Path, mountinfo: str) -> regions.Mount | None:
        assert mountinfo
        return mount if path.is_relative_to(mount.point) else None

    monkeypatch.setattr(target, "mount_of", mount_of)
    assert run("ls", "/mnt/pkernfs").output.split() == ["nothing", "paged", "vm"]
    assert run("ls", "/mnt/pkernfs/vm").output.split() == ["empty", "far", "link", "ram"]


def test_a_range_of_memory_is_dev_mem() -> None:
    found = target.resolve("8M!4G")
    assert found.file == Path("/dev/mem")
    assert (found.offset, found.size, found.base) == (4 << 30, 8 << 20, 4 << 30)
