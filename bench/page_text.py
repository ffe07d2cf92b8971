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
are ratios.** The machine did other things as well, so that the time of the same run differs by
factors. Therefore each number is given twice. *Time* is what passed. *Work* is the processor time
that the emulation of the host used meanwhile, which other programs disturb little; ratios are
those of work. Numbers are medians of {rounds} round(s), with the lowest and the highest in
brackets. Run of {when}.
"""

ABOUT = {
    **{peer.name: peer.about for peer in (Bare, Pkernfs, Fsdax, SaveToFile, BareLuo, Luo)},
    "phases": (
        "*save*: from the guest's last tick until the old kernel says that it starts the new one;"
        " *leave*: until the new kernel's first line (it is checked and unpacked in between);"
        " *kernel*: until its first program; *user space*: until the restore begins, for all peers"
        " at the same place of the host's start; *restore*: until the guest's next tick."
    ),
    "guests": (
        "Guests of 32 MiB, all paused, saved and resumed by one `pkernfs update`, on one processor;"
        " until the last of them runs."
    ),
    "device": (
        "A network card assigned by VFIO gets a numbered frame every 5 ms. The same program drives"
        " it for both; with kexec alone it starts the card anew in the next kernel, which is what"
        " is left to the peers. Times are those that passed."
    ),
    "memory": (
        "A file of 1 GiB is allocated (`fallocate`), mapped, and one byte of each page is written."
        " The last columns are what the kernel keeps beside that GiB, by its own counters."
    ),
    "store": (
        "What is not in a file's data is metadata; also the room for more files that was taken"
        " already counts."
    ),
    "files": "Small programs in the host; the same one for each filesystem.",
    "metadata head": "files, one after the other",
    "sequential head": "128 MiB, 1 MiB at a time",
}

#: Why a peer is ahead of pkernfs, as far as it was found. Shown only where it is.
REASONS: dict[tuple[str, str], str] = {}

TAIL = """
## What the comparison leaves to the peers

Each is run at its best: the next kernel is loaded before the guest is stopped, the program that
saves it is up and connected, the next kernel's restore is a shell script that starts QEMU at
once. They check nothing, and roll nothing back. pkernfs is run by its own command line, with its
checks, its report and its interpreter. The emulated disk is memory, which flatters whoever
writes to it.
"""
