# SPDX-License-Identifier: GPL-2.0-only
"""A small kernel of the lab's own, built once from Debian's linux-source.

Debian's whole configuration takes hours on two cores. So such a kernel is a fragment of a
configuration over tinyconfig, with everything that it needs built in.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.lab import cache, image
from pkernfs.lab.progress import say, step

_PACKAGES = (
    "bc",
    "bison",
    "bzip2",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "perl",
    "python3-minimal",
    "xz-utils",
)
#: Behind everything else that this machine does.
_NICE = 19


@dataclass(frozen=True)
class Recipe:
    """What a kernel is made of.

    :ivar what: what it is called in messages.
    :ivar source: Debian's package with the sources.
    :ivar backports: the package is in backports, not in the release.
    :ivar fragment: configuration that goes over tinyconfig.
    :ivar needed: options that have to be ``y`` in the end, without ``CONFIG_``.
    :ivar limit_s: how long it may take, seconds.
    :ivar again: what to type to build it on an idle machine.
    :ivar modules: it takes modules, and has to say what they are built against.
    """

    what: str
    source: str
    backports: bool
    fragment: Path
    needed: tuple[str, ...]
    limit_s: int
    again: str
    modules: bool = False

    @property
    def key(self) -> str:
        """Digest of the recipe."""
        return cache.digest(["1", self.source, *_PACKAGES, self.fragment])


@dataclass(frozen=True)
class _Builder:
    recipe: Recipe
    root: Path
    deadline: float

    def run(self, *command: str) -> None:
        """Run a command in the build root.

        :raises PkernfsError: it fails, or time is up.
        """
        script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        whole = ["nice", f"-n{_NICE}", "unshare", "--mount", "sh", "-c", script, str(self.root)]
        left = max(1.0, self.deadline - time.monotonic())
        try:
            done = subprocess.run(
                [*whole, *command], capture_output=True, text=True, check=False, timeout=left
            )
        except subprocess.TimeoutExpired as error:
            raise PkernfsError(
                f"{self.recipe.what} was not built within {self.recipe.limit_s // 60} minutes",
                f"run {self.recipe.again} on an idle machine",
            ) from error
        if done.returncode != 0:
            raise PkernfsError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-1500:]}")


def build(recipe: Recipe, target: Path) -> Path:
    """Build a kernel; ``bzImage``, ``config`` and ``release`` are in ``target`` then.

    :param target: an empty directory.
    :returns: the tree that it was built in, below the build root ``target/root``.
    :raises PkernfsError: it can't be built, or not within its time.
    """
    builder = _Builder(recipe, target / "root", time.monotonic() + recipe.limit_s)
    with step(f"build root with {recipe.source}"):
        source = (recipe.source,)
        packages = _PACKAGES if recipe.backports else _PACKAGES + source
        image.mmdebstrap(builder.root, packages, source if recipe.backports else ())
    archive = next(builder.root.glob(f"usr/src/{recipe.source}*.tar.*"))
    with step(recipe.what):
        builder.run("tar", "-C", "/usr/src", "-xf", f"/usr/src/{archive.name}")
        tree = "/usr/src/" + archive.name.partition(".tar")[0]
        inside = builder.root / tree.lstrip("/")
        (inside / "lab.config").write_bytes(recipe.fragment.read_bytes())
        make = ("make", "-s", "-C", tree)
        builder.run(*make, "tinyconfig")
        merge = "cd $0 && scripts/kconfig/merge_config.sh -m .config lab.config"
        builder.run("sh", "-c", merge, tree)
        builder.run(*make, "olddefconfig")
        _check(recipe, inside / ".config")
        targets = ("bzImage", "modules") if recipe.modules else ("bzImage",)
        builder.run(*make, f"-j{os.cpu_count() or 2}", *targets)
    (target / "bzImage").write_bytes((inside / "arch/x86/boot/bzImage").read_bytes())
    (target / "config").write_bytes((inside / ".config").read_bytes())
    (target / "release").write_text((inside / "include/config/kernel.release").read_text())
    return inside


def _check(recipe: Recipe, config: Path) -> None:
    """Say which options of the fragment did not hold; fail for those without which nothing is."""
    have = set(config.read_text().splitlines())
    wanted = [line for line in recipe.fragment.read_text().splitlines() if line[:7] == "CONFIG_"]
    lost = [line for line in wanted if line not in have and not line.endswith("=n")]
    if lost:
        say(f"not in this kernel: {', '.join(lost)}")
    missing = [name for name in recipe.needed if f"CONFIG_{name}=y" not in have]
    if missing:
        raise PkernfsError(f"{recipe.source} does not take {', '.join(missing)}")
