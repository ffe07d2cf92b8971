# SPDX-License-Identifier: GPL-2.0-only
"""Guests of the lab's hosts: a stock kernel and small initrds, in one directory.

``vmlinuz``, ``witness.initrd`` (pkernfs.lab.inside.witness under the image's Python, cut
down to what it imports), ``nic.initrd`` (the same with pkernfs.lab.inside.nic_witness and the
driver of its card) and ``stress.initrd`` (stress-ng).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.lab import cache, cpio, initrd
from pkernfs.lab.image import HostImage

_INIT = initrd.INSIDE / "guest-init.sh"
_WITNESS = initrd.INSIDE / "witness.py"
_NIC = initrd.INSIDE / "nic_witness.py"
_APPLETS = ("cat", "insmod", "mkdir", "mount", "sh", "sleep")
_FOLDERS = ("dev", "proc", "sys", "tmp")
_MODULES = ("virtio_pci", "virtio_blk")
_NIC_MODULES = (*_MODULES, "e1000e")
_PYTHON = "python3.13"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
#: Imports what the witness imports, then tells which files that took.
_LIST = """
import importlib.util, sys, encodings.utf_8, encodings.latin_1, encodings.ascii
spec = importlib.util.spec_from_file_location("program", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def build(host: HostImage) -> Path:
    """The directory with the guests' kernel and initrds."""
    version = host.kernels[0]

    def make(target: Path) -> None:
        shutil.copyfile(host.vmlinuz(version), target / "vmlinuz")
        card = [*_witness(host, _NIC), cpio.copy(_WITNESS, _WITNESS.name)]
        programs = (
            ("witness", _MODULES, _witness(host, _WITNESS)),
            ("nic", _NIC_MODULES, card),
            ("stress", _MODULES, _stress(host)),
        )
        for name, modules, entries in programs:
            common = _common(host, version, modules)
            (target / f"{name}.initrd").write_bytes(cpio.archive([*common, *entries]))

    sources = [path.read_bytes() for path in (_INIT, _WITNESS, _NIC, Path(__file__))]
    return cache.artifact("guests", cache.digest([host.key, version, *sources]), make, keep=3)


def image_program(host: HostImage, program: Path) -> list[str]:
    """A program of the image as a command for this machine, by the image's own loader."""
    libraries = host.root / _LIBRARIES
    return [str(host.root / _LOADER), "--library-path", str(libraries), str(program)]


def image_python(host: HostImage) -> tuple[list[str], dict[str, str]]:
    """The image's Python as a command for this machine, and the environment it needs."""
    command = image_program(host, host.root / "usr/bin" / _PYTHON)
    return command, {**os.environ, "PYTHONHOME": str(host.root / "usr")}


def _common(host: HostImage, version: str, modules: tuple[str, ...]) -> list[cpio.Entry]:
    entries = [cpio.text("init", _INIT.read_bytes(), executable=True)]
    entries += initrd.busybox(host, _APPLETS)
    entries += initrd.modules(host, version, modules)
    entries += [cpio.Entry(name, 0o040755) for name in _FOLDERS]
    return [*entries, cpio.link("lib64", _LIBRARIES), cpio.link("lib", "usr/lib")]


def _stress(host: HostImage) -> list[cpio.Entry]:
    return _with_libraries(host, [host.root / "usr/bin/stress-ng"])


def _witness(host: HostImage, program: Path) -> list[cpio.Entry]:
    """A Python program with Python's files, cut down to what it imports."""
    python, environment = image_python(host)
    listed = _output([*python, "-B", "-S", "-c", _LIST, str(program)], environment)
    # hashlib can do without OpenSSL, and a guest with little memory is better off so.
    unwanted = ("witness.py", "/_hashlib.cpython-313-x86_64-linux-gnu.so")
    files = [Path(name) for name in listed.splitlines() if not name.endswith(unwanted)]
    objects = [path for path in files if path.suffix == ".so"]
    entries = _with_libraries(host, [host.root / "usr/bin" / _PYTHON, *objects])
    entries.append(cpio.copy(program, program.name))
    # Where Python looks to recognise its home.
    entries += [cpio.Entry("usr/lib/python3.13/lib-dynload", 0o040755)]
    for source in files:
        if source.suffix == ".py":
            name = source.relative_to(host.root).with_suffix(".pyc")
            entries.append(cpio.text(str(name), _compiled(python, environment, source)))
    return entries


def _compiled(python: list[str], environment: dict[str, str], source: Path) -> bytes:
    script = (
        "import py_compile, sys, tempfile;"
        "file = tempfile.NamedTemporaryFile();"
        "py_compile.compile(sys.argv[1], file.name, doraise=True);"
        "sys.stdout.buffer.write(open(file.name, 'rb').read())"
    )
    command = [*python, "-B", "-S", "-c", script, str(source)]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def _with_libraries(host: HostImage, programs: list[Path]) -> list[cpio.Entry]:
    """Programs and shared objects of the image with all that they are linked to."""
    found: dict[Path, None] = {host.root / _LOADER: None}
    for program in programs:
        found[program] = None
        for line in _output(
            [*image_program(host, program)[:-1], "--list", str(program)]
        ).splitlines():
            _, _, place = line.partition(" => ")
            path = Path(place.split(" (")[0]) if place else None
            if path is not None and path.is_relative_to(host.root):
                found[path] = None
    return [cpio.copy(path, str(path.relative_to(host.root))) for path in found]


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise PkernfsError(f"{command[-1]}: {done.stderr.strip()[-500:]}")
    return done.stdout
