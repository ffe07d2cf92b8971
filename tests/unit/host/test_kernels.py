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


def test_the_default_never_goes_back(host: FakeHost) -> None:
    host.boot("7.3.4", "x", "")
    with pytest.raises(kernels.NothingToDoError, match=r"newest installed kernel 7\.3\.4 runs"):
        kernels.default_target(host.machine)
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    with pytest.raises(kernels.NothingToDoError, match=r"newer than the running 7\.3\.4"):
        kernels.default_target(host.machine)


@pytest.mark.parametrize("suffix", [".old", ".bak", ".dpkg-bak", "~", ".rescue", "-copy"])
@pytest.mark.parametrize("release", ["6.12.1", "7.3.4"])
def test_a_copy_is_not_a_default(host: FakeHost, release: str, suffix: str) -> None:
    """Neither of the running kernel nor of a newer one, with whatever lies beside it."""
    name = f"{release}{suffix}"
    host.put(f"boot/vmlinuz-{name}", bzimage(release))
    host.put(f"boot/initrd.img-{name}", b"initrd")
    host.put(f"lib/modules/{name}/modules.dep", "")
    assert kernels.default_target(host.machine).image == host.root / "boot/vmlinuz-7.3.4"
    host.boot("7.3.4", "x", "")
    with pytest.raises(kernels.NothingToDoError):
        kernels.default_target(host.machine)


def test_a_default_has_what_the_running_kernel_has(host: FakeHost, tmp_path: Path) -> None:
    host.install("7.4.0")
    initrd = host.root / "boot/initrd.img-7.4.0"
    initrd.unlink()
    assert kernels.default_target(host.machine).release == "7.3.4"
    assert kernels.default_target(host.machine, initrd=False).release == "7.4.0"
    initrd.write_bytes(b"initrd")
    (host.root / "lib/modules/7.4.0").rename(tmp_path / "modules")
    assert kernels.default_target(host.machine).release == "7.3.4"
    host.boot("7.3.4", "x", "")
    with pytest.raises(PkernfsError, match=r"7\.4\.0 is not wholly installed: it has no modules"):
        kernels.default_target(host.machine)
    (host.root / "boot/initrd.img-7.3.4").unlink()
    initrd.unlink()
    (tmp_path / "modules").rename(host.root / "lib/modules/7.4.0")
    assert kernels.default_target(host.machine).release == "7.4.0"


@pytest.mark.parametrize(
    ("running", "other", "same"),
    [
        ("6.12.118+deb13-amd64", "7.3.4+deb13-amd64", True),
        ("6.1.0-25-amd64", "6.12.118+deb13-amd64", True),
        ("6.12.118+deb13-amd64", "7.3.4+deb13-cloud-amd64", False),
        ("6.12.118+deb13-amd64", "7.3.4+deb13-rt-amd64", False),
        ("6.8.0-45-generic", "6.8.0-46-generic", True),
        ("6.8.0-45-generic", "6.8.0-46-lowlatency", False),
        ("6.10.1-300.fc40.x86_64", "6.11.4-300.fc41.x86_64", True),
        ("6.12.1", "7.3-rc1", True),
    ],
)
def test_another_flavour_is_taken_only_when_named(
    host: FakeHost, running: str, other: str, same: bool
) -> None:
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    for release in (running, other):
        host.install(release)
    host.boot(running, "x", "")
    if same:
        assert kernels.default_target(host.machine).release == other
    else:
        with pytest.raises(kernels.NothingToDoError):
            kernels.default_target(host.machine)
    assert kernels.choose(host.machine, Path(other), None).release == other


def test_another_build_of_the_running_kernel_is_said(host: FakeHost) -> None:
    host.boot("7.3.4", "x", "")
    host.put("proc/sys/kernel/version", "#1 SMP\n")
    named = kernels.choose(host.machine, Path("7.3.4"), None)
    assert not kernels.is_rebuilt(host.machine, named)
    host.put("proc/sys/kernel/version", "#2 SMP\n")
    assert kernels.is_rebuilt(host.machine, named)
    with pytest.raises(kernels.NothingToDoError, match=r"vmlinuz-7\.3\.4 is another build"):
        kernels.default_target(host.machine)


def test_a_lean_initrd_goes_before_the_distribution_s(host: FakeHost) -> None:
    lean = host.put("boot/pkernfs-initrd-7.3.4", b"lean")
    assert kernels.default_target(host.machine).initrd == lean


def test_no_other_kernel(host: FakeHost) -> None:
    (host.root / "boot/vmlinuz-7.3.4").unlink()
    with pytest.raises(kernels.NothingToDoError, match="runs already"):
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


def test_a_default_that_was_cut_short_is_said(host: FakeHost) -> None:
    host.put("boot/vmlinuz-7.3.4", bzimage("7.3.4")[:-1])
    with pytest.raises(PkernfsError, match="cut short"):
        kernels.choose(host.machine, None, None)


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
