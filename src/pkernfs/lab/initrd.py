# SPDX-License-Identifier: GPL-2.0-only
"""The small initrd of a lab host: busybox, a handful of modules, one script."""

from __future__ import annotations

from pathlib import Path

from pkernfs.lab import cpio, modtree
from pkernfs.lab.image import HostImage

INSIDE = Path(__file__).parent / "inside"
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "overlay")
#: What a host of its own init needs on top before its guests can run.
_HOST_MODULES = ("kvm_amd",)
_APPLETS = ("insmod", "ln", "mkdir", "mount", "poweroff", "sh", "switch_root")
_FOLDERS = ("base", "changes", "dev", "layer", "proc", "root", "sys")


def host_initrd(image: HostImage, version: str, store: Path) -> bytes:
    """The initrd for one of the host's kernels, uncompressed.

    :param version: full version of an installed kernel.
    :param store: pkernfs.ko for it.
    """
    entries = [
        cpio.text("init", (INSIDE / "initrd-init.sh").read_bytes(), executable=True),
        *busybox(image, _APPLETS),
    ]
    entries += modules(image, version, _MODULES)
    # A kernel of the lab's own has built in what it has at all.
    own = any(kernel.release == version for kernel in image.built)
    entries += modules(image, version, () if own else _HOST_MODULES, order="host")
    entries.append(cpio.copy(store, "modules/pkernfs.ko"))
    entries += [cpio.Entry(name, 0o040755) for name in _FOLDERS]
    return cpio.archive(entries)


def busybox(image: HostImage, applets: tuple[str, ...]) -> list[cpio.Entry]:
    """The static busybox and the names it is called by."""
    program = next(
        p for p in (image.root / "usr/bin/busybox", image.root / "bin/busybox") if p.exists()
    )
    links = [cpio.link(f"bin/{name}", "busybox") for name in applets]
    return [cpio.copy(program, "bin/busybox"), *links]


def modules(
    image: HostImage, version: str, names: tuple[str, ...], order: str = "order"
) -> list[cpio.Entry]:
    """Module files under ``modules/``, and their order of loading in the file ``order`` there."""
    files = modtree.needed(image.module_root(version), version, names)
    listed = cpio.text(f"modules/{order}", " ".join(path.name for path in files) + "\n")
    return [listed, *(cpio.copy(path, f"modules/{path.name}") for path in files)]
