# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with KHO and LUO on, built once from Debian's linux-source.

Debian's own 7.3 has both switched off, so the peer "luo" needs a kernel of its own. It is
a small one (``luo.config`` over tinyconfig), since Debian's whole configuration takes
hours on two cores: so this peer is compared with a bare kexec of the very same kernel.

``python -m bench.peers.luo_kernel`` builds it ahead of a run and prints where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pkernfs.lab import cache, kernel_build

_RECIPE = kernel_build.Recipe(
    what="kernel with KHO and LUO",
    source="linux-source-7.3",
    backports=True,
    fragment=Path(__file__).with_name("luo.config"),
    # Without one of these the peer would measure nothing.
    needed=("KEXEC_HANDOVER", "LIVEUPDATE", "KEXEC_FILE", "KVM_AMD", "EXT4_FS", "OVERLAY_FS"),
    limit_s=25 * 60,
    again="python -m bench.peers.luo_kernel",
)


@dataclass(frozen=True)
class Built:
    """The kernel.

    :ivar image: its bzImage.
    :ivar release: what ``uname -r`` says in it.
    """

    image: Path
    release: str


def kernel() -> Built:
    """The kernel, from the cache or built now (some ten minutes, 2 GB of disk meanwhile).

    :raises PkernfsError: it can't be built, or not within 25 minutes.
    """
    home = cache.artifact("luo-kernel", _RECIPE.key, _make, keep=1)
    return Built(home / "bzImage", (home / "release").read_text().strip())


def _make(target: Path) -> None:
    kernel_build.build(_RECIPE, target)
    cache.remove_tree(target / "root")


def main() -> None:
    """Build it ahead of a run."""
    built = kernel()
    print(f"{built.release}: {built.image}")


if __name__ == "__main__":
    main()
