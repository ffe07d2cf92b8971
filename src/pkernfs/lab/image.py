# SPDX-License-Identifier: GPL-2.0-only
"""The Debian 13 root file systems: the virtual host's, and the one modules are built in.

Two mmdebstrap runs. The build root comes first and decides the kernels (by the headers
it got); the host image then gets exactly these kernels. Both stay in the cache until
``lab image --rebuild`` or a change of the recipe below.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.lab import cache, mirror, modtree
from pkernfs.lab.progress import say, step

_TOOLCHAIN = (
    "ca-certificates",
    "gcc",
    "libc6-dev",
    "linux-headers-amd64",
    "make",
    "perl",  # kernel-doc, run by W=1: up to 6.12 in Perl, later in Python
    "python3",
)
_TOOLCHAIN_BACKPORTS = ("linux-headers-amd64",)
_HOST = (
    "busybox-static",
    "ca-certificates",
    "e2fsprogs",
    "iproute2",
    "kexec-tools",
    "kmod",
    "procps",
    "python3",
    "strace",
    "stress-ng",
    "systemd",
    "systemd-sysv",
)
HOST_BACKPORTS = ("qemu-system-data", "qemu-system-x86", "seabios")
#: What a host of the second image has on top: what Debian's installer puts onto a server
#: that runs systemd, and libvirt. Apart, because few tests need it and every boot reads it.
_FULL = ("dbus", "libpam-systemd")
_FULL_BACKPORTS = ("libvirt-clients", "libvirt-daemon-driver-qemu", "libvirt-daemon-system")
#: Never unpacked: nobody reads them in a lab, and a smaller image is copied sooner.
#: The postinst.d script would make an initrd for minutes that the lab never boots.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/etc/kernel/postinst.d/initramfs-tools",
)
_RECIPE = "1"
#: The name of the lab's debug kernel, and how its full version ends (debug.config).
DEBUG = "debug"


@dataclass(frozen=True)
class Toolchain:
    """A root with compiler and headers of every kernel the lab boots."""

    root: Path
    kernels: tuple[str, ...]

    @property
    def key(self) -> str:
        """Digest of the recipe."""
        return self.root.parent.name


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel of the lab's own (debug_kernel.py).

    :ivar release: what ``uname -r`` says in it.
    :ivar image: its bzImage.
    :ivar root: a root with its tree of modules, and a compiler for more of them.
    """

    release: str
    image: Path
    root: Path


@dataclass(frozen=True)
class HostImage:
    """The virtual host's root, as a directory to take files from and as an ext4 image.

    :ivar built: kernels beside those of the distribution; ``kernels`` has them too.
    """

    root: Path
    disk: Path
    kernels: tuple[str, ...]
    built: tuple[BuiltKernel, ...] = ()

    @property
    def key(self) -> str:
        """Digest of the recipe and the kernels."""
        return self.root.parent.name

    def kernel(self, name: str) -> str:
        """The full version of a kernel named by its beginning, such as ``6.12``.

        :raises UsageError: none or several kernels begin like this.
        """
        return pick_kernel(self.kernels, name)

    def vmlinuz(self, version: str) -> Path:
        """The kernel image of a full version."""
        built = self._built(version)
        return built.image if built else self.root / "boot" / f"vmlinuz-{version}"

    def module_root(self, version: str) -> Path:
        """The root that has the modules of a full version."""
        built = self._built(version)
        return built.root if built else self.root

    def _built(self, version: str) -> BuiltKernel | None:
        return next((kernel for kernel in self.built if kernel.release == version), None)


def is_debug(name: str) -> bool:
    """Is this the name, or the full version, of the debug kernel?"""
    return name == DEBUG or name.endswith(f"-{DEBUG}")


def pick_kernel(kernels: Sequence[str], name: str) -> str:
    """The one of ``kernels`` (full versions) that is, or begins with, ``name``.

    The debug kernel is meant by ``debug`` only, or its full version.

    :raises UsageError: none or several do.
    """
    found = [version for version in kernels if version == name]
    if name == DEBUG:
        found = [version for version in kernels if is_debug(version)]
    elif not found:
        stock = [version for version in kernels if not is_debug(version)]
        found = [version for version in stock if f"{version}.".startswith(f"{name}.")]
    if len(found) != 1:
        raise UsageError(f"no kernel named {name!r} in the lab", f"there are: {', '.join(kernels)}")
    return found[0]


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split("-")[0].split(".")]


def toolchain(*, rebuild: bool = False) -> Toolchain:
    """The build root, from the cache or made now (about 80 s and 700 MB)."""
    key = cache.digest([_RECIPE, *_TOOLCHAIN, "|", *_TOOLCHAIN_BACKPORTS, *EXCLUDED])
    home = cache.artifact("toolchain", key, _make_toolchain, rebuild=rebuild, keep=1)
    root = home / "root"
    kernels = sorted((p.name for p in (root / "lib/modules").iterdir()), key=_version_key)
    return Toolchain(root, tuple(kernels))


def _make_toolchain(target: Path) -> None:
    with step("build root: Debian 13 with compiler and kernel headers"):
        mmdebstrap(target / "root", _TOOLCHAIN, _TOOLCHAIN_BACKPORTS)


def host_image(*, full: bool = False, rebuild: bool = False) -> HostImage:
    """The host image, from the cache or made now (about 100 s and 1 GB).

    :param full: the second image, with D-Bus, logind and libvirt in it.
    """
    kernels = toolchain(rebuild=rebuild).kernels
    packages = _HOST + (_FULL if full else ())
    backports = HOST_BACKPORTS + (_FULL_BACKPORTS if full else ())
    parts = [_RECIPE, *packages, "|", *backports, *EXCLUDED, *kernels, modtree.RECIPE]

    def make(target: Path) -> None:
        with step(f"host image: Debian 13 with kernels {' and '.join(kernels)}"):
            images = tuple(f"linux-image-{version}" for version in kernels)
            mmdebstrap(target / "root", packages, (*backports, *images))
            for version in kernels:
                modtree.slim(target / "root", version)
            make_ext4(target / "root", target / "root.ext4", label="host")

    kind = "host-full" if full else "host"
    home = cache.artifact(kind, cache.digest(parts), make, rebuild=rebuild, keep=2)
    return HostImage(home / "root", home / "root.ext4", kernels)


def mmdebstrap(
    root: Path,
    packages: Sequence[str],
    from_backports: Sequence[str],
    *,
    variant: str = "apt",
    excluded: Sequence[str] = EXCLUDED,
) -> None:
    """Run mmdebstrap into ``root``, its progress shown as lines of the lab.

    :param packages: from the newest suite but backports.
    :param from_backports: installed afterwards with backports preferred.
    :param variant: mmdebstrap's name for what is installed beside them.
    :param excluded: patterns of files that are not unpacked.
    :raises PkernfsError: it failed; its last lines are printed.
    """
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        raise PkernfsError("making an image needs root and mmdebstrap", "run make demo as root")
    suites = mirror.sources()
    extra = ["chroot", '"$1"', "apt-get", "install", "--yes", "--quiet"]
    extra += ["--target-release", mirror.BACKPORTS, *from_backports]
    command = ["mmdebstrap", "--mode=root", f"--variant={variant}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in excluded]
    command += [f"--include={','.join(packages)}", f"--customize-hook={' '.join(extra)}"]
    command += [mirror.RELEASE, str(root), *(source.line for source in suites)]
    _run_shown(command)


def _run_shown(command: Sequence[str]) -> None:
    """Run a command, show its milestones, and all of its output if it fails."""
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("I: "):
            say(f"  {line[3:].strip()}")
    if process.wait() != 0:
        print("".join(lines[-60:]))
        raise PkernfsError(
            f"{command[0]} failed with status {process.returncode}",
            "its last lines are above; is the mirror reachable?",
        )


def make_ext4(tree: Path, target: Path, *, label: str, spare_mib: int = 8) -> None:
    """Write the content of ``tree`` as an ext4 image without a journal.

    :param spare_mib: free space, MiB.
    :raises PkernfsError: mke2fs failed.
    """
    size_kib = 0
    files = 0
    for folder, _, names in os.walk(tree):
        files += 1 + len(names)
        for name in names:
            size_kib += (Path(folder, name).lstat().st_size + 8191) // 4096 * 4
    blocks = int(size_kib * 1.02) + files * 6 // 5 + spare_mib * 1024
    command = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        "^has_journal,^resize_inode",
        "-m",
        "0",
    ]
    command += ["-L", label, "-N", str(files + 512), "-d", str(tree), str(target), f"{blocks}k"]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise PkernfsError(f"mke2fs failed: {done.stderr.strip()}", "is the disk full?")
