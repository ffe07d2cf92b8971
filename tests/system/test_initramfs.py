# SPDX-License-Identifier: GPL-2.0-only
"""A host whose initrd brings the drivers: the module comes before them."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from pkernfs.lab import build, cpio, devices
from pkernfs.lab.devices import NIC, Proof
from pkernfs.lab.frames import Wire
from pkernfs.lab.layer import stack
from pkernfs.lab.machine import HostConfig, Machine
from tests.answers import answers

from . import device_host as on

pytestmark = pytest.mark.system
SCRIPTS = Path(__file__).parent / "scripts"
HOOKS = Path(__file__).resolve().parents[2] / "packaging" / "initramfs"
APPEND = "boot=lab init=/usr/lib/pkernfs-lab/host-init.sh"


def make(kernel: str, output: Path) -> None:
    """An initrd for one of the lab's kernels by mkinitramfs: ``initrd``, ``files``, ``order``."""
    image = stack().host
    version = image.kernel(kernel)
    (modules,) = {path.parent for path in build.modules().of(version)}
    command = ["unshare", "--mount", str(SCRIPTS / "make_initramfs.sh"), str(image.root), version]
    command += [str(modules), str(HOOKS), str(SCRIPTS), str(output)]
    subprocess.run(command, check=True)


def refuses_a_driver_without_the_module(host: Machine, directory: Path) -> None:
    """An initrd that has the card's driver but not the module, and one that has both."""
    version = host.stack.host.kernel("7.3")
    drivers = f"usr/lib/modules/{version}/kernel/drivers/net"
    command = ["pkernfs", "update", "--dry-run", "--kernel", f"/boot/vmlinuz-{version}", "--initrd"]
    names = ["e1000e", "pkernfs_dma"]
    for count in (1, 2):
        files = [cpio.text(f"{drivers}/{name}.ko", b"") for name in names[:count]]
        (directory / f"initrd-{count}").write_bytes(cpio.archive(files))
        result = host.run([*command, host.upload(directory / f"initrd-{count}")])
        assert result.status == (1 if count == 1 else 0), result
        if count == 1:
            assert f"brings e1000e, a driver of the preserved {NIC}" in result.stderr
            assert "--override devices.initrd" in result.stderr


@answers(
    phase="check",
    failure="the next kernel's initrd brings the driver of a preserved device, but not the module",
    outcome="refused, unless --override devices.initrd",
)
def test_the_module_comes_before_the_drivers(tmp_path: Path) -> None:
    """The driver of the network card lies in the initrd, and udev loads it; the card works on."""
    make("7.3", tmp_path)
    files = (tmp_path / "files").read_text()
    for name in ("pkernfs", "pkernfs_dma", "e1000e"):
        assert re.search(rf"/{name}\.ko", files), files
    order = re.findall(r"^/scripts/init-top/(\S+)", (tmp_path / "order").read_text(), re.M)
    assert order.index("pkernfs") < order.index("udev")

    wire = Wire(tmp_path)
    proof = Proof(wire, tmp_path / "frames")
    config = HostConfig(kernel="6.12", extra=devices.nic_arguments(wire), allowed=devices.EXPECTED)
    with Machine(config) as host, proof.frames(host) as source:
        time.sleep(1)
        refuses_a_driver_without_the_module(host, tmp_path)
        initrd = host.upload(tmp_path / "initrd")
        on.update(host, "7.3", "--append", APPEND, initrd=initrd)
        host.sh("test -d /sys/module/e1000e").check()
        (ours,) = on.kernel_says(host, f"{NIC} works on")
        assert ours < min(on.kernel_says(host, "e1000e: Intel(R) PRO/1000"))
        assert devices.listed(host)[NIC]["state"] == "inherited"
        entry, problems = proof.finish(host, source)
    assert problems == []
    assert entry.frames.whole
