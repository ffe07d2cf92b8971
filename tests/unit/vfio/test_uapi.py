# SPDX-License-Identifier: GPL-2.0-only
"""The constants and structs against the header of the system that runs the tests."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from pkernfs.vfio import uapi

HEADER = Path("/usr/include/linux/vfio.h")
needs_header = pytest.mark.skipif(
    not HEADER.exists() or shutil.which("gcc") is None, reason="no linux/vfio.h or no compiler"
)


def _numbers() -> dict[str, int]:
    return {
        name: value
        for name, value in vars(uapi).items()
        if name.startswith("VFIO_") and isinstance(value, int)
    }


def _fields(struct: type[ctypes.Structure]) -> list[str]:
    return [field[0] for field in struct._fields_]


def _program(header: str) -> str:
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/vfio.h>", "int main() {"]
    for name in _numbers():
        # Enumerators can't be asked for with #ifdef, all others can be newer than the header.
        guard = f"#define {name}" in header or f"#define {name}\t" in header
        known = guard or name in header
        if known:
            lines.append(f'printf("{name} %ld\\n", (long)({name}));')
    for struct in uapi.STRUCTS:
        name = struct.__name__
        lines.append(f'printf("sizeof:{name} %zu\\n", sizeof(struct {name}));')
        for field in _fields(struct):
            what = f"offsetof(struct {name}, {field})"
            lines.append(f'printf("{name}.{field} %zu\\n", {what});')
    return "\n".join([*lines, "return 0; }"])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the header says, by name."""
    directory = tmp_path_factory.mktemp("uapi")
    source = directory / "uapi.c"
    source.write_text(_program(HEADER.read_text()))
    program = directory / "uapi"
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


@needs_header
def test_numbers(kernel: dict[str, int]) -> None:
    ours = _numbers()
    compared = ours.keys() & kernel.keys()
    assert {name: ours[name] for name in compared} == {name: kernel[name] for name in compared}
    # A header that is too old to know one or two is fine, a wrong name everywhere is not.
    assert len(compared) > len(ours) - 5


@needs_header
def test_structs(kernel: dict[str, int]) -> None:
    for struct in uapi.STRUCTS:
        for field in _fields(struct):
            offset = getattr(struct, field).offset
            assert offset == kernel[f"{struct.__name__}.{field}"], f"{struct.__name__}.{field}"
        # A newer header may have fields behind ours; argsz tells the kernel which we mean.
        assert ctypes.sizeof(struct) <= kernel[f"sizeof:{struct.__name__}"], struct.__name__
