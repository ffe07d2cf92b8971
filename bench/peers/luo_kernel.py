# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with KHO and LUO on, built once from Debian's linux-source.

Debian's own 7.3 has both switched off, so the peer "luo" needs a kernel of its own. It is
a small one (``luo.config`` over tinyconfig), since Debian's whole configuration takes
hours on two cores: so this peer is compared with a bare kexec of the very same kernel.

``python -m bench.peers.luo_kernel`` builds it ahead of a run and prints where it is.
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

_SOURCE = "linux-source-7.3"
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
_FRAGMENT = Path(__file__).with_name("luo.config")
#: Made only for this: a few per cent of the machine's time, behind everything else.
_NICE = 19
_LIMIT_S = 25 * 60
#: Without one of these the peer would measure nothing.
_NEEDED = ("KEXEC_HANDOVER", "LIVEUPDATE", "KEXEC_FILE", "KVM_AMD", "EXT4_FS", "OVERLAY_FS")


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
    key = cache.digest(["1", _SOURCE, *_PACKAGES, _FRAGMENT])
    home = cache.artifact("luo-kernel", key, _make, keep=1)
    return Built(home / "bzImage", (home / "release").read_text().strip())


def _make(target: Path) -> None:
    started = time.monotonic()
    root = target / "root"
    with step(f"build root with {_SOURCE}"):
        image.mmdebstrap(root, _PACKAGES, (_SOURCE,))
    archive = next(root.glob(f"usr/src/{_SOURCE}*.tar.*"))
    with step("kernel with KHO and LUO"):
        _run(root, ["tar", "-C", "/usr/src", "-xf", f"/usr/src/{archive.name}"], started)
        tree = "/usr/src/" + archive.name.partition(".tar")[0]
        inside = root / tree.lstrip("/")
        (inside / "luo.config").write_bytes(_FRAGMENT.read_bytes())
        make = ["make", "-s", "-C", tree]
        _run(root, [*make, "tinyconfig"], started)
        merge = "cd $0 && scripts/kconfig/merge_config.sh -m .config luo.config"
        _run(root, ["sh", "-c", merge, tree], started)
        _run(root, [*make, "olddefconfig"], started)
        _check(inside / ".config")
        _run(root, [*make, f"-j{os.cpu_count() or 2}", "bzImage"], started)
    (target / "bzImage").write_bytes((inside / "arch/x86/boot/bzImage").read_bytes())
    (target / "config").write_bytes((inside / ".config").read_bytes())
    (target / "release").write_text((inside / "include/config/kernel.release").read_text())
    cache.remove_tree(root)


def _check(config: Path) -> None:
    """Say which options of the fragment did not hold; fail for those without which nothing is."""
    have = set(config.read_text().splitlines())
    wanted = [line for line in _FRAGMENT.read_text().splitlines() if line[:7] == "CONFIG_"]
    lost = [line for line in wanted if line not in have and not line.endswith("=n")]
    if lost:
        say(f"not in this kernel: {', '.join(lost)}")
    missing = [name for name in _NEEDED if f"CONFIG_{name}=y" not in have]
    if missing:
        raise PkernfsError(f"{_SOURCE} does not take {', '.join(missing)}")


def _run(root: Path, command: list[str], started: float) -> None:
    left = _LIMIT_S - (time.monotonic() - started)
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    whole = ["nice", f"-n{_NICE}", "unshare", "--mount", "sh", "-c", script, str(root), *command]
    try:
        done = subprocess.run(
            whole, capture_output=True, text=True, check=False, timeout=max(1.0, left)
        )
    except subprocess.TimeoutExpired as error:
        raise PkernfsError(
            f"the kernel for the peer luo was not built within {_LIMIT_S // 60} minutes",
            "run python -m bench.peers.luo_kernel on an idle machine",
        ) from error
    if done.returncode != 0:
        raise PkernfsError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-1500:]}")


def main() -> None:
    """Build it ahead of a run."""
    built = kernel()
    print(f"{built.release}: {built.image}")


if __name__ == "__main__":
    main()
