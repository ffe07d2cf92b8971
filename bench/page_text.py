# SPDX-License-Identifier: GPL-2.0-only
"""The words of ``docs/benchmarks.md``. No figure that was measured stands here."""

from __future__ import annotations

from bench.peers.bare import Bare
from bench.peers.fsdax import Fsdax
from bench.peers.luo import BareLuo, Luo
from bench.peers.pkernfs import Pkernfs
from bench.peers.save_to_file import SaveToFile

HEAD = """
# Side by side with what people use today

<!-- Written by make bench from benchmarks.json. Don't edit: bench/page.py and page_text.py. -->

`make bench` boots virtual hosts and does the same work in them with pkernfs and with each of its
peers, who take turns within one host. `BENCH=quick make bench` is one small round.

**All of it ran in software emulation, so no time here says anything about hardware: what counts
are ratios.** Several hosts ran at a time, and what else a machine does can make the time of the
same run differ by factors. Therefore each number is given twice. *Time* is what passed. *Work* is
the processor time that the emulation of the host used meanwhile, which other programs disturb
little; ratios are those of work. Numbers are medians of {rounds} round(s), with the lowest and the
highest in brackets. Run of {when}.
"""

ABOUT = {
    **{peer.name: peer.about for peer in (Bare, Pkernfs, Fsdax, SaveToFile, BareLuo, Luo)},
    "own floor": (
        "LUO's kernel is a small one, so its floor is lower and its ratio higher than on Debian's"
        " kernel, while the rest of the host's start is the same. Across kernels compare *save and"
        " restore*, which is the peers' own part."
    ),
    "within": (
        "With a guest of {size}, {peer} saves and restores with the least work; the runs of pkernfs"
        " and of {peer} overlap."
    ),
    "close": (
        "The runs of pkernfs and of {peer} overlap, and what pkernfs itself does, save and restore,"
        " is less work; the rest of the host's start is the same for both."
    ),
    "large": (
        "What takes longer with a large guest: when QEMU saves, it has KVM log what the guest"
        " writes, although the memory is left out of what is saved, and with a bitmap that is work"
        " for every 4 KiB page (phase *save* below). A dirty ring takes most of it away; `pkernfs"
        " vm start` asks for one (`-accel kvm,dirty-ring-size=4096`) with 64 GiB and more."
        " And QEMU, when it adds memory of that size, marks every page of it dirty in three bitmaps"
        " of its own (phase *restore*); `pkernfs` has it take them from huge pages"
        " (`GLIBC_TUNABLES`), which takes fewer page faults. pkernfs itself does nothing"
        " that grows with the size of a file."
    ),
    "parts": (
        "The run was made in {parts} parts. Peers of one table took turns in one part, but for LUO"
        " and its floor, and for hugetlbfs with HVO, which have hosts of their own. The version of"
        " pkernfs is that of the first part."
    ),
    "phases": (
        "*save*: from the guest's last tick until the old kernel says that it starts the new one;"
        " *leave*: until the new kernel's first line (it is checked and unpacked in between);"
        " *kernel*: until its first program; *user space*: until the restore begins, for all peers"
        " at the same place of the host's start; *restore*: until the guest's next tick. *leave* is"
        " several times as long now and then, not only for pkernfs: most samples of the"
        " program counter were in the kernel's unpacking then. It goes to a random place; where"
        " programs ran from that memory, the emulator has translated code there, which is taken for"
        " the reason."
    ),
    "guests": (
        "Guests of 32 MiB, all paused, saved and resumed by one `pkernfs update`, on one processor;"
        " until the last of them runs. The first one prints a line 18 times a second, the others"
        " about once. The store has 1 GiB: that is what they have to fit into."
    ),
    "device": (
        "A network card assigned by VFIO gets a numbered frame every 5 ms. The same program drives"
        " it for both; with kexec alone it starts the card anew in the next kernel, which is what"
        " is left to the peers. Times are those that passed. The emulated wire holds frames back"
        " while the card takes none, so few of them get lost; a real one does not wait."
    ),
    "memory": (
        "A file of 1 GiB is allocated (`fallocate`), mapped, and one byte of each page is written."
        " The last columns are what the kernel keeps beside that GiB, by its own counters."
        " With HVO (`vm.hugetlb_optimize_vmemmap`, off unless asked for) a pool of hugetlbfs gives"
        " most of its struct pages back; those rows are of a host of their own."
    ),
    "store": (
        "What is not in a file's data is metadata; also the room for more files that was taken"
        " already counts."
    ),
    "files": "Small programs in the host; the same one for each filesystem.",
    "metadata head": "files, one after the other",
    "sequential head": "128 MiB, 1 MiB at a time",
}

_FROM_POOL = """
Both clear the same memory. hugetlbfs took its pages from the pool, which the setup had filled
before; pkernfs maps each piece of its range into the kernel for the moment of clearing.
"""

#: Why a peer is ahead of pkernfs, as far as it was found. Shown only where it is.
REASONS: dict[tuple[str, str], str] = {
    ("blackout", "fsdax"): """
fsdax is ahead in its own part: its restore is a shell script that starts QEMU at once, while
`pkernfs resume` first starts a Python interpreter, checks the guest's files, and talks to QEMU by
QMP to learn whether the state was loaded. What fsdax pays is in other tables: struct pages for all
of the range, and the first touch of memory.
""",
    ("blackout", "LUO memfd"): """
LUO is ahead in its own part: the restore is a small program that takes the memory back and starts
QEMU at once, while `pkernfs resume` first starts a larger one, checks the guest's files, and talks
to QEMU by QMP. Preserving the memory, which takes longer the more there is, happens before the
guest is stopped and is not in these numbers.
""",
    ("blackout", "save to file"): """
With little memory, copying it takes less than what pkernfs does beside starting QEMU: its
interpreter, its checks, QMP. That turns around with the size.
""",
    ("memory", "hugetlbfs, 2 MiB"): _FROM_POOL,
    ("memory", "hugetlbfs, 2 MiB, HVO"): _FROM_POOL,
    ("memory", "hugetlbfs, 1 GiB, HVO"): _FROM_POOL,
    ("memory", "hugetlbfs, 1 GiB"): """
Both clear the same memory. hugetlbfs had its page set aside at boot, mapped in the kernel for good;
pkernfs maps each piece of its range into the kernel for the moment of clearing.
""",
    ("metadata", "tmpfs"): """
tmpfs changes structures of the running kernel and no more. A change of pkernfs writes a whole slot
with a checksum, and in such an order that the next kernel finds a store that mounts, whenever this
one stops.
""",
    ("sequential", "fsdax"): """
The kernel has all of a pmem device in its linear mapping (which is what the struct pages are for),
and copies from there. pkernfs has nothing mapped: each read and write maps the piece of the range
that it copies, and unmaps it again (`pkernfs_map()` in kernel/fs). That keeps stray stores of the
kernel away from guests' memory, and costs an entry and a flush of the TLB each time.
""",
    ("sequential", "tmpfs"): """
tmpfs copies to and from pages that the kernel has in its linear mapping. pkernfs has nothing
mapped: each read and write maps the piece of the range that it copies, and unmaps it again.
""",
}

TAIL = """
## What the comparison leaves to the peers

Each is run at its best: the next kernel is loaded before the guest is stopped, the program that
saves it is up and connected, the next kernel's restore is a shell script that starts QEMU at
once. They check nothing, and roll nothing back. pkernfs is run by its own command line, with its
checks, its report and its interpreter. The emulated disk is memory, which flatters whoever
writes to it.
"""
