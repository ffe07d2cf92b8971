# SPDX-License-Identifier: GPL-2.0-only
"""Finding and checking kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.host import kernels
from tests.unit.vmm.fakes import FakeHost, bzimage


def test_the_newest_other_kernel_is_the_default(host: FakeHost) -> None:
    for release in ("6.9.12", "7.3.10", "7.3.10-rc1"):
        host.install(release)
    found = [kernel.release for kernel in kernels.installed(host.machine)]
    assert found[0] == "7.3.10"
    assert found[-1] == "6.9.12"
    target = kernels.default_target(host.machine)
    assert target.release == "7.3.10"
    assert target.initrd == host.root / "boot/initrd.img-7.3.10"


def test_the_running_kernel_is_not_a_default(host: FakeHost) -> None:
    host.boot("7.3.4", "x", "")
    assert kernels.default_target(host.machine).release == "6.12.1"


def test_a_lean_initrd_goes_before_the_distribution_s(host: FakeHost) -> None:
    lean = host.put("boot/pkernfs-initrd-7.3.4", b"lean")
    assert kernels.default_target(host.machine).initrd == lean


def test_no_other_kernel(host: FakeHost) -> None:
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    with pytest.raises(PkernfsError, match="no other kernel"):
        kernels.default_target(host.machine)


def test_a_named_kernel_says_its_release(host: FakeHost, tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage("8.0.0-custom"))
    assert kernels.choose(host.machine, image, None) == kernels.Kernel("8.0.0-custom", image, None)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(4096), b"HdrS" * 1024])
def test_other_files_are_not_kernels(host: FakeHost, tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(content)
    with pytest.raises(PkernfsError, match="not a kernel image"):
        kernels.choose(host.machine, image, None)


def test_a_kernel_that_was_cut_short(host: FakeHost, tmp_path: Path) -> None:
    """The kernel would load it, and not survive the jump."""
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage("8.0.0")[:-1])
    with pytest.raises(PkernfsError, match="cut short: 4095 of 4096 bytes"):
        kernels.choose(host.machine, image, None)


def test_a_kernel_that_is_not_there(host: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(PkernfsError, match="No such file"):
        kernels.choose(host.machine, tmp_path / "none", None)


def test_an_initrd_that_is_not_there_or_empty(host: FakeHost, tmp_path: Path) -> None:
    with pytest.raises(PkernfsError, match="can't read the initrd"):
        kernels.choose(host.machine, None, tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(PkernfsError, match="is empty"):
        kernels.choose(host.machine, None, tmp_path / "empty")
