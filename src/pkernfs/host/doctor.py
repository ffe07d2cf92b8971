# SPDX-License-Identifier: GPL-2.0-only
"""Can this machine live-update? One finding per question, with what to type.

What concerns QEMU is in pkernfs.vmm.doctor.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.host import attended, grub, kernels, kexec
from pkernfs.host.bootline import is_reserved, reserving_word
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import MODULE, Machine
from pkernfs.host.ranges import Region
from pkernfs.host.stores import Store, stores
from pkernfs.mountinfo import FSTYPE

#: What loading a kernel takes beside its files (bytes).
_MEMORY_MARGIN = 32 << 20


class Status(enum.Enum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    BLOCKER = "blocker"


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    :ivar topic: what was looked at, one word or two.
    :ivar text: what was found.
    :ivar hint: what to type; empty when all is well.
    :ivar id: names the finding for ``pkernfs update --override``; does not change between
        versions.
    :ivar overridable: may an update go on in spite of this blocker? Not when it could not
        work, or when it would lose a guest.
    """

    topic: str
    status: Status
    text: str
    hint: str = ""
    id: str = ""
    overridable: bool = False


def _plain_id(topic: str) -> str:
    return topic.lower().replace(" ", "-")


def ok(topic: str, text: str) -> Finding:
    """All is well."""
    return Finding(topic, Status.OK, text, id=_plain_id(topic))


def note(topic: str, text: str, hint: str = "", *, id: str = "") -> Finding:
    """An update works, but this should be known."""
    return Finding(topic, Status.NOTE, text, hint, id or _plain_id(topic))


def blocker(topic: str, text: str, hint: str, id: str, *, overridable: bool = False) -> Finding:
    """An update is refused."""
    return Finding(topic, Status.BLOCKER, text, hint, id, overridable)


def hint_of(finding: Finding) -> str:
    """What to do about a finding, the way around it included if there is one."""
    if finding.overridable:
        return f"{finding.hint}; to go on in spite of it: pkernfs update --override {finding.id}"
    return finding.hint


def how_to_build(machine: Machine, release: str) -> str:
    """What to type to have the modules for a kernel, its headers as well where they lack."""
    build = f"dkms autoinstall -k {release}"
    if (machine.root / "lib/modules" / release / "build").exists():
        return build
    return f"apt install linux-headers-{release} && {build}"


def _range(machine: Machine) -> Iterator[Finding]:
    topic = "range"
    try:
        regions = machine.regions()
    except PkernfsError as error:
        yield blocker(topic, error.what, error.hint, "range.unreadable")
        return
    if not regions:
        yield blocker(topic, *_no_range(machine), "range.none")
    for region in regions:
        yield from _region(machine, region)


def _no_range(machine: Machine) -> tuple[str, str]:
    """What is between this host and its first region: said and what to do."""
    none = "no range of memory is given to pkernfs"
    if not grub.regions(machine):
        return none, "pkernfs reserve --size SIZE, then reboot"
    loader = grub.other_loader(machine)
    if loader:
        return (
            f"{none}: /{grub.DROP_IN} asks for one, and this host boots by {loader}",
            "pkernfs reserve --size SIZE says what to write where",
        )
    lacking = grub.missing(machine)
    if lacking:
        return (
            f"{none}: /{grub.DROP_IN} asks for one, and the entry of {lacking[0]} has it not",
            "pkernfs reserve --size with the same size writes it anew, and says what is in the way",
        )
    if grub.is_older_than_boot(machine):
        return (
            f"{none}, though /{grub.DROP_IN} asked for one before this boot",
            f"was another entry or loader chosen? /proc/cmdline and /{grub.CONFIG} show both",
        )
    return f"{none} before the next boot", "reboot"


def _region(machine: Machine, region: Region) -> Iterator[Finding]:
    span = region.range
    kinds = {kind for other, kind in machine.boot_line.reservations() if other.overlaps(span)}
    memory = machine.memory()
    if any(name == "System RAM" and other.overlaps(span) for other, name in memory):
        yield blocker(
            "range",
            f"{span} overlaps memory that the kernel uses",
            f"add to the boot line: {reserving_word(region)} (in GRUB: \\$)",
            "range.in-use",
        )
    elif any(name.startswith(MODULE) and other.contains(span) for other, name in memory):
        yield ok("range", f"{span} is claimed by the module")
    elif machine.module_loaded():
        yield blocker(
            "range",
            f"{span} is not claimed in /proc/iomem",
            "the kernel log has the module's reason",
            "range.unclaimed",
        )
    if is_reserved(machine.boot_line, region):
        yield ok("KASLR", f"memmap=...$ keeps the next kernel off {span} too")
    elif "!" in kinds:
        yield blocker(
            "KASLR",
            f"memmap=...! makes {span} persistent memory, which the pmem driver takes",
            f"write {reserving_word(region)} instead (in GRUB: \\$)",
            "kaslr.pmem",
            overridable=True,
        )
    elif "%" in kinds:
        yield blocker(
            "KASLR",
            f"KASLR does not avoid {span}: it does not read memmap=...%",
            f"write {reserving_word(region)} instead (in GRUB: \\$)",
            "kaslr.percent",
            overridable=True,
        )
    else:
        yield note(
            "KASLR",
            f"the running boot line does not reserve {span}",
            f"pkernfs update adds {reserving_word(region)}; add it to the boot loader as well",
        )


def _module(machine: Machine, kernel: Kernel | None) -> Iterator[Finding]:
    topic = "module"
    if machine.module_loaded():
        yield ok(topic, f"{MODULE} is loaded in {machine.kernel}")
    elif machine.module_file(machine.kernel) is not None:
        yield blocker(topic, f"{MODULE} is not loaded", f"modprobe {MODULE}", "module.not-loaded")
    else:
        yield blocker(
            topic,
            f"{MODULE} is not installed for the running kernel {machine.kernel}",
            how_to_build(machine, machine.kernel),
            "module.not-installed",
        )
    if kernel is None:
        return
    file = machine.module_file(kernel.release)
    if file is None:
        yield blocker(
            topic,
            f"{MODULE} is not installed for the next kernel {kernel.release}",
            how_to_build(machine, kernel.release),
            "module.next-missing",
            overridable=True,
        )
    elif _must_be_signed(machine) and not _is_signed(file):
        yield blocker(
            topic,
            f"{file} is not signed, and this machine loads signed modules only",
            "sign it with a key that the machine trusts (see DKMS, mok_signing_key)",
            "module.next-unsigned",
            overridable=True,
        )
    else:
        yield ok(topic, f"{MODULE} is installed for the next kernel {kernel.release}")


def _encryption(machine: Machine) -> Iterator[Finding]:
    """Is memory encrypted by AMD's SME? Only the kernel's own log says it outright."""
    if not re.search(r"^flags\s*:.*\bsme\b", machine.read("proc/cpuinfo") or "", re.M):
        return
    asked = machine.boot_line.values("mem_encrypt")
    config = machine.read(f"boot/config-{machine.kernel}") or ""
    default = "CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT=y" in config.splitlines()
    if asked[-1] != "on" if asked else not default:
        return
    yield blocker(
        "memory encryption",
        "memory is encrypted (SME): kernel and programs would see different bytes in the store,"
        f" so {MODULE} does not load",
        "boot with mem_encrypt=off",
        "memory.encrypted",
    )


def _must_be_signed(machine: Machine) -> bool:
    enforced = machine.read("sys/module/module/parameters/sig_enforce") == "Y"
    return enforced or _lockdown(machine) != "none"


def _lockdown(machine: Machine) -> str:
    text = machine.read("sys/kernel/security/lockdown") or "[none]"
    return text.partition("[")[2].partition("]")[0]


def _is_signed(file: Path) -> bool:
    """Does the module carry a signature (kernel/module/signing.c)? A packed one may."""
    if file.suffix != ".ko":
        return True
    mark = b"~Module signature appended~\n"
    with file.open("rb") as module:
        module.seek(max(0, file.stat().st_size - len(mark)))
        return module.read() == mark


def _mount(machine: Machine, store: Path) -> Iterator[Finding]:
    found = machine.filesystem_of(store)
    if found == FSTYPE:
        yield ok("store", f"mounted at {store}")
    else:
        yield blocker(
            "store",
            f"{store} has a {found} filesystem" if found else f"nothing is mounted at {store}",
            "pkernfs mount (on a new range: pkernfs mount --init)",
            "store.not-mounted",
        )
    with contextlib.suppress(PkernfsError):  # the range's own finding
        for other in stores(machine, store)[1:]:
            yield _other_store(machine, other)


def _other_store(machine: Machine, store: Store) -> Finding:
    """A store beyond the first: none has to be there, but guests are looked for at its place."""
    if machine.filesystem_of(store.point) == FSTYPE:
        return ok("store", f"mounted at {store.point}")
    elsewhere = sorted(machine.mounts_of(store.name))
    if elsewhere:
        return blocker(
            "store",
            f"region {store.name} is mounted at {elsewhere[0]}: guests there would not be found",
            f"umount {elsewhere[0]}, then pkernfs mount: it belongs at {store.point}",
            "store.elsewhere",
        )
    return note(
        "store",
        f"nothing is mounted at {store.point}",
        "pkernfs mount (on a new range: pkernfs mount --init)",
    )


def _kexec(machine: Machine) -> Iterator[Finding]:
    topic = "kexec"
    if machine.read("sys/kernel/kexec_loaded") is None:
        yield blocker(
            topic, "the running kernel has no kexec", "run one with CONFIG_KEXEC_FILE", "kexec.none"
        )
    elif machine.read("proc/sys/kernel/kexec_load_disabled") == "1":
        yield blocker(
            topic,
            "loading a kernel is switched off until the next boot",
            "remove kernel.kexec_load_disabled=1 from sysctl.d, and reboot",
            "kexec.disabled",
        )
    elif kexec.is_loaded(machine):
        yield note(topic, "a kernel is loaded already; an update replaces it")
    else:
        yield ok(topic, "kernels can be loaded")
    if os.geteuid() != 0:
        yield blocker("root", "only root can update the kernel", "sudo pkernfs ...", "root")


def _signatures(machine: Machine, kernel: Kernel | None) -> Iterator[Finding]:
    config = machine.read(f"boot/config-{machine.kernel}") or ""
    forced = "CONFIG_KEXEC_SIG_FORCE=y" in config.splitlines()
    lockdown = _lockdown(machine)
    if not forced and lockdown == "none":
        yield ok("signatures", "unsigned kernels are taken too")
        return
    why = "the kernel's configuration" if forced else f"lockdown ({lockdown})"
    which = kernel.image if kernel is not None else "the next kernel"
    if kernel is not None and kernel.image.exists() and not kernels.is_signed(kernel.image):
        yield blocker(
            "signatures",
            f"{why} asks for a signed kernel, and {which} is not signed",
            "install a signed one (Debian: linux-image-amd64, not -unsigned)",
            "kernel.unsigned",
            overridable=True,
        )
    else:
        yield note("signatures", f"{why} asks for a signed kernel", f"{which} must be trusted")


def _next_kernel(machine: Machine, kernel: Kernel | None) -> Iterator[Finding]:
    topic = "next kernel"
    if kernel is None:
        try:
            kernel = kernels.default_target(machine)
        except kernels.NothingToDoError as error:
            yield ok(topic, error.what)
            return
        except PkernfsError as error:
            yield note(topic, error.what, error.hint)
            return
    if kernel.initrd is None:
        yield note(topic, f"{kernel.release} has no initrd", "name one: --initrd FILE")
    elif kernels.is_rebuilt(machine, kernel):
        yield ok(topic, f"{kernel.release}, {kernel.initrd.name}: another build of the running one")
    else:
        yield ok(topic, f"{kernel.release}, {kernel.initrd.name}")


def _memory(machine: Machine, kernel: Kernel | None) -> Iterator[Finding]:
    """kexec_file_load(2) reads both files, and copies them to where they are started from."""
    topic = "memory"
    if kernel is None:
        return
    try:
        files = [path.stat().st_size for path in (kernel.image, kernel.initrd) if path]
    except OSError:  # said when the kernel is chosen
        return
    needed = 2 * sum(files) + _MEMORY_MARGIN
    match = re.search(r"^MemAvailable: *(\d+) kB", machine.read("proc/meminfo") or "", re.M)
    if match is None:
        return
    free = int(match[1]) << 10
    if free < needed:
        yield blocker(
            topic,
            f"{free >> 20} MiB are free, loading the next kernel may take {needed >> 20} MiB",
            "stop something that is not a guest of the store",
            "memory.low",
            overridable=True,
        )
    else:
        yield ok(topic, f"{needed >> 20} MiB for the next kernel, {free >> 20} MiB are free")


def _attended(machine: Machine) -> Iterator[Finding]:
    topic = "boot"
    waits = attended.waits_for(machine)
    if not waits:
        yield ok(topic, "nothing is known that the next boot waits for a person with")
        return
    yield blocker(
        topic,
        f"the next kernel's boot waits for a person with {' and '.join(waits)}: "
        "the guests stand still until then",
        "have it unlocked by a key in the initrd, a TPM or clevis; or be there, and"
        " --watchdog 0 so that it does not go back meanwhile",
        "boot.attended",
        overridable=True,
    )


def examine(machine: Machine, store: Path, kernel: Kernel | None) -> list[Finding]:
    """Answer every question; nothing is changed.

    :param store: mount point of the store.
    :param kernel: the next kernel, if it is known.
    """
    return [
        *_range(machine),
        *_encryption(machine),
        *_module(machine, kernel),
        *_mount(machine, store),
        *_next_kernel(machine, kernel),
        *_kexec(machine),
        *_signatures(machine, kernel),
        *_memory(machine, kernel),
        *_attended(machine),
    ]


def default_kernel(machine: Machine) -> Kernel | None:
    """The kernel that an update would go to; None when there is none."""
    try:
        return kernels.default_target(machine)
    except PkernfsError:
        return None
