# SPDX-License-Identifier: GPL-2.0-only
"""Builds the kernel modules for every kernel of the lab, in the build root.

``python -m pkernfs.lab.build [--log]`` builds and prints where the modules are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.lab import cache, image
from pkernfs.lab.paths import source_tree
from pkernfs.lab.progress import step

_SOURCES = ("*.c", "*.h", "Kbuild", "Makefile")
_LOG = "build.log"


@dataclass(frozen=True)
class Modules:
    """Modules built from one state of ``kernel/``: a directory per kernel version."""

    home: Path
    kernels: tuple[str, ...]

    def of(self, version: str) -> tuple[Path, ...]:
        """The module files for a kernel version."""
        return tuple(sorted((self.home / version).glob("*.ko")))

    @property
    def log(self) -> str:
        """What the compiler said, every kernel."""
        return "".join((self.home / v / _LOG).read_text() for v in self.kernels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines with a warning, W=1."""
        return tuple(line for line in self.log.splitlines() if "warning:" in line.lower())


def module_dirs(tree: Path) -> tuple[Path, ...]:
    """The directories of ``kernel/`` that Kbuild makes a module of, in the order of their needs."""
    folders = (path.parent for path in tree.glob("*/Kbuild"))
    return tuple(sorted(folders, key=lambda folder: (folder.name != "fs", folder.name)))


def sources(tree: Path) -> list[Path]:
    """What the modules are made of: their directories, and headers that they share."""
    found = set(tree.glob("*.h"))
    for folder in module_dirs(tree):
        found |= {path for pattern in _SOURCES for path in folder.rglob(pattern)}
    return sorted(path for path in found if ".mod." not in path.name)


def modules(tree: Path | None = None, tools: image.Toolchain | None = None) -> Modules:
    """The modules of ``tree`` (default: ``kernel/`` here) for all kernels of the build root.

    :param tools: another build root than that of Debian's kernels.

    The environment variable PKERNFS_KERNEL_TREE names another default, such as the
    ``kernel/`` of an older checkout.

    :raises PkernfsError: the compiler refused something; its output is in the error.
    """
    tree = tree or Path(os.environ.get("PKERNFS_KERNEL_TREE", source_tree() / "kernel"))
    tools = tools or image.toolchain()
    files = sources(tree)
    key = cache.digest(
        [
            tools.key,
            *tools.kernels,
            *(part for f in files for part in (str(f.relative_to(tree)), f)),
        ]
    )

    def make(target: Path) -> None:
        with step("kernel modules"), ThreadPoolExecutor() as pool:
            list(pool.map(lambda version: _make(tools, version, tree, target), tools.kernels))

    return Modules(cache.artifact("modules", key, make, keep=12), tools.kernels)


@contextmanager
def _workspace(tools: image.Toolchain, tree: Path, version: str) -> Iterator[Path]:
    """A copy of the sources inside the build root."""
    place = tools.root / "build" / f"{os.getpid()}-{version}"
    cache.remove_tree(place)
    for file in sources(tree):
        copy = place / file.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    try:
        yield place
    finally:
        cache.remove_tree(place)


def _in_root(root: Path, command: list[str]) -> list[str]:
    """``command`` inside ``root`` with a /proc (objtool asks it for the stack limit).

    The mount is made in a mount namespace of its own and ends with the command.
    """
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(root), *command]


def _make(tools: image.Toolchain, version: str, tree: Path, target: Path) -> None:
    output = target / version
    output.mkdir()
    log = []
    with _workspace(tools, tree, version) as place:
        for folder in module_dirs(place):
            inside = Path("/") / folder.relative_to(tools.root)
            command = _in_root(tools.root, ["make", "--no-print-directory", "W=1"])
            command += ["-C", f"/lib/modules/{version}/build", f"M={inside}", "modules"]
            symbols = inside.parent / "fs" / "Module.symvers"
            if folder.name != "fs":  # the others use what pkernfs.ko exports
                command.append(f"KBUILD_EXTRA_SYMBOLS={symbols}")
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            text = done.stdout.replace(str(inside.parent), "kernel")
            log.append(text)
            if done.returncode != 0:
                print(text, file=sys.stderr)
                raise PkernfsError(
                    f"{folder.name} does not compile for {version}",
                    "the compiler's output is above",
                )
            for module in folder.glob("*.ko"):
                shutil.copyfile(module, output / module.name)
    (output / _LOG).write_text("".join(log))


def main() -> int:
    """Build, print the warnings (or with ``--log`` everything), then the module files."""
    try:
        built = modules()
    except PkernfsError as error:
        print(f"error: {error.what}", file=sys.stderr)
        return 1
    print(built.log if "--log" in sys.argv[1:] else "\n".join(built.warnings))
    for version in built.kernels:
        print(f"{version}: {' '.join(str(path) for path in built.of(version))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
