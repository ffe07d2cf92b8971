# SPDX-License-Identifier: GPL-2.0-only
"""Guests that run guests of their own, and a next kernel whose KVM does not let them.

KVM maps pages that describe a nested guest (the VMCB or VMCS) for as long as it runs. From 6.13
on it does that only for memory that it can pin, unless kvm.allow_unsafe_mappings=1
(kvm_vcpu_map() and hva_to_pfn_remapped() in virt/kvm/kvm_main.c). Memory without struct pages
can't be pinned: a guest that goes from 6.12 to such a kernel finds that its own guests end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pkernfs.errors import PkernfsError
from pkernfs.host.bootline import BootLine
from pkernfs.host.doctor import Finding, blocker, note
from pkernfs.host.kernels import Kernel, version_key
from pkernfs.host.machine import Machine
from pkernfs.vmm.config import Guest
from pkernfs.vmm.guests import struct_pages
from pkernfs.vmm.monitor import Monitor

#: Ids of findings begin so; the guest's name follows.
ID: Final = "nested."

#: The first kernel whose KVM asks for pages that it can pin.
_SINCE: Final = "6.13-rc1"
_PARAMETER: Final = "allow_unsafe_mappings"
_HINT: Final = (
    f"options kvm {_PARAMETER}=1 in /etc/modprobe.d, and in the initrd if that loads kvm; or a"
    " store with struct pages (pkernfs.pages=1 on the boot line before it is made)"
)
#: How the kernel writes a boolean that is true (kstrtobool() in lib/kstrtox.c).
_TRUE: Final = frozenset("yYtT1") | {"on", "On", "ON", "oN"}
#: A counter of KVM's: how often a processor has entered a nested guest.
_COUNTER: Final = "nested_run"
_MODULES: Final = ("kvm_intel", "kvm_amd")


def _options(machine: Machine) -> Iterator[str]:
    """Values of the parameter in modprobe's configuration, in its order."""
    for file in sorted((machine.root / "etc/modprobe.d").glob("*.conf")):
        for line in (machine.read(str(file.relative_to(machine.root))) or "").splitlines():
            words = line.split()
            if words[:2] == ["options", "kvm"]:
                yield from BootLine(tuple(words[2:])).values(_PARAMETER)


def refuses(machine: Machine, kernel: Kernel, line: BootLine | None = None) -> bool:
    """Whether the KVM of a kernel refuses nested guests in the memory of the store.

    :param line: its boot line; None: that of the running one.
    """
    if version_key(kernel.release) < version_key(_SINCE) or struct_pages(machine):
        return False
    values = (line or machine.boot_line).values(f"kvm.{_PARAMETER}") or list(_options(machine))
    return not values or values[-1] not in _TRUE


def offered(machine: Machine) -> bool:
    """Whether KVM of the running kernel offers guests to run guests of their own."""
    states = (machine.read(f"sys/module/{name}/parameters/nested") for name in _MODULES)
    return any(state in _TRUE for state in states)


async def used(session: Monitor) -> bool:
    """Whether a guest has run a guest of its own since its QEMU started.

    A QEMU that does not say (before 7.1, or without KVM) has run none that would be lost.
    """
    wanted = {"target": "vcpu", "providers": [{"provider": "kvm", "names": [_COUNTER]}]}
    try:
        answer = await session.execute("query-stats", wanted)
    except PkernfsError:
        return False
    return any(stat["value"] for each in answer for stat in each["stats"])


def finding_of(guest: Guest, release: str) -> Finding:
    """About a guest that runs guests of its own, and would not be let."""
    return blocker(
        "nested guests",
        f"guest {guest.name} runs guests of its own: KVM of {release} would end them, as it maps"
        " no memory without struct pages for them",
        _HINT,
        ID + guest.name,
        overridable=True,
    )


async def examine(
    sessions: Iterable[Monitor], machine: Machine, kernel: Kernel, line: BootLine | None = None
) -> list[Finding]:
    """The guests that would lose theirs.

    :param line: the next kernel's boot line; None: like the running one's.
    """
    if not refuses(machine, kernel, line):
        return []
    return [finding_of(each.guest, kernel.release) for each in sessions if await used(each)]


def of_host(machine: Machine, kernel: Kernel | None) -> Iterator[Finding]:
    """What concerns guests that will want to."""
    if kernel is not None and offered(machine) and refuses(machine, kernel):
        yield note(
            "nested guests",
            f"guests can't run guests of their own under {kernel.release}: its KVM maps no"
            " memory without struct pages for them",
            _HINT,
            id="nested",
        )


def own(override: frozenset[str]) -> frozenset[str]:
    """Those ids of findings that are about nested guests."""
    return frozenset(id for id in override if id.startswith(ID))
