# SPDX-License-Identifier: GPL-2.0-only
"""The orders to pkernfs_dma, against a directory that stands for its sysfs interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import BootLine
from pkernfs.host.devices import Control, Device, next_kernel_line, parse_device

LINE = (
    "0000:01:00.0 state=inherited vendor=8086 device=10d3 held=1 open=0 checked=1 leaves=5"
    " bytes=10485760 pages=4 dropped=2 adopted=1 switch_ns=71500 adopt_ns=912000"
    ' reason="0000:01:00.0: IOVA 0x1000 was read-write"'
)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """The interface as the module shows it, with one device."""
    for name, text in (("devices", LINE + "\n"), ("arm", "0\n"), ("message", "\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "record").write_text("0x100200000\n")
    return Control(tmp_path)


def test_a_device() -> None:
    assert parse_device(LINE) == Device(
        bdf="0000:01:00.0",
        state="inherited",
        model="8086:10d3",
        leaves=5,
        mapped_bytes=10 << 20,
        table_pages=4,
        dropped=2,
        adopted=1,
        switch_us=71.5,
        adopt_us=912,
        taken=True,
        reason="0000:01:00.0: IOVA 0x1000 was read-write",
    )


def test_orders_go_to_their_files(control: Control) -> None:
    control.preserve("0000:01:00.0")
    control.adopt("0000:02:00.0")
    control.release("0000:03:00.0")
    written = [(control.root / name).read_text() for name in ("preserve", "adopt", "release")]
    assert written == ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    assert [device.bdf for device in control.devices()] == ["0000:01:00.0"]


def test_arming_tells_where_the_record_is(control: Control) -> None:
    assert not control.armed
    assert control.arm() == ("elfcorehdr=0x100200000",)
    assert control.armed
    control.disarm()
    assert not control.armed


def test_without_the_module(tmp_path: Path) -> None:
    control = Control(tmp_path / "missing")
    assert control.devices() == []
    assert not control.armed
    with pytest.raises(PkernfsError, match="not loaded"):
        control.preserve("0000:01:00.0")


def test_a_refusal_is_told_in_the_words_of_the_module(control: Control) -> None:
    (control.root / "message").write_text("0000:01:00.0: nobody uses it\n")
    (control.root / "adopt").mkdir()  # writing to it fails
    with pytest.raises(PkernfsError, match=r"can't be adopted: 0000:01:00\.0: nobody uses it"):
        control.adopt("0000:01:00.0")


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        # Kernels are built with scalable mode on, so it is said each time.
        ("intel_iommu=on quiet", "quiet intel_iommu=on,sm_off elfcorehdr=0x1"),
        ("elfcorehdr=0x9 intel_iommu=on", "intel_iommu=on,sm_off elfcorehdr=0x1"),
        ("intel_iommu=on,igfx_off", "intel_iommu=on,sm_off,igfx_off elfcorehdr=0x1"),
        ("quiet", "quiet intel_iommu=on,sm_off elfcorehdr=0x1"),
        ("intel_iommu=sm_on,on", "intel_iommu=on,sm_off elfcorehdr=0x1"),
    ],
)
def test_what_the_next_kernel_is_told(running: str, expected: str) -> None:
    assert str(next_kernel_line(BootLine.parse(running), ["elfcorehdr=0x1"])) == expected
