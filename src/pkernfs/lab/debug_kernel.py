# SPDX-License-Identifier: GPL-2.0-only
"""The debug kernel of the lab: 6.12 with KASAN, lockdep, DEBUG_VM, kmemleak and failslab.

What it finds are faults that Debian's kernels let pass: memory used after it was freed, locks
taken in two orders, memory that nobody frees, allocations that fail where none ever does.

``python -m pkernfs.lab.debug_kernel`` builds it ahead of a run and prints where it is.
"""

from __future__ import annotations

from pathlib import Path

from pkernfs.lab import cache, kernel_build, modtree
from pkernfs.lab.image import BuiltKernel, Toolchain

#: Emulated, it takes about so many times as long as Debian's kernel for the same.
SLOWDOWN = 5.0

RECIPE = kernel_build.Recipe(
    what="debug kernel",
    source="linux-source-6.12",
    backports=False,
    fragment=Path(__file__).with_name("debug.config"),
    needed=(
        *("KASAN_GENERIC", "PROVE_LOCKING", "DEBUG_VM", "DEBUG_KMEMLEAK"),
        *("FAILSLAB", "FAIL_PAGE_ALLOC", "FAULT_INJECTION_STACKTRACE_FILTER"),
        *("EXT4_FS", "OVERLAY_FS", "VIRTIO_BLK", "9P_FS", "KEXEC_FILE", "CRASH_DUMP"),
        *("INTEL_IOMMU", "IRQ_REMAP", "VFIO_PCI", "VFIO_IOMMU_TYPE1"),
        *("LIVEPATCH", "KPROBES", "KALLSYMS_ALL", "DYNAMIC_FTRACE", "ZONE_DEVICE"),
    ),
    limit_s=90 * 60,
    again="python -m pkernfs.lab.debug_kernel",
    modules=True,
)
#: What of the tree modules are built with; the rest is 2 GB.
_KEPT = ("Makefile", "Module.symvers", ".config", "arch", "include", "scripts", "tools")


def kernel() -> BuiltKernel:
    """The kernel, from the cache or built now (half an hour on two cores, 4 GB meanwhile).

    :raises PkernfsError: it can't be built, or not within 90 minutes.
    """
    home = cache.artifact("debug-kernel", RECIPE.key, _make, keep=1)
    return BuiltKernel((home / "release").read_text().strip(), home / "bzImage", home / "root")


def toolchain(built: BuiltKernel) -> Toolchain:
    """What modules for it are built with: the root that it was built in itself."""
    return Toolchain(built.root, (built.release,))


def _make(target: Path) -> None:
    _finish(target, kernel_build.build(RECIPE, target))


def _finish(target: Path, tree: Path) -> None:
    """Make of the tree that a kernel was built in what modules are built with."""
    release = (target / "release").read_text().strip()
    root = target / "root"
    home = root / "lib/modules" / release
    # An empty tree of modules: what a host needs is built in, and modprobe has to know.
    (home / "kernel").mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (home / name).write_bytes((tree / name).read_bytes())
    (home / "build").symlink_to(Path("/") / tree.relative_to(root))
    modtree.depmod(root, release)
    _slim(tree)


def _slim(tree: Path) -> None:
    for path in tree.iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir() and not path.is_symlink():
            cache.remove_tree(path)
        else:
            path.unlink()
    for path in (tree / "arch").iterdir():
        if path.is_dir() and path.name != "x86":
            cache.remove_tree(path)
    for archive in tree.parent.glob("*.tar.*"):
        archive.unlink()


def main() -> None:
    """Build it ahead of a run."""
    built = kernel()
    print(f"{built.release}: {built.image}")


if __name__ == "__main__":
    main()
