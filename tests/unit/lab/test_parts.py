# SPDX-License-Identifier: GPL-2.0-only
"""Parts of the lab that need no host: sizes, names, archives, logs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.host import clock
from pkernfs.host.ranges import Range
from pkernfs.lab import cache, cpio, image, mirror, modtree, scan, stamps
from pkernfs.lab.emulator import SETTING, emulator
from pkernfs.lab.image import HostImage
from pkernfs.lab.machine import HostConfig
from pkernfs.lab.memory import GIB, MIB, Layout, leave_junk
from pkernfs.lab.qemu import IOMMUS, LINES, Disk, Plan


def test_default_layout_has_the_region_at_four_gib() -> None:
    layout = Layout.of()
    assert (layout.ram, layout.region, layout.offset) == (3 * GIB, GIB, 2 * GIB)
    assert layout.boot_words == ("memmap=1G$0x100000000", "pkernfs.region=1G!0x100000000")


@pytest.mark.parametrize(
    ("region", "ram"),
    [(512 * MIB, 3 * GIB), (3 * GIB, 5 * GIB), (GIB + 2 * MIB, 3 * GIB + 2 * MIB)],
)
def test_ram_follows_the_region(region: int, ram: int) -> None:
    assert Layout.of(region).ram == ram


@pytest.mark.parametrize(("region", "ram"), [(2 * GIB, 3 * GIB), (GIB, 2 * GIB), (MIB, None)])
def test_layout_that_does_not_fit_is_refused(region: int, ram: int | None) -> None:
    with pytest.raises(UsageError):
        Layout.of(region, ram)


def test_every_numa_node_has_a_file_and_a_region() -> None:
    layout = Layout.of(GIB, nodes=2)
    assert layout.nodes == (3 * GIB, 2 * GIB)
    assert layout.high(0) == Range(4 * GIB, GIB)
    assert layout.high(1) == Range(5 * GIB, 2 * GIB)
    assert [str(region) for region in layout.regions()] == [
        "node0:1G!0x100000000",
        "node1:1G!0x140000000",
    ]
    # Side by side: one word keeps the kernel off both.
    assert layout.boot_words[0] == "memmap=2G$0x100000000"
    command = " ".join(_plan(HostConfig(layout=layout)).command())
    assert "-machine q35 " in command
    assert "id=ram,size=3072M,share=on,mem-path=/ram " in command
    assert "id=ram1,size=2048M,share=on,mem-path=/ram1 " in command
    assert (
        "-numa node,nodeid=0,memdev=ram,cpus=0 -numa node,nodeid=1,memdev=ram1,cpus=1 " in command
    )


@pytest.mark.parametrize("name", IOMMUS)
def test_iommus_have_names(name: str) -> None:
    command = _plan(HostConfig(iommu=name)).command()
    assert command[command.index(IOMMUS[name]) - 1] == "-device"


def test_iommus_without_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="smmu"):
        HostConfig(iommu="smmu")


def test_the_emulator_is_the_images_unless_one_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    chosen = emulator(HostImage(tmp_path, tmp_path / "root.ext4", ()))
    assert str(tmp_path / "usr/bin/qemu-system-x86_64") in chosen.command
    assert chosen.environ()["QEMU_MODULE_DIR"].startswith(str(tmp_path))
    monkeypatch.setenv(SETTING, "qemu-other")
    assert emulator(HostImage(tmp_path, tmp_path / "root.ext4", ())).command == ("qemu-other",)


def test_a_new_hosts_memory_is_not_zero(tmp_path: Path) -> None:
    layout = Layout.of(64 * MIB)
    file = tmp_path / "ram"
    with file.open("wb") as ram:
        ram.truncate(layout.ram)
    leave_junk(file, layout)
    assert file.stat().st_size == layout.ram
    with file.open("rb") as ram:
        for at in (0, MIB, layout.offset, layout.offset + layout.region - 4096):
            ram.seek(at)
            assert len(set(ram.read(4096))) > 100


@pytest.mark.parametrize(
    ("fields", "count", "svm"),
    [
        ({}, 2, "-"),
        ({"kvm": True}, 1, "+"),
        ({"cpus": 1}, 1, "-"),
        ({"kvm": True, "cpus": 4}, 4, "+"),
    ],
)
def test_kvm_decides_on_processors(fields: dict[str, Any], count: int, svm: str) -> None:
    command = _plan(HostConfig(**fields)).command()
    assert command[command.index("-smp") + 1] == str(count)
    assert f"{svm}svm" in command[command.index("-cpu") + 1].split(",")


def test_processors_are_dealt_to_the_nodes() -> None:
    command = " ".join(_plan(HostConfig(layout=Layout.of(nodes=2), cpus=3)).command())
    assert "nodeid=0,memdev=ram,cpus=0,cpus=2 " in command
    assert "nodeid=1,memdev=ram1,cpus=1 " in command


def test_a_host_without_a_region_has_no_words_for_one() -> None:
    assert Layout.of(0).boot_words == ()
    assert Layout.of(0, nodes=2).nodes == (3 * GIB, 2 * GIB)
    with pytest.raises(UsageError):
        Layout.of(512 * MIB, nodes=2)


def test_kernels_are_named_by_their_beginning() -> None:
    kernels = ("6.12.117+deb13-amd64", "6.1.9-amd64", "7.3.4+deb13-amd64")
    assert image.pick_kernel(kernels, "6.12") == kernels[0]
    assert image.pick_kernel(kernels, "6.1") == kernels[1]
    assert image.pick_kernel(kernels, kernels[2]) == kernels[2]
    with pytest.raises(UsageError, match="no kernel named '8'"):
        image.pick_kernel(kernels, "8")
    with pytest.raises(UsageError):
        image.pick_kernel(kernels, "6")


def _plan(config: HostConfig, disk: Disk | None = None) -> Plan:
    names = ("kernel", "initrd", "base", "layer", "scratch", "ram", "share")
    files = {name: Path("/", name) for name in names}
    return Plan(
        config=config,
        program=("qemu",),
        lines={n: i for i, n in enumerate(LINES, start=10)},
        disk=disk,
        **files,
    )


def test_qemu_command_has_what_the_host_relies_on() -> None:
    command = _plan(HostConfig(append=("quiet",), extra=("-device", "edu"))).command()
    joined = " ".join(command)
    # The order of the disks is their name in the host, the order of -serial its ttyS.
    drives = [word for word in command if word.startswith("if=none")]
    assert [word.split(",")[1] for word in drives] == ["id=base", "id=layer", "id=scratch"]
    assert ["read-only=on" in word for word in drives] == [True, True, False]
    serials = [command[i + 1] for i, word in enumerate(command) if word == "-serial"]
    assert serials == ["chardev:console", "chardev:ttyS1", "chardev:ttyS2", "chardev:ttyS3"]
    assert "size=3072M,share=on,mem-path=/ram" in joined
    assert command.index("intel-iommu,intremap=on") < command.index("edu")
    assert command[-2:] == ["-device", "edu"]


@pytest.mark.parametrize(
    ("gib", "machine", "cpu", "iommu"),
    [
        (3, "q35", "", ""),
        (520, "q35", "", ",aw-bits=48"),
        (1010, "pc-q35-7.0", "", ",aw-bits=48"),
        (1100, "pc-q35-7.0", ",phys-bits=46", ",aw-bits=48"),
    ],
)
def test_a_host_reaches_all_of_its_memory(gib: int, machine: str, cpu: str, iommu: str) -> None:
    words = _plan(HostConfig(layout=Layout(gib * GIB, GIB))).command()
    assert f"{machine},memory-backend=ram" in words
    assert words[words.index("-cpu") + 1].endswith(f",-svm{cpu}")
    assert f"intel-iommu,intremap=on{iommu}" in words


def test_boot_line_tells_the_host_what_to_leave_out() -> None:
    plain = _plan(HostConfig()).boot_line().split()
    assert "memmap=1G$0x100000000" in plain
    assert not [word for word in plain if word.startswith("pkernfs_lab")]
    assert set(stamps.words()) <= set(plain)
    special = _plan(HostConfig(systemd=True, store=False, append=("crashkernel=256M",)))
    words = special.boot_line().split()
    assert {"pkernfs_lab=systemd", "pkernfs_lab_store=no", "crashkernel=256M"} <= set(words)


def test_a_host_is_told_how_fast_its_time_stamps_are() -> None:
    if clock.read().tsc == 0:
        pytest.skip("this machine has no time stamp counter")
    (word,) = stamps.words()
    first = clock.read()
    time.sleep(0.5)
    scale = clock.calibrate([first, clock.read()])
    # The kernel corrects what is a hundredth off.
    assert int(word.removeprefix("tsc_early_khz=")) * 1000 == pytest.approx(scale.hertz, rel=0.05)


@pytest.mark.parametrize(
    "line",
    [
        "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "[    1.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 x+0x1/0x2",
        "[    1.0] Oops: Oops: 0000 [#1] PREEMPT SMP",
        "[    1.0] pkernfs: leaked 3 blocks",
        "[    1.0] INFO: task mount:12 blocked for more than 120 seconds.",
        "[    1.0] WARNING: possible circular locking dependency detected",
        "[    1.0] BUG: KASAN: slab-use-after-free in x",
        "[    1.0] DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x200000",
        "[    1.0] Kernel panic - not syncing: x",
        "[    1.0] BUG pkernfs_inode (Tainted: G): Objects remaining on __kmem_cache_shutdown()",
        "[    1.0] mm/pgtable-generic.c:42: bad pud 0000000098b74865(8000000180000ae7)",
        "[    1.0] lab: initrd: no layer",
    ],
)
def test_bad_lines_are_found(line: str) -> None:
    assert scan.findings([line]) == [line]
    assert scan.findings([line], allowed=[".*"]) == []


@pytest.mark.parametrize(
    "line",
    [
        "[    0.0] kfence: initialized - using 2097152 bytes for 255 objects at 0x1",
        "[    0.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled, data leaks possible",
        "[    1.0] pkernfs: module verification failed: signature and/or required key missing",
        "[    1.0] pkernfs: region pkernfs: 1G!4G",
        "[    1.0] random: crng init done",
    ],
)
def test_harmless_lines_are_not(line: str) -> None:
    assert scan.findings([line]) == []


def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    data = cpio.archive(
        [
            cpio.text("init", "#!/bin/sh\n", executable=True),
            cpio.text("deep/er/file", b"\0\1\2"),
            cpio.link("bin/sh", "busybox"),
            cpio.text("init", "a second one does not count"),
        ]
    )
    entries = _read_archive(data)
    assert [name for name, _, _ in entries] == [
        "init",
        "deep",
        "deep/er",
        "deep/er/file",
        "bin",
        "bin/sh",
    ]
    modes = {name: mode for name, mode, _ in entries}
    assert (modes["init"], modes["deep"], modes["bin/sh"]) == (0o100755, 0o040755, 0o120777)
    contents = {name: content for name, _, content in entries}
    assert contents["init"] == b"#!/bin/sh\n"
    assert contents["deep/er/file"] == b"\0\1\2"
    assert contents["bin/sh"] == b"busybox"


def _read_archive(data: bytes) -> list[tuple[str, int, bytes]]:
    """A reader of its own, from the format's description."""
    found: list[tuple[str, int, bytes]] = []
    position = 0
    while True:
        header = data[position : position + 110]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        name_end = position + 110 + fields[11]
        name = data[position + 110 : name_end - 1].decode()
        start = (name_end + 3) & ~3
        content = data[start : start + fields[6]]
        position = (start + fields[6] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], content))


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pkernfs"


def test_artifact_is_built_once_and_again_when_asked(cache_home: Path) -> None:
    builds = []

    def build(target: Path) -> None:
        builds.append(target)
        (target / "file").write_text(str(len(builds)))

    first = cache.artifact("kind", "key", build)
    assert cache.artifact("kind", "key", build) == first
    assert (first / "file").read_text() == "1"
    cache.artifact("kind", "key", build, rebuild=True)
    assert (first / "file").read_text() == "2"
    assert len(builds) == 2


def test_failed_build_leaves_nothing(cache_home: Path) -> None:
    def build(target: Path) -> None:
        (target / "half").write_text("")
        raise PkernfsError("no")

    with pytest.raises(PkernfsError):
        cache.artifact("kind", "key", build)
    assert not [path for path in (cache_home / "kind").iterdir() if path.is_dir()]


def test_old_artifacts_go_but_not_those_in_use(cache_home: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in (cache_home / "kind").glob("?"))

    for number in range(4):
        cache.artifact("kind", str(number), lambda target: None, keep=2)
    assert names() == ["0", "1", "2", "3"]
    for number in range(3):
        os.utime(cache_home / "kind" / str(number), (number, number))
    cache.artifact("kind", "4", lambda target: None, keep=2)
    assert names() == ["3", "4"]


def test_digest_tells_names_and_contents_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = cache.digest([tmp_path])
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = cache.digest([tmp_path])
    (tmp_path / "b").write_text("y")
    assert len({before, renamed, cache.digest([tmp_path])}) == 3
    assert cache.digest(["ab", "c"]) != cache.digest(["a", "bc"])


def test_mirror_takes_the_archives_that_have_the_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    suites = {
        "http://other/": set(),
        "http://main/debian/": {"trixie", "trixie-updates", "trixie-backports"},
        "http://sec/debian-security/": {"trixie-security"},
    }
    monkeypatch.setattr(mirror, "configured_archives", lambda: tuple(suites))
    monkeypatch.setattr(mirror, "has_suite", lambda uri, suite: suite in suites[uri])
    assert [source.line for source in mirror.sources()] == [
        "deb http://main/debian/ trixie main",
        "deb http://main/debian/ trixie-updates main",
        "deb http://sec/debian-security/ trixie-security main",
        "deb http://main/debian/ trixie-backports main",
    ]
    suites["http://main/debian/"].discard("trixie-backports")
    with pytest.raises(PkernfsError, match="trixie-backports"):
        mirror.sources()


def test_modules_that_stay_bring_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp/ccp.ko.xz\n"
        "kernel/drivers/crypto/ccp/ccp.ko.xz:\n"
        "kernel/sound/core/snd.ko.xz:\n"
    )
    assert modtree._kept(tmp_path) == {
        "kernel/arch/x86/kvm/kvm-amd.ko.xz",
        "kernel/drivers/crypto/ccp/ccp.ko.xz",
    }


def test_verbs_of_the_lab_refuse_before_anything_is_built() -> None:
    command = [sys.executable, "-m", "pkernfs.cli", "lab", "run"]
    script = "from pkernfs.cli import main; main()"
    for arguments in (
        ["lab", "run", "--region", "5G", "--ram", "3G", "--", "true"],
        ["lab", "run", "--share", "/nonexistent", "--", "true"],
        ["lab", "run"],
    ):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_a_killed_build_left_mounted_is_not_gone_through(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "build.partial/root", tmp_path / "elsewhere"
    for path in (root / "dev", elsewhere):
        path.mkdir(parents=True)
    (elsewhere / "kept").touch()
    subprocess.run(["mount", "--bind", str(elsewhere), str(root / "dev")], check=True)
    try:
        cache.remove_tree(tmp_path / "build.partial")
    finally:
        subprocess.run(["umount", str(root / "dev")], check=False, capture_output=True)
    assert not root.exists()
    assert (elsewhere / "kept").exists()
