# SPDX-License-Identifier: GPL-2.0-only
"""Reading boot lines, and writing the next one from the running one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import (
    MARKER,
    BootLine,
    is_reserved,
    next_boot_line,
    split_words,
    word_name,
)
from pkernfs.host.ranges import Range, Region, format_size, parse_iomem, parse_regions, parse_size

REGION = Region("", Range(1 << 32, 1 << 30))

_plain = st.text(st.characters(codec="ascii", exclude_characters='" \t\n\v\f\r\0'), min_size=1)
_inside = st.text(st.characters(codec="ascii", exclude_characters='"\n\0'))
_word = st.one_of(
    _plain,
    st.builds('{}="{}"'.format, _plain, _inside),
    st.builds('"{}={}"'.format, _plain, _inside),
    st.sampled_from(
        ["root=/dev/vda", "memmap=1G$4G", "memmap=2G%1G-1+2", "quiet", "quiet", "a.b=1"]
    ),
)
_words = st.lists(_word, max_size=8).map(tuple)
_lines = st.builds(BootLine, _words, st.none() | _words).filter(
    lambda line: all(word.strip('"') != "--" for word in line.words)
)


@given(_lines)
def test_reading_back_what_was_written_gives_the_same_words(line: BootLine) -> None:
    assert BootLine.parse(str(line)) == line


@given(_lines, st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True))
def test_the_next_line_keeps_every_word_in_order(line: BootLine, update: str) -> None:
    try:
        following = next_boot_line(line, [REGION], update)
    except PkernfsError:
        return  # a region or size in the generated words that can't be read
    dropped = {MARKER, "BOOT_IMAGE", "elfcorehdr", "kexec_jump_back_entry", "pkernfs.region"}
    kept = [word for word in line.words if word_name(word) not in dropped]
    assert list(following.words[: len(kept)]) == kept
    assert following.init == line.init
    assert following.regions() == (REGION,)
    assert is_reserved(following, REGION)
    assert following.values(MARKER) == [update]


@given(_lines)
def test_an_update_after_an_update_adds_nothing(line: BootLine) -> None:
    try:
        once = next_boot_line(line, [REGION], "one")
    except PkernfsError:
        return
    twice = next_boot_line(once, [REGION], "two")
    assert sorted(twice.without(MARKER).words) == sorted(once.without(MARKER).words)
    assert twice.values(MARKER) == ["two"]


def test_quotes_protect_spaces_wherever_they_begin() -> None:
    assert split_words('a="b c"  "d e"=f\tg"h i') == ('a="b c"', '"d e"=f', 'g"h i')


def test_dash_and_underscore_name_the_same_parameter() -> None:
    assert BootLine.parse("pkernfs-update=x").values("pkernfs_update") == ["x"]


def test_words_for_the_first_program_stay_behind_the_dashes() -> None:
    line = next_boot_line(BootLine.parse("quiet -- single"), [REGION], "u", "panic=1 -- more")
    assert str(line) == (
        "quiet pkernfs.region=1G!0x100000000 memmap=1G$0x100000000 pkernfs_update=u panic=1"
        " -- single more"
    )


@pytest.mark.parametrize(
    ("running", "append", "panics"),
    [
        ("quiet", "", ["30"]),
        ("panic=0 quiet", "", ["0"]),
        ("quiet", "panic=5", ["5"]),
        ("panic=0", "panic=5", ["0", "5"]),
    ],
)
def test_a_next_kernel_that_panics_does_not_stand_still(
    running: str, append: str, panics: list[str]
) -> None:
    line = next_boot_line(BootLine.parse(running), [REGION], "u", append)
    assert line.values("panic") == panics


@pytest.mark.parametrize(
    "form", ["memmap=1G!4G", "memmap=1G%4G-1+2", "memmap=1G@4G", "memmap=1G#4G"]
)
def test_only_the_dollar_form_counts_as_reserved(form: str) -> None:
    assert not is_reserved(BootLine.parse(form), REGION)
    assert is_reserved(BootLine.parse(f"memmap=4K$1M,1G$4G {form}"), REGION)


def test_what_the_boot_loader_added_is_dropped() -> None:
    line = BootLine.parse("BOOT_IMAGE=/boot/v elfcorehdr=0x1 pkernfs_update=old root=/dev/sda1")
    assert str(next_boot_line(line, [], "new")).startswith("root=/dev/sda1 ")
    assert "old" not in str(next_boot_line(line, [], "new"))


def test_a_region_from_a_modprobe_file_gets_into_the_line() -> None:
    other = Region("fast", Range(8 << 30, 2 << 30))
    line = next_boot_line(BootLine.parse("pkernfs.region=1G!4G"), [REGION, other], "u")
    assert line.regions() == (REGION, other)


def test_a_line_that_the_kernel_would_cut_off_is_refused() -> None:
    with pytest.raises(PkernfsError, match="boot line has"):
        next_boot_line(BootLine.parse("x" * 2040), [], "u")


@given(st.integers(0, 1 << 62))
def test_a_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("0x10M", 16 << 20), ("010", 8), ("1t", 1 << 40), ("0", 0)]
)
def test_sizes_as_the_kernel_reads_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "4 G", "089", "1GB"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(PkernfsError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1G", "1G$4G", ":1G!4G", "a:b", "1G!"])
def test_what_is_not_a_region(text: str) -> None:
    with pytest.raises(PkernfsError):
        Region.parse(text)


def test_several_regions() -> None:
    a, b = parse_regions("1G!4G,fast:2M!0x200000")
    assert (str(a), str(b)) == ("1G!0x100000000", "fast:2M!0x200000")


def test_iomem() -> None:
    text = "00001000-0009fbff : System RAM\n  00002000-00002fff : Kernel code\n"
    assert parse_iomem(text) == [
        (Range(0x1000, 0x9EC00), "System RAM"),
        (Range(0x2000, 0x1000), "Kernel code"),
    ]
