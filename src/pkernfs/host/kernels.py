# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are installed on this machine, and their files."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host.machine import Machine

#: Names of an initrd by kernel release, the leanest first: what the machine needs to
#: come back to its guests counts into their blackout.
_INITRDS = (
    "pkernfs-initrd-{}",
    "pkernfs-lab-initrd-{}",
    "initrd.img-{}",
    "initramfs-{}.img",
    "initrd-{}",
)

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
_SETUP_SECTORS_AT = 0x1F1
_PROTECTED_SIZE_AT = 0x1F4
_HEADER_MAGIC_AT = 0x202
_HEADER_VERSION_AT = 0x206
_KERNEL_VERSION_AT = 0x20E
_XLOADFLAGS_AT = 0x236
_XLF_KERNEL_64 = 1
_PE32_PLUS = 0x20B

#: What packaging systems and people append to the name of a copy.
_BACKUP = re.compile(r"(~|\.(old|bak|orig|save|rescue|dpkg-\w+|rpm\w+|ucf-\w+))$")

#: Parts of a release that say which distribution's, or which candidate, but no flavour.
_NO_FLAVOUR = re.compile(r"(\d+|rc\d*|(deb|bpo|el|fc)\d\w*|bpo)?")


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be started.

    :ivar release: like ``uname -r`` in it.
    :ivar image: its bzImage.
    :ivar initrd: its initial RAM filesystem, or None to start without one.
    """

    release: str
    image: Path
    initrd: Path | None


class NothingToDoError(PkernfsError):
    """No installed kernel is newer than the running one."""


def image_release(image: Path) -> str:
    """Release of a bzImage, from its header.

    :raises PkernfsError: as :func:`image_version`.
    """
    return image_version(image).split(" ", 1)[0]


def image_version(image: Path) -> str:
    """Release, builder and build of a bzImage, from its header.

    The kernel's own loader looks at the header only (arch/x86/kernel/kexec-bzimage64.c):
    it takes an image that was cut short, and the machine is dead after the jump.

    :raises PkernfsError: the file can't be read, is not a 64-bit x86 bzImage, or not whole.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise PkernfsError(f"can't read the kernel {image}: {error.strerror}") from error
    problem = PkernfsError(
        f"{image} is not a kernel image that kexec can load",
        "name a 64-bit bzImage, e.g. /boot/vmlinuz-VERSION",
    )
    if len(head) < 0x300 or head[_HEADER_MAGIC_AT : _HEADER_MAGIC_AT + 4] != b"HdrS":
        raise problem
    (version,) = struct.unpack_from("<H", head, _HEADER_VERSION_AT)
    (flags,) = struct.unpack_from("<H", head, _XLOADFLAGS_AT)
    if version < 0x020C or not flags & _XLF_KERNEL_64:
        raise problem
    # Both in the header: sectors of 512 bytes without the first, paragraphs of 16 bytes.
    (paragraphs,) = struct.unpack_from("<I", head, _PROTECTED_SIZE_AT)
    whole = ((head[_SETUP_SECTORS_AT] or 4) + 1) * 512 + paragraphs * 16
    if size < whole:
        raise PkernfsError(
            f"the kernel {image} is cut short: {size} of {whole} bytes", "install it again"
        )
    (offset,) = struct.unpack_from("<H", head, _KERNEL_VERSION_AT)
    text = head[offset + 0x200 :].split(b"\0", 1)[0].decode("ascii", "replace")
    if not offset or not text:
        raise problem
    return text


def is_signed(image: Path) -> bool:
    """Does a bzImage carry a signature? Whether the running kernel trusts it, only that can say.

    It is a PE file; a signature is what its certificate table holds, the fifth data
    directory (as pefile_parse_binary() in crypto/asymmetric_keys/verify_pefile.c reads it).

    :raises PkernfsError: the file can't be read.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x1000)
    except OSError as error:
        raise PkernfsError(f"can't read the kernel {image}: {error.strerror}") from error
    if head[:2] != b"MZ":
        return False
    (pe,) = struct.unpack_from("<I", head, 0x3C)
    optional = pe + 24
    if head[pe : pe + 4] != b"PE\0\0" or len(head) < optional + 152:
        return False
    (magic,) = struct.unpack_from("<H", head, optional)
    if magic != _PE32_PLUS:
        return False
    _, size = struct.unpack_from("<II", head, optional + 112 + 4 * 8)
    return bool(size)


def version_key(release: str) -> list[tuple[int, int, str]]:
    """Sorts kernel releases by age: numbers as numbers, a release candidate first."""
    parts = [
        (1, int(part), "") if part.isdigit() else (-1 if part == "rc" else 0, 0, part)
        for part in re.findall(r"\d+|[a-z]+", release)
    ]
    return [*parts, (0, 0, "")]


def find_initrd(boot: Path, release: str) -> Path | None:
    """The initrd of a kernel in ``boot``; None when there is none."""
    candidates = (boot / name.format(release) for name in _INITRDS)
    return next((path for path in candidates if path.is_file()), None)


def installed(machine: Machine) -> list[Kernel]:
    """Kernels under /boot, the newest first."""
    boot = machine.root / "boot"
    found = []
    for image in boot.glob("vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        found.append(Kernel(release, image, find_initrd(boot, release)))
    return sorted(found, key=lambda kernel: version_key(kernel.release), reverse=True)


def flavour(release: str) -> tuple[str, ...]:
    """What a release says beside version and distribution: ``cloud`` and ``amd``, for one."""
    parts = re.split(r"[-+.~]", release)
    return tuple(part.rstrip("0123456789") for part in parts if not _NO_FLAVOUR.fullmatch(part))


def has_modules(machine: Machine, release: str) -> bool:
    """Is there a directory with the modules of a kernel?"""
    trees = ("lib/modules", "usr/lib/modules")
    return any((machine.root / tree / release).is_dir() for tree in trees)


def _is_itself(kernel: Kernel) -> bool:
    """Is the image the kernel that its name says, and no copy of another one?

    One that can't be read counts as itself: whoever chooses it says what is wrong.
    """
    try:
        return image_release(kernel.image) == kernel.release
    except PkernfsError:
        return not _BACKUP.search(kernel.image.name)


def _missing(machine: Machine, kernel: Kernel, *, initrd: bool) -> str:
    """What the running kernel has and this one has not, in words."""
    running = machine.kernel
    missing = []
    if initrd and kernel.initrd is None and find_initrd(machine.root / "boot", running):
        missing.append("initrd")
    if has_modules(machine, running) and not has_modules(machine, kernel.release):
        missing.append("modules")
    return " and no ".join(missing)


def default_target(machine: Machine, *, initrd: bool = True) -> Kernel:
    """The newest installed kernel, if it is newer than the running one.

    It is of the running one's flavour and has what that has: initrd, modules.

    :param initrd: whether it needs an initrd of its own.
    :raises NothingToDoError: there is none that is newer.
    :raises PkernfsError: what is newer is not wholly installed.
    """
    running = machine.kernel
    incomplete = None
    for kernel in installed(machine):
        if version_key(kernel.release) <= version_key(running):
            break
        if flavour(kernel.release) != flavour(running) or not _is_itself(kernel):
            continue
        missing = _missing(machine, kernel, initrd=initrd)
        if not missing:
            return kernel
        incomplete = incomplete or (kernel, missing)
    if incomplete is not None:
        kernel, missing = incomplete
        raise PkernfsError(
            f"the kernel {kernel.release} is not wholly installed: it has no {missing}",
            f"finish its installation, or name it: pkernfs update --kernel {kernel.image}",
        )
    image = machine.root / "boot" / f"vmlinuz-{running}"
    if not image.exists():
        text = f"no kernel under /boot is newer than the running {running}"
    else:
        text = f"the newest installed kernel {running} runs already"
        if is_rebuilt(machine, Kernel(running, image, None)):
            text += f"; {image} is another build of it"
    raise NothingToDoError(
        f"nothing to do: {text}",
        "to another build, another flavour, or back: pkernfs update --kernel FILE",
    )


def is_rebuilt(machine: Machine, kernel: Kernel) -> bool:
    """Is it another build of the running kernel, under the same name?"""
    build = machine.read("proc/sys/kernel/version")
    if kernel.release != machine.kernel or not build:
        return False
    try:
        return not image_version(kernel.image).endswith(build)
    except PkernfsError:
        return False


def _named(machine: Machine, name: Path) -> Path:
    """The image that the user means: a file, or the release of an installed kernel."""
    if len(name.parts) == 1 and not name.exists():
        image = machine.root / "boot" / f"vmlinuz-{name}"
        if image.exists():
            return image
    return name


def choose(machine: Machine, image: Path | None, initrd: Path | None) -> Kernel:
    """The kernel that an update goes to, its files checked.

    :param image: bzImage, or release of an installed kernel, named by the user; None for
        the default.
    :param initrd: initrd named by the user; None for the one that belongs to the kernel.
    :raises NothingToDoError: none is named, and the newest one runs.
    :raises PkernfsError: a file is missing, unreadable, or not what it should be.
    """
    if image is None:
        kernel = default_target(machine, initrd=initrd is None)
        release = image_release(kernel.image)
        kernel = Kernel(release, kernel.image, initrd or kernel.initrd)
    else:
        image = _named(machine, image)
        release = image_release(image)
        kernel = Kernel(release, image, initrd or find_initrd(image.parent, release))
    if kernel.initrd is not None:
        try:
            with kernel.initrd.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise PkernfsError(
                f"can't read the initrd {kernel.initrd}: {error.strerror}"
            ) from error
        if empty:
            raise PkernfsError(f"the initrd {kernel.initrd} is empty")
    return kernel
