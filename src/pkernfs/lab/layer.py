# SPDX-License-Identifier: GPL-2.0-only
"""The layer over the host image: all that changes with our code, made in seconds.

Modules for every kernel, the pkernfs package with its dependencies, initrds, guests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.lab import build, cache, debug_kernel, guests, image, initrd, modtree
from pkernfs.lab.paths import source_tree
from pkernfs.lab.progress import step

_PACKAGE_HOME = "usr/lib/pkernfs"
_LAB_HOME = "usr/lib/pkernfs-lab"
#: The image's Python.
PYTHON = "3.13"
_COMMAND = f"""#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0-only
import sys

sys.path.insert(0, "/{_PACKAGE_HOME}")
from pkernfs.cli import main

main()
"""


@dataclass(frozen=True)
class Stack:
    """All that a virtual host boots from.

    :ivar layer: ext4 image that goes over the host image.
    """

    host: image.HostImage
    layer: Path

    def initrd(self, version: str) -> Path:
        """The initrd of a kernel, outside of the image."""
        return self.layer.parent / initrd_name(version)


def initrd_name(version: str) -> str:
    """File name under the host's /boot."""
    return f"pkernfs-lab-initrd-{version}"


def stack(*, debug: bool = False) -> Stack:
    """Image and layer of the sources as they are now.

    :param debug: with the lab's debug kernel beside Debian's.
    """
    host = image.host_image()
    modules = [build.modules()]
    if debug:
        kernel = debug_kernel.kernel()
        modules.append(build.modules(tools=debug_kernel.toolchain(kernel)))
        host = replace(host, kernels=(*host.kernels, kernel.release), built=(kernel,))
    wheels = dependencies()
    guest_files = guests.build(host)
    package = source_tree() / "src" / "pkernfs"
    units = source_tree() / "packaging" / "systemd"
    built_for = [built.home.name for built in modules]
    key = cache.digest(
        [host.key, *built_for, wheels.name, guest_files.name, package, units, _COMMAND]
    )

    def make(target: Path) -> None:
        with step("layer with modules and package"):
            tree = target / "tree"
            files = {version: built.of(version) for built in modules for version in built.kernels}
            _install_modules(host, files, tree)
            _install_package(package, wheels, tree)
            _install_units(tree)
            _install_lab(host, files, guest_files, tree)
            _install_built(host, tree)
            _compile(host, tree)
            for version in host.kernels:
                shutil.copyfile(tree / "boot" / initrd_name(version), target / initrd_name(version))
            image.make_ext4(tree, target / "layer.ext4", label="layer")
            cache.remove_tree(tree)

    return Stack(host, cache.artifact("layer", key, make, keep=6) / "layer.ext4")


def dependencies() -> Path:
    """The package's dependencies, as installed for the host image's Python."""
    project = source_tree() / "pyproject.toml"

    def make(target: Path) -> None:
        with step("Python packages of the host"):
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
            command += ["--python-version", PYTHON, "--only-binary=:all:", "--no-compile"]
            command += requirements(project)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PkernfsError(
                    f"pip failed: {done.stderr.strip()}", "is the package index reachable?"
                )

    key = cache.digest([PYTHON, *requirements(project)])
    return cache.artifact("wheels", key, make, keep=2)


def requirements(project: Path) -> list[str]:
    """What the package depends on, by its pyproject.toml."""
    import tomllib

    data = tomllib.loads(project.read_text())
    return [str(requirement) for requirement in data["project"]["dependencies"]]


def _install_modules(
    host: image.HostImage, files: Mapping[str, tuple[Path, ...]], tree: Path
) -> None:
    """Add the modules as updates/, with an index of the whole tree of each kernel.

    The index is made over a directory that links to the image's modules.
    """
    for version in host.kernels:
        target = tree / "usr/lib/modules" / version
        (target / "updates").mkdir(parents=True)
        for module in files[version]:
            shutil.copyfile(module, target / "updates" / module.name)
        source = host.module_root(version) / "usr/lib/modules" / version
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if (source / name).exists():
                shutil.copyfile(source / name, target / name)
        (target / "kernel").symlink_to(source / "kernel")
        (tree / "lib").symlink_to("usr/lib")
        modtree.depmod(tree, version)
        (tree / "lib").unlink()
        (target / "kernel").unlink()


def _install_package(package: Path, wheels: Path, tree: Path) -> None:
    home = tree / _PACKAGE_HOME
    shutil.copytree(wheels, home)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, home / "pkernfs", ignore=ignored)
    command = tree / "usr/bin/pkernfs"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)


def _install_units(tree: Path) -> None:
    """The units, the way an administrator installs them; none of them is enabled."""
    command = ["make", "--no-print-directory", "-s", "-C", str(source_tree())]
    command += ["install-units", f"DESTDIR={tree}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PkernfsError(f"make install-units failed: {done.stderr.strip()}")


def _install_built(host: image.HostImage, tree: Path) -> None:
    """Kernels that are not in the host image, for kexec to load."""
    for kernel in host.built:
        shutil.copyfile(kernel.image, tree / "boot" / f"vmlinuz-{kernel.release}")


def _install_lab(
    host: image.HostImage,
    files: Mapping[str, tuple[Path, ...]],
    guest_files: Path,
    tree: Path,
) -> None:
    home = tree / _LAB_HOME
    shutil.copytree(guest_files, home / "guests")
    for name in ("host-init.sh", "agent.py"):
        shutil.copy(initrd.INSIDE / name, home / name)
    (home / "host-init.sh").chmod(0o755)
    unit = tree / "etc/systemd/system/pkernfs-lab.service"
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir(parents=True)
    for name in (unit.name, "mnt-scratch.mount"):
        shutil.copy(initrd.INSIDE / name, unit.parent / name)
    wanted.symlink_to(f"../{unit.name}")
    (tree / "boot").mkdir()
    for version in host.kernels:
        (store,) = (path for path in files[version] if path.name == "pkernfs.ko")
        content = initrd.host_initrd(host, version, store)
        (tree / "boot" / initrd_name(version)).write_bytes(content)


def _compile(host: image.HostImage, tree: Path) -> None:
    """Compile the package with the image's own Python, run through the image's loader."""
    python, environment = guests.image_python(host)
    options = ["-q", "-s", str(tree), "-p", "/", "--invalidation-mode", "unchecked-hash"]
    command = [*python, "-m", "compileall", *options, str(tree / _PACKAGE_HOME)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise PkernfsError(f"the package does not compile: {done.stdout}{done.stderr}")
