# SPDX-License-Identifier: GPL-2.0-only
"""An ordinary Debian host: a disk with a partition table, GRUB, initramfs-tools, systemd.

Made in three steps, each one a disk in the cache: Debian, as its installer leaves it, with
GRUB, which the host itself installs; a copy with pkernfs's modules; a copy of that with the
program and its units. What is pkernfs's is installed as its own documents say.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.lab import build, cache, image, initrd, layer
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import Layout
from pkernfs.lab.paths import source_tree
from pkernfs.lab.progress import step
from pkernfs.lab.qemu import Disk

#: What Debian's installer leaves on a server beside what is "important" to every system, and
#: what building modules by dkms and installing Python programs takes.
_PACKAGES = (
    "ca-certificates",
    "dbus",
    "dkms",
    "gcc",
    "grub-pc",
    "initramfs-tools",
    "kexec-tools",
    "libc6-dev",
    "libpam-systemd",
    "make",
    "python3-venv",
    "systemd-sysv",
    "zstd",
)
#: Documentation, which nobody reads there.
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
_SIZE = 6 << 30
_SECTOR = 512
#: Where the partition begins, sectors: the room before it is GRUB's.
_FIRST = 2048
_LINUX = 0x83
_UUID = "706b6572-6e66-4073-8064-656269616e00"
#: A console on the serial port, as on a server without a screen; the rest as in
#: :meth:`pkernfs.lab.qemu.Plan.boot_line`: an IOMMU in use, and what emulation needs.
_LINE = (
    "console=ttyS0 intel_iommu=on no_timer_check tsc=reliable rcupdate.rcu_cpu_stall_timeout=120"
)
_FILES = {
    "etc/fstab": f"UUID={_UUID} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n",
    "etc/default/grub": f"""\
GRUB_DEFAULT=saved
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{_LINE}"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
""",
}
#: What the installer does last. The argument: the kernel to start.
_GRUB = f"""\
set -e
echo "grub-pc grub-pc/install_devices multiselect /dev/vda" | debconf-set-selections
grub-install /dev/vda
update-grub
grub-set-default "gnulinux-advanced-{_UUID}>gnulinux-$1-advanced-{_UUID}"
"""
_AGENT = ("agent.py", "pkernfs-lab-agent.service")
#: What pip makes the program of.
_PROGRAM = ("pyproject.toml", "README.md", "LICENSE", "src/pkernfs", "kernel/format.h")
#: Runs a command in a copy of some files within the system on a disk:
#: DISK OFFSET PLACE FILES COMMAND...
_WITHIN = """\
set -e
disk=$1 offset=$2 place=$3 files=$4
shift 4
mount -o "loop,offset=$offset" "$disk" "$place"
mount -t proc proc "$place/proc"
mount -t sysfs sys "$place/sys"
mount --rbind /dev "$place/dev"
mount -t tmpfs tmp "$place/tmp"
cp -r "$files/." "$place/tmp"
status=0
chroot "$place" env -i -C /tmp HOME=/root LANG=C.UTF-8 TERM=dumb \\
	PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null || status=$?
umount -R "$place"
exit $status
"""
#: A disk that QEMU has open stays when its name is gone; disks are large.
_IN_USE_S = 600


def disk(host: image.HostImage, *, rebuild: bool = False) -> Disk:
    """The disk of an installed host with pkernfs as it is here, from the cache or made now.

    The first time takes some minutes and boots a host; a change of the modules takes a
    minute or two, any other some seconds.

    :param host: where the lab has its emulator from.
    :param rebuild: make all of it anew.
    :raises PkernfsError: a step failed; what it printed is in the error or above.
    """
    tree = source_tree()
    kernel = tree / "kernel"
    names = [str(path.relative_to(tree)) for path in build.sources(kernel)]
    names += ["kernel/Kbuild", "kernel/Makefile", "kernel/dkms.conf", "packaging/initramfs"]
    modules = _Change("installed-modules", names, "install-modules.sh", host.kernels)
    names = ["Makefile", "packaging/systemd"]
    program = _Change("installed", names, "install-program.sh", wheels=True)
    debian = _debian(host, rebuild=rebuild)
    return Disk(program.of(modules.of(debian, rebuild=rebuild), rebuild=rebuild))


def partition_table(size: int) -> bytes:
    """A master boot record with one partition for Linux over the whole disk.

    Written here because not every Debian has sfdisk. GRUB puts its code before the table.

    :param size: of the disk, bytes.
    """
    entry = struct.pack(
        "<B3sB3sII",
        0x80,
        b"\xfe\xff\xff",
        _LINUX,
        b"\xfe\xff\xff",
        _FIRST,
        size // _SECTOR - _FIRST,
    )
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"


def _debian(host: image.HostImage, *, rebuild: bool) -> Path:
    """The disk with Debian on it (5 to 10 minutes, 2 GB)."""
    backports = list(image.HOST_BACKPORTS)
    for version in host.kernels:
        backports += [f"linux-image-{version}", f"linux-headers-{version}"]
    agent = [initrd.INSIDE / name for name in _AGENT]
    texts = [*_PACKAGES, "|", *backports, *_EXCLUDED, *_FILES.values(), _GRUB, f"{_SIZE}"]

    def make(target: Path) -> None:
        root = target / "root"
        with step("installed host: Debian 13 with its boot loader and build tools"):
            image.mmdebstrap(root, _PACKAGES, backports, variant="important", excluded=_EXCLUDED)
        _configure(root)
        with step("installed host: its disk"):
            _make_disk(root, target / "disk")
        with step("installed host: GRUB, installed by the host itself"):
            _install_grub(root, target / "disk", host.kernels[0])
        cache.remove_tree(root)

    key = cache.digest([*texts, *agent])
    return cache.artifact("debian", key, make, rebuild=rebuild, keep=1) / "disk"


def _configure(root: Path) -> None:
    for name, text in _FILES.items():
        (root / name).write_text(text)
    program, unit = (initrd.INSIDE / name for name in _AGENT)
    home = root / "usr/lib/pkernfs-lab"
    home.mkdir()
    shutil.copy(program, home)
    shutil.copy(unit, root / "etc/systemd/system")
    wanted = root / "etc/systemd/system/multi-user.target.wants" / unit.name
    wanted.symlink_to(f"/etc/systemd/system/{unit.name}")


def _make_disk(root: Path, target: Path) -> None:
    with target.open("wb") as file:
        file.write(partition_table(_SIZE))
        file.truncate(_SIZE)
    offset = _FIRST * _SECTOR
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-U", _UUID, "-d", str(root)]
    command += ["-E", f"offset={offset}", str(target), f"{(_SIZE - offset) >> 10}k"]
    _run(command)


def _install_grub(root: Path, target: Path, kernel: str) -> None:
    """Start the system without a boot loader, and have it install its own."""
    start = (
        root / f"boot/vmlinuz-{kernel}",
        root / f"boot/initrd.img-{kernel}",
        f"root=UUID={_UUID} ro {_LINE}",
    )
    config = HostConfig(installed=True, layout=Layout.of(0))
    with Machine(config, disk=Disk(target, keep=True, start=start)) as machine:
        machine.run(["sh", "-c", _GRUB, "sh", kernel]).check()
        machine.run(["systemctl", "poweroff"])
        machine.wait_off()


@dataclass(frozen=True)
class _Change:
    """What makes one disk of another: a script that installs something on it.

    :ivar kind: of artifact.
    :ivar names: files and directories of the sources that the script finds where it runs.
    :ivar wheels: it also finds the program, and what that depends on, as wheels for pip.
    """

    kind: str
    names: Sequence[str]
    script: str
    arguments: Sequence[str] = ()
    wheels: bool = False

    def of(self, before: Path, *, rebuild: bool) -> Path:
        """A copy of the disk ``before`` with the change, from the cache or made now."""
        tree = source_tree()
        script = initrd.INSIDE / self.script
        # The directory is named by what the disk is made of.
        key: list[str | Path] = [before.parent.name, script, _WITHIN, *self.arguments]
        for name in (*self.names, *(_PROGRAM if self.wheels else ())):
            key += [name, tree / name]

        def make(target: Path) -> None:
            with step(f"{self.kind} host: {self.script}"), _scratch() as place:
                _copy({name: tree / name for name in self.names} | {script.name: script}, place)
                if self.wheels:
                    _make_wheels(place / "wheels")
                _run(["cp", "--sparse=always", str(before), str(target / "disk")])
                _within(target / "disk", place, [f"./{script.name}", *self.arguments])

        made = cache.artifact(
            self.kind, cache.digest(key), make, rebuild=rebuild, keep=1, in_use=_IN_USE_S
        )
        return made / "disk"


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pkernfs-") as place:
        yield Path(place)


def _copy(files: dict[str, Path], target: Path) -> None:
    for name, path in files.items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copy(path, place)


def _make_wheels(target: Path) -> None:
    # Built of a copy: setuptools leaves its own files beside the sources.
    tree = source_tree()
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--python-version", layer.PYTHON, "--only-binary=:all:"]
    with _scratch() as place:
        _copy({name: tree / name for name in _PROGRAM}, place)
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(target), str(place)])
    needs = layer.requirements(tree / "pyproject.toml")
    _run([*pip, "download", "--dest", str(target), *options, *needs])


def _within(target: Path, files: Path, command: Sequence[str]) -> None:
    """Run a command within the system on a disk, in a copy of ``files``."""
    with _scratch() as place:
        words = [str(target), str(_FIRST * _SECTOR), str(place), str(files), *command]
        _run(["unshare", "--mount", "sh", "-c", _WITHIN, "sh", *words])


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise PkernfsError(f"{command[0]} failed: {said}", "the lab makes images as root")
