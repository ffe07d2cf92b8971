# SPDX-License-Identifier: GPL-2.0-only
"""Every question that doctor asks, answered wrongly once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pkernfs.host import doctor, kernels
from pkernfs.host.doctor import Finding, Status
from pkernfs.vmm import doctor as vmm_doctor
from tests.answers import answers
from tests.unit.vmm.fakes import FakeHost, bzimage


def _findings(host: FakeHost) -> list[Finding]:
    kernel = kernels.default_target(host.machine)
    return doctor.examine(host.machine, host.places.store, kernel) + vmm_doctor.examine(
        host.machine, kernel
    )


def _blockers(host: FakeHost) -> list[Finding]:
    return [finding for finding in _findings(host) if finding.status is Status.BLOCKER]


def test_a_host_that_is_ready_has_no_blocker(host: FakeHost) -> None:
    assert _blockers(host) == []
    assert all(finding.hint for finding in _findings(host) if finding.status is not Status.OK)


def _line(text: str) -> Callable[[FakeHost], object]:
    def change(host: FakeHost) -> None:
        host.put("proc/cmdline", text)

    return change


def _file(path: str, text: str) -> Callable[[FakeHost], object]:
    def change(host: FakeHost) -> None:
        host.put(path, text)

    return change


def _gone(path: str) -> Callable[[FakeHost], object]:
    def change(host: FakeHost) -> None:
        (host.root / path).unlink()

    return change


_SME = "flags\t\t: fpu vme sme\n"
_BY_DEFAULT = "CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT=y\n"


@pytest.mark.parametrize(
    ("cpu", "line", "config", "encrypted"),
    [
        (_SME, "mem_encrypt=on", "", True),
        (_SME, "mem_encrypt=on mem_encrypt=off", "", False),
        (_SME, "", _BY_DEFAULT, True),
        (_SME, "mem_encrypt=off", _BY_DEFAULT, False),
        (_SME, "", "", False),
        ("flags\t\t: fpu vme sme_coherent\n", "mem_encrypt=on", _BY_DEFAULT, False),
    ],
)
def test_memory_encryption(
    host: FakeHost, cpu: str, line: str, config: str, encrypted: bool
) -> None:
    host.put("proc/cpuinfo", cpu)
    host.put("proc/cmdline", f"{host.machine.read('proc/cmdline')} {line}")
    host.put(f"boot/config-{host.machine.kernel}", config)
    found = [finding.id for finding in _blockers(host)]
    assert found == (["memory.encrypted"] if encrypted else [])


@answers(
    phase="check",
    failure="one of doctor's questions about host, kernel, module or memory",
    outcome="refused, nothing touched; says what to type",
)
@pytest.mark.parametrize(
    ("change", "topic", "says"),
    [
        (_line("pkernfs.region=1G!4G memmap=1G!4G"), "KASLR", "pmem"),
        (_line("pkernfs.region=1G!4G memmap=1G%4G-1+2"), "KASLR", "KASLR does not avoid"),
        (_file("proc/iomem", "00000000-1ffffffff : System RAM"), "range", "kernel uses"),
        (_file("proc/iomem", ""), "range", "not claimed"),
        (_file("sys/module/pkernfs/parameters/region", "nonsense"), "range", "not a region"),
        (_gone("lib/modules/7.3.4/updates/dkms/pkernfs.ko"), "module", "next kernel 7.3.4"),
        (_file("sys/module/module/parameters/sig_enforce", "Y"), "module", "not signed"),
        (_file("sys/kernel/security/lockdown", "none [integrity]"), "module", "not signed"),
        (_file("proc/self/mountinfo", ""), "store", "nothing is mounted"),
        (_gone("sys/kernel/kexec_loaded"), "kexec", "no kexec"),
        (_file("proc/sys/kernel/kexec_load_disabled", "1"), "kexec", "switched off"),
        (_file("proc/meminfo", "MemAvailable:   20000 kB"), "memory", "19 MiB are free"),
    ],
)
def test_what_blocks(
    host: FakeHost, change: Callable[[FakeHost], object], topic: str, says: str
) -> None:
    change(host)
    found = _blockers(host)
    assert [(finding.topic, says in finding.text) for finding in found] == [(topic, True)]
    assert found[0].hint
    assert found[0].id


@pytest.mark.parametrize("path", ["sys/kernel/security/lockdown", "boot/config-6.12.1"])
def test_an_unsigned_kernel_blocks_where_signatures_are_asked_for(
    host: FakeHost, path: str
) -> None:
    host.put("boot/vmlinuz-7.3.4", bzimage("7.3.4", signed=False))
    assert _blockers(host) == []
    host.put("lib/modules/7.3.4/updates/dkms/pkernfs.ko", b"~Module signature appended~\n")
    host.put(path, "none [integrity]" if "lockdown" in path else "CONFIG_KEXEC_SIG_FORCE=y\n")
    (found,) = _blockers(host)
    assert (found.id, found.overridable) == ("kernel.unsigned", True)


def test_a_missing_module_says_what_to_install(host: FakeHost) -> None:
    (host.root / "sys/module/pkernfs/parameters/region").unlink()
    (host.root / "sys/module/pkernfs/parameters").rmdir()
    (host.root / "sys/module/pkernfs").rmdir()
    assert [finding.hint for finding in _blockers(host)] == ["modprobe pkernfs"]


def test_notes_do_not_block(host: FakeHost) -> None:
    host.put("proc/cmdline", "pkernfs.region=1G!4G")
    (host.root / "dev/kvm").unlink()
    host.put("boot/config-6.12.1", "CONFIG_KEXEC_SIG_FORCE=y\n")
    assert _blockers(host) == []
    notes = {finding.topic for finding in _findings(host) if finding.status is Status.NOTE}
    assert notes == {"KASLR", "KVM", "signatures", "O_DIRECT"}


def test_an_old_qemu_blocks(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkernfs.vmm.process.qemu_version", lambda _: "7.2.22")
    assert [finding.topic for finding in _blockers(host)] == ["QEMU"]


def test_memory_with_pages_serves_o_direct(host: FakeHost) -> None:
    host.put("sys/fs/pkernfs/pkernfs/pages", "1\n")
    found = [finding for finding in _findings(host) if finding.topic == "O_DIRECT"]
    assert [finding.status for finding in found] == [Status.OK]
