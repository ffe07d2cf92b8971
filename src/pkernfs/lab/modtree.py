# SPDX-License-Identifier: GPL-2.0-only
"""A kernel's module tree: keep what a virtual host can use, find what a module needs."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

from pkernfs.errors import PkernfsError

#: Parts of the tree that stay, with what they depend on. The rest drives hardware that
#: no lab machine has.
_KEPT = (
    "arch",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char",
    "drivers/cpufreq",
    "drivers/dax",
    "drivers/dma",
    "drivers/firmware",
    "drivers/iommu",
    "drivers/irqchip",
    "drivers/misc",
    "drivers/net/ethernet/intel",
    "drivers/net/tun",
    "drivers/net/veth",
    "drivers/net/virtio_net",
    "drivers/net/net_failover",
    "drivers/nvdimm",
    "drivers/nvme",
    "drivers/pci",
    "drivers/scsi",
    "drivers/usb/host/xhci",
    "drivers/vfio",
    "drivers/vhost",
    "drivers/virtio",
    "drivers/watchdog",
    "fs/9p",
    "fs/autofs",
    "fs/binfmt_misc",
    "fs/configfs",
    "fs/efivarfs",
    "fs/ext4",
    "fs/fuse",
    "fs/jbd2",
    "fs/mbcache",
    "fs/netfs",
    "fs/nls",
    "fs/overlayfs",
    "kernel",
    "lib",
    "mm",
    "net/9p",
    "net/bridge/bridge",
    "net/core",
    "net/unix",
    "net/vmw_vsock",
    "security",
    "virt",
)
#: Changes when slim() would leave a different tree.
RECIPE = "modules 6 " + " ".join(_KEPT)


def slim(root: Path, version: str) -> None:
    """Drop modules no lab host can use, uncompress the others, and index them again.

    Their content is not touched: the kernel gets the very modules of the distribution,
    without spending emulated seconds on decompression.

    :raises PkernfsError: depmod failed.
    """
    tree = root / "lib/modules" / version
    kept = _kept(tree)
    for path in sorted(tree.glob("kernel/**/*.ko*")):
        if str(path.relative_to(tree)) not in kept:
            path.unlink()
        elif path.suffix == ".xz":
            path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
            path.unlink()
    depmod(root, version)


def _kept(tree: Path) -> set[str]:
    """Modules that stay, as modules.dep names them."""
    lines = (line.split() for line in (tree / "modules.dep").read_text().splitlines())
    needs = {name.rstrip(":"): others for name, *others in lines}
    parts = tuple(f"kernel/{part}" for part in _KEPT)
    kept = {name for name in needs if name.startswith(parts)}
    # modules.dep lists indirect dependencies too.
    return kept | {other for name in kept for other in needs[name]}


def depmod(root: Path, version: str) -> None:
    """Write the module index of ``root``.

    :raises PkernfsError: depmod failed.
    """
    _run(["depmod", "--basedir", str(root), version])


def needed(root: Path, version: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The module files to load for ``names``, in order, each once; built-in ones have none.

    :raises PkernfsError: a module is not in the tree.
    """
    found: dict[Path, None] = {}
    for name in names:
        options = ["--dirname", str(root), "--set-version", version, "--config", "/dev/null"]
        for line in _run(["modprobe", *options, "--show-depends", name]).splitlines():
            word, _, rest = line.partition(" ")
            if word == "insmod":
                found[Path(rest.split()[0])] = None
    return tuple(found)


def _run(command: list[str]) -> str:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise PkernfsError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout
