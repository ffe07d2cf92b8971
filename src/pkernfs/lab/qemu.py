# SPDX-License-Identifier: GPL-2.0-only
"""The command line of a virtual host's QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pkernfs.lab import hardware, stamps

if TYPE_CHECKING:
    from pkernfs.lab.machine import HostConfig

#: IOMMUs by name, as ``HostConfig.iommu`` and ``lab run --iommu`` have them.
IOMMUS = {
    "vtd": "intel-iommu,intremap=on",
    "vtd-scalable": "intel-iommu,intremap=on,scalable-mode=on,fsts=on",
    "vtd-snoop": "intel-iommu,intremap=on,snoop-control=on",
    "vtd-ats": "intel-iommu,intremap=on,device-iotlb=on",
    "amd": "amd-iommu,intremap=on,dma-remap=on",
}
#: Serial ports of the host beyond its console: ttyS1, ttyS2, ttyS3.
SERIALS = ("ttyS1", "ttyS2", "ttyS3")
LINES = ("console", "agent", *SERIALS)
AGENT_PORT = "pkernfs.agent"

#: What a host with units starts. An installed one has them enabled in /etc, which in the lab
#: does not outlive a kernel.
_UNITS = ("pkernfs.target", "mnt-scratch.mount")

#: 1 GiB pages so that the large mappings of guest RAM are exercised; rdrand so that nobody
#: waits for entropy. qemu64 by itself has SVM.
_CPU = "qemu64,+pdpe1gb,+rdrand"
#: AMD's virtualisation is what QEMU emulates (SVM with nested paging).
_WITH_KVM, _WITHOUT_KVM = ",+svm,+npt", ",-svm"
#: Physical addresses of that model have 40 bits; a host with a TiB of RAM needs more.
_ADDRESS_LIMIT = 1 << 40
_MORE_BITS = ",phys-bits=46"
#: And the emulated IOMMU reads its own tables and queues with 39 bits, unless told so.
_IOMMU_LIMIT = 1 << 39
_MORE_IOMMU_BITS = ",aw-bits=48"
#: AMD's processors have a hole there (AMD_HT_START in hw/i386/pc.c): from 7.1 on QEMU moves all
#: RAM above 4 GiB to 1 TiB when it would reach into it. The last machine before does not.
_HOLE = 0xFD_0000_0000
_WITHOUT_HOLE = "pc-q35-7.0"


def ram_file(first: Path, node: int) -> Path:
    """The file that backs a NUMA node's RAM.

    :param first: that of the first node.
    """
    return first.with_name(f"{first.name}{node}") if node else first


@dataclass(frozen=True)
class Disk:
    """An installed host's own disk.

    :ivar keep: what the host writes is still there when its QEMU has ended; otherwise the
        file stays as it is.
    :ivar start: kernel, initrd and boot line to start without the boot loader on it.
    """

    file: Path
    keep: bool = False
    start: tuple[Path, Path, str] | None = None


@dataclass(frozen=True)
class Plan:
    """All that goes into the command line.

    :ivar program: the emulator, and what always goes with it.
    :ivar lines: inherited socket descriptors by name, see LINES.
    :ivar disk: what an installed host boots from, in the place of all others.
    """

    config: HostConfig
    program: tuple[str, ...]
    kernel: Path
    initrd: Path
    base: Path
    layer: Path
    scratch: Path
    ram: Path
    share: Path
    lines: Mapping[str, int]
    disk: Disk | None = None

    def command(self) -> list[str]:
        """The command, program first."""
        config = self.config
        return [
            *self.program,
            *("-nodefaults", "-no-user-config"),
            *("-display", "none", "-vga", "none", "-nic", "none"),
            *("-machine", self._machine() + ("" if config.layout.nodes else ",memory-backend=ram")),
            *("-accel", "tcg,thread=multi"),
            *("-cpu", self._cpu()),
            *("-smp", self._processors()),
            *("-m", f"{config.layout.ram >> 20}M"),
            *self._ram(),
            # Before any device that it translates for.
            *("-device", self._iommu()),
            *self._serial_lines(),
            *(self._installed(self.disk) if self.disk else self._lab()),
            *hardware.arguments(config.devices, self.scratch.parent),
            *config.extra,
        ]

    def _lab(self) -> list[str]:
        """What a host of the lab's own boots from."""
        return [
            "-no-reboot",
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            *("-append", self.boot_line()),
            *self._disk("base", self.base, readonly=True),
            *self._disk("layer", self.layer, readonly=True),
            *self._disk("scratch", self.scratch, readonly=False),
            *("-fsdev", f"local,id=share,path={self.share},security_model=none,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
        ]

    def _installed(self, disk: Disk) -> list[str]:
        """What an installed host boots from: its disk, again and again, by its boot loader."""
        # unsafe: who dies with the lab needs no flush; a snapshot is a file without a name.
        drive = f"if=none,id=disk,format=raw,file={disk.file},cache=unsafe"
        drive += "" if disk.keep else ",snapshot=on"
        words = ["-drive", drive, "-device", "virtio-blk-pci,drive=disk,serial=disk"]
        if disk.start is None:
            return words
        kernel, initrd, line = disk.start
        return [*words, "-kernel", str(kernel), "-initrd", str(initrd), "-append", line]

    def boot_line(self) -> str:
        """The first kernel's boot line."""
        config = self.config
        words = ["console=ttyS0", "loglevel=7", "panic=-1", "intel_iommu=on", "no_timer_check"]
        # Emulation on a busy machine stands still for seconds at a time.
        words += ["rcupdate.rcu_cpu_stall_timeout=120", "tsc=reliable", *stamps.words()]
        words += config.layout.boot_words
        if config.systemd or config.units:
            words.append("pkernfs_lab=systemd")
        if config.units:
            words += ["pkernfs_lab_units=yes", *(f"systemd.wants={unit}" for unit in _UNITS)]
        if not config.store:
            words.append("pkernfs_lab_store=no")
        return " ".join((*words, *config.append))

    def _processors(self) -> str:
        # The parts of one processor share a node; the kernel warns where they don't.
        return f"{self.config.processors}" + (",cores=1" if self.config.layout.nodes else "")

    def _cpu(self) -> str:
        virtual = _WITH_KVM if self.config.kvm else _WITHOUT_KVM
        return _CPU + virtual + (_MORE_BITS if self._ram_end() > _ADDRESS_LIMIT else "")

    def _machine(self) -> str:
        return _WITHOUT_HOLE if self._ram_end() > _HOLE else "q35"

    def _iommu(self) -> str:
        name = self.config.iommu
        intel = name.startswith("vtd")
        return IOMMUS[name] + (_MORE_IOMMU_BITS if intel and self._ram_end() > _IOMMU_LIMIT else "")

    def _ram_end(self) -> int:
        """No address of RAM is higher: some below 4 GiB are none."""
        return self.config.layout.ram + (4 << 30)

    def _ram(self) -> list[str]:
        """One object for all of it, or one for each NUMA node."""
        layout = self.config.layout
        words = []
        for node, size in enumerate(layout.nodes or (layout.ram,)):
            name = f"ram{node or ''}"
            backend = f"memory-backend-file,id={name},size={size >> 20}M,share=on"
            words += ["-object", f"{backend},mem-path={ram_file(self.ram, node)}"]
        nodes = len(layout.nodes)
        for node in range(nodes):
            # One processor after the other; a node for which none is left has memory only.
            cpus = "".join(f",cpus={cpu}" for cpu in range(node, self.config.processors, nodes))
            words += ["-numa", f"node,nodeid={node},memdev=ram{node or ''}{cpus}"]
        return words

    def _serial_lines(self) -> list[str]:
        words = []
        for name in LINES:
            words += ["-chardev", f"socket,id={name},fd={self.lines[name]}"]
        for name in ("console", *SERIALS):
            words += ["-serial", f"chardev:{name}"]
        words += ["-device", "virtio-serial-pci,max_ports=2"]
        words += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
        return words

    def _disk(self, name: str, file: Path, *, readonly: bool) -> list[str]:
        # unsafe: no flush reaches this machine's disk; who dies with the lab needs none.
        drive = f"if=none,id={name},format=raw,file={file},cache=unsafe"
        drive += ",read-only=on" if readonly else ""
        return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"]
