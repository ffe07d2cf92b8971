# SPDX-License-Identifier: GPL-2.0-only
"""Stores in files, parts of files and sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.mountinfo import parse
from pkernfs.store.check import check
from pkernfs.store.findings import Verdict
from pkernfs.store.image import Image, RegionImage, cannot_map, consistent, open_image
from pkernfs.store.regions import Mount, mount_of, mounts, only_region, open_region, region_names

from .writer import BASE, Writer, sample

#: Where the range begins in a larger file.
PART = 12288


def test_slots_are_copies_and_end_with_the_image() -> None:
    buffer = bytearray(b"\1" * 4096 + b"\2" * 100)
    image = Image(buffer)
    first = image.slot(0)
    buffer[0] = 9
    assert first == b"\1" * 4096
    assert image.slot(1) == b"\2" * 100
    assert image.slot(2) == b""


def test_used_slots() -> None:
    writer = sample()
    assert writer.image().used_slots(0)[:3] == [0, 1, 2]
    assert 511 not in writer.image().used_slots(0)
    assert len(writer.image().used_slots(6)) == 1
    assert writer.image().used_slots(3) == []


def test_a_file_and_a_part_of_one(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    sample().save(path, PART, behind=4096)
    size = 32 << 20
    with open_image(path, PART) as image:
        assert not image.exact
        assert check(image).verdict is Verdict.CLEAN
    with open_image(path, PART, size, base=BASE) as image:
        assert check(image).verdict is Verdict.CLEAN
    with open_image(path, PART, size, base=0) as image:
        assert check(image).verdict is Verdict.DAMAGED
    with open_image(path) as image:
        assert check(image).verdict is Verdict.NOT_A_STORE


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with open_image(path) as image:
        assert check(image).verdict is Verdict.NOT_A_STORE


def test_a_large_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with open_image(path) as image:
        assert image.size == 1 << 40
        assert check(image).verdict is Verdict.NOT_A_STORE
    assert path.stat().st_blocks == 0


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [(1, None, "multiple"), (-4096, None, "multiple"), (8192, None, "ends"), (0, 8192, "ends")],
)
def test_ranges_outside_of_the_file(
    tmp_path: Path, offset: int, size: int | None, message: str
) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(4096))
    with pytest.raises(PkernfsError, match=message), open_image(path, offset, size):
        pass


def test_a_missing_file_and_a_device_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(PkernfsError, match="No such file"), open_image(tmp_path / "nothing"):
        pass
    with pytest.raises(PkernfsError, match="size"), open_image("/dev/zero"):
        pass


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with pytest.raises(FileNotFoundError), open_image(path):
        raise FileNotFoundError("the caller's own")


def test_hints_for_dev_mem() -> None:
    mem = Path("/dev/mem")
    assert "IO_STRICT_DEVMEM" in cannot_map(mem, PermissionError(1, "no")).hint
    assert "CONFIG_DEVMEM" in cannot_map(mem, FileNotFoundError(2, "no")).hint


def region(directory: Path, writer: Writer, base: int = BASE) -> Path:
    """What the module shows of a region."""
    directory.mkdir(parents=True)
    writer.save(directory / "metadata")
    (directory / "base").write_text(f"{base:#x}\n")
    (directory / "size").write_text(f"{len(writer.buffer)}\n")
    (directory / "sequence").write_text("7\n")
    return directory


def test_a_region(tmp_path: Path) -> None:
    region(tmp_path / "main", sample())
    assert region_names(tmp_path) == ["main"]
    assert only_region(tmp_path) == "main"
    with open_region("main", tmp_path) as image:
        result = check(image)
    assert result.verdict is Verdict.CLEAN
    assert result.tree is not None
    assert result.tree.lookup("/vm/far").size == 5


def test_a_region_at_another_address_is_not_clean(tmp_path: Path) -> None:
    region(tmp_path / "main", sample(), base=BASE * 2)
    with open_region("main", tmp_path) as image:
        assert check(image).verdict is Verdict.DAMAGED


def test_which_region(tmp_path: Path) -> None:
    with pytest.raises(PkernfsError, match="no region"):
        only_region(tmp_path / "nothing")
    region(tmp_path / "a", sample())
    region(tmp_path / "b", sample())
    with pytest.raises(PkernfsError, match="2 regions") as caught:
        only_region(tmp_path)
    assert "a, b" in caught.value.hint
    with pytest.raises(PkernfsError, match="no region 'c'"), open_region("c", tmp_path):
        pass


def test_a_region_that_can_not_be_read(tmp_path: Path) -> None:
    directory = region(tmp_path / "a", sample())
    (directory / "base").write_text("what\n")
    with pytest.raises(PkernfsError, match="base"), open_region("a", tmp_path):
        pass


def test_reading_starts_again_when_the_metadata_change(tmp_path: Path) -> None:
    directory = region(tmp_path / "a", Writer())
    image = RegionImage(directory)
    seen: list[list[int]] = []

    def read() -> list[int]:
        used = image.used_slots(0)
        if not seen:
            sample().save(directory / "metadata")
            (directory / "sequence").write_text("8\n")
        seen.append(used)
        return used

    assert consistent(image, read) == sample().image().used_slots(0)
    assert len(seen) == 2
    image.close()


def test_reading_gives_up_when_they_never_stop_changing() -> None:
    class Restless(Image):
        count = 0

        def sequence(self) -> int:
            self.count += 1
            return self.count

    with pytest.raises(PkernfsError, match="keeps changing"):
        check(Restless(Writer().buffer))


MOUNTED = parse(
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "40 22 0:40 / /mnt/pkernfs rw - pkernfs main rw\n"
    "41 22 0:41 / /mnt/a\\040b rw shared:3 - pkernfs b rw\n"
)


def test_mounts() -> None:
    assert mounts(MOUNTED) == [Mount(Path("/mnt/pkernfs"), "main"), Mount(Path("/mnt/a b"), "b")]
    found = mount_of(Path("/mnt/pkernfs/vm/ram"), MOUNTED)
    assert found is not None
    assert found.region == "main"
    assert mount_of(Path("/mnt/pkernfs2"), MOUNTED) is None
