# SPDX-License-Identifier: GPL-2.0-only
"""Guests that a script and libvirt started, adopted and taken through an update."""

from __future__ import annotations

import json

import pytest

from pkernfs.lab import demo
from pkernfs.lab.machine import Machine
from tests.conftest import HostFactory

from . import tick
from .tick import Tick

pytestmark = [pytest.mark.system, pytest.mark.kvm, pytest.mark.timeout(1200)]

_IMAGE = "/mnt/scratch/tick.img"

_SCRIPT = (
    "qemu-system-x86_64 -name {name} -daemonize -nodefaults -display none -accel kvm -cpu qemu64 "
    "-m 32M -drive file={image},format=raw,if=ide,file.locking=off "
    "-chardev file,id=log,path=/mnt/scratch/{name}.log,append=on -serial chardev:log "
    "-qmp unix:/run/{name}.qmp,server=on,wait=off "
)
_MEMORY = (
    "-object memory-backend-file,id=ram,size=32M,mem-path=/mnt/pkernfs/{name}.ram,share=on "
    "-machine q35,memory-backend=ram"
)

_DOMAIN = f"""<domain type='kvm'>
 <name>domain</name>
 <memory unit='MiB'>64</memory>
 <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
 <vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os>
 <features><acpi/></features>
 <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model></cpu>
 <devices>
  <emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/>
   <source file='{_IMAGE}.domain'/><target dev='sda' bus='sata'/></disk>
  <serial type='file'><source path='/mnt/scratch/domain.log' append='on'/></serial>
  <memballoon model='none'/>
 </devices>
</domain>
"""


def _prepare(host: Machine) -> None:
    (host.share / "tick.img").write_bytes(tick.IMAGE)
    (host.share / "domain.xml").write_text(_DOMAIN)
    host.sh(
        f"cp /mnt/share/tick.img {_IMAGE}; cp {_IMAGE} {_IMAGE}.domain;"
        "echo 'memory_backing_dir = \"/mnt/pkernfs\"' >>/etc/libvirt/qemu.conf;"
        "systemctl restart libvirtd"
    ).check()


def _adopt(host: Machine, *arguments: str) -> dict[str, object]:
    done = host.run(["pkernfs", "vm", "adopt", *arguments, "--json"])
    value = json.loads(done.check().stdout)
    assert isinstance(value, dict)
    return value


def _refusals(host: Machine) -> None:
    """Memory elsewhere: it says what to write, and the guest runs on."""
    host.sh((_SCRIPT + "-machine q35").format(name="plain", image=_IMAGE)).check()
    plain = Tick(host, "plain")
    plain.wait_count(3)
    refused = host.run(["pkernfs", "vm", "adopt", "--qmp", "/run/plain.qmp"])
    assert refused.status == 1
    assert "does not lie in a store" in refused.stderr
    assert "share=on" in refused.stderr and "memory_backing_dir" in refused.stderr
    plain.counts_on()
    host.sh("kill $(pidof -s qemu-system-x86_64)").check()


def test_guests_of_a_script_and_of_libvirt_outlive_the_kernel(new_host: HostFactory) -> None:
    host = new_host(kernel="6.12", units=True, full=True)
    _prepare(host)
    _refusals(host)
    host.sh((_SCRIPT + _MEMORY).format(name="script", image=_IMAGE)).check()
    host.run(["virsh", "create", "/mnt/share/domain.xml"]).check()
    script, domain = Tick(host, "script"), Tick(host, "domain")
    for guest in (script, domain):
        guest.wait_count(3)

    assert _adopt(host, "--qmp", "/run/script.qmp")["notes"] == []
    busy = host.run(["pkernfs", "vm", "adopt", "--qmp", _libvirt_socket(host), "--name", "busy"])
    assert busy.status == 1
    assert "--libvirt DOMAIN" in busy.stderr
    notes = _adopt(host, "--libvirt", "domain")["notes"]
    assert isinstance(notes, list)
    assert any("libvirt does not know" in note for note in notes)
    listed = json.loads(host.run(["pkernfs", "vm", "list", "--json"]).check().stdout)["vms"]
    assert [(vm["name"], vm["state"]) for vm in listed] == [
        ("domain", "running"),
        ("script", "running"),
    ]
    assert host.run(["virsh", "domstate", "domain"]).stdout.strip() == "running"
    user = host.sh("stat -c %U /proc/$(cut -d' ' -f1 /run/pkernfs/domain/pid)").stdout

    before = {guest.name: guest.count() for guest in (script, domain)}
    demo.update(host)
    assert host.hello.kernel.startswith("7.3")
    report = demo.report_of(host)
    assert [(vm["name"], vm["survived"]) for vm in report["vms"]] == [
        ("domain", True),
        ("script", True),
    ]
    # virtlogd's pipe is gone: what the domain prints now goes to a log of pkernfs's.
    host.sh("cat /run/pkernfs/domain/charserial0.log >>/mnt/scratch/domain.log").check()
    for guest in (script, domain):
        assert before[guest.name] < guest.wait_count(before[guest.name] + 1)
    script.counts_on()
    after = "stat -c %U /proc/$(cut -d' ' -f1 /run/pkernfs/domain/pid)"
    assert host.sh(after).stdout == user == "libvirt-qemu\n"
    # The script finds its own monitor again.
    assert host.sh("test -S /run/script.qmp").status == 0


def _libvirt_socket(host: Machine) -> str:
    return (
        host.sh("ls -d /var/lib/libvirt/qemu/domain-*-domain/monitor.sock").check().stdout.strip()
    )
