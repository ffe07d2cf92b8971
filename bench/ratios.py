# SPDX-License-Identifier: GPL-2.0-only
"""How long guests stand still, as multiples of a bare kexec of the same kernel in the same run.

``python -m bench.ratios [--part guests|size] [--cpus N] [--guests N,...] [--rounds N]`` boots a
virtual host and, again and again, starts its next kernel with kexec: bare, until its first user
program, and by ``pkernfs update`` with guests. Each update is compared with the shortest of
the run's bare kexecs (some take twice as long in emulation): by the clock, and by the time
that the emulated processor itself has run, which other work on the machine does not lengthen.
The results go to
``build/bench/ratios-PART.json`` and, with ``--docs``, to ``docs/blackout.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.meter import Meter
from pkernfs.errors import PkernfsError
from pkernfs.lab import demo
from pkernfs.lab.console import Line
from pkernfs.lab.emulator import emulator
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.memory import Layout
from pkernfs.lab.paths import build_root, source_tree
from pkernfs.lab.progress import say
from tests.system import tick

SCHEMA = "pkernfs-ratios/1"
KERNEL = "7.3"
MIB = 1 << 20
GIB = 1 << 30

_TRIES = 3

#: What the old kernel says last (kernel_kexec() in kernel/kexec_core.c), and the first program.
_JUMP = "Starting new kernel"
_FIRST = "lab: first program"

#: Starts the kernel that runs once more, with its own boot line and initrd.
_BARE = """
import sys
sys.path.insert(0, "/usr/lib/pkernfs")
from pathlib import Path
from pkernfs.host import freeze, kexec
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
machine = Machine()
version = machine.kernel
image, initrd = Path(f"/boot/vmlinuz-{version}"), Path(f"/boot/pkernfs-lab-initrd-{version}")
line = machine.boot_line.without("pkernfs_update", "elfcorehdr")
kexec.load(Kernel(version, image, initrd), str(line))
with freeze.frozen_filesystems(machine):
    kexec.jump()
"""

#: ``pkernfs vm start`` with a file of holes for the guest's memory: a store hands its blocks out
#: when they are touched. Nobody has the memory of a guest of 64 GiB to fill here.
_SPARSE = """
import os, sys
sys.path.insert(0, "/usr/lib/pkernfs")
from pkernfs.vmm import guests
def holes(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
guests.allocate_ram = holes
from pkernfs.cli import main
main()
"""


@dataclass(frozen=True)
class Bare:
    """A bare kexec.

    :ivar seconds: from the old kernel's last word to the first user program of the new one.
    :ivar run_s: the same by the emulated processor's own time, see :mod:`bench.meter`.
    """

    seconds: float
    run_s: float


@dataclass(frozen=True)
class Update:
    """An update.

    :ivar blackouts: of each guest, seconds, in the order in which they ran again.
    :ivar runs: of each guest, the blackout by the emulated processor's own time.
    :ivar kernel_s: from the old kernel's last word to the first user program of the new one.
    :ivar kernel_run_s: the same by the emulated processor's own time.
    :ivar phases: name to start and end, seconds since the update began.
    """

    guests: int
    ram_bytes: int
    blackouts: tuple[float, ...]
    runs: tuple[float, ...]
    kernel_s: float
    kernel_run_s: float
    phases: dict[str, tuple[float, float]]


@dataclass
class Results:
    """What was measured, in order."""

    part: str
    cpus: int
    command: str
    steps: list[Bare | Update] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)

    def floor(self) -> tuple[float, float]:
        """The shortest of the bare kexecs: seconds, and the processor's time."""
        bare = [step for step in self.steps if isinstance(step, Bare)]
        return min(it.seconds for it in bare), min(it.run_s for it in bare)

    def to_json(self) -> dict[str, Any]:
        """Everything, and the ratios."""
        floor, floor_run = self.floor()
        ratios = [
            {
                "guests": update.guests,
                "ram_bytes": update.ram_bytes,
                "floor_s": round(floor, 3),
                "longest_s": round(max(update.blackouts), 3),
                "shortest_s": round(min(update.blackouts), 3),
                "ratio": round(max(update.blackouts) / floor, 3),
                "first_ratio": round(min(update.blackouts) / floor, 3),
                "floor_run_s": round(floor_run, 3),
                "longest_run_s": round(max(update.runs), 3),
                "ratio_run": round(max(update.runs) / floor_run, 3),
                "first_ratio_run": round(min(update.runs) / floor_run, 3),
                "kernel_ratio_run": round(update.kernel_run_s / floor_run, 3),
                "rest_ratio_run": round((max(update.runs) - update.kernel_run_s) / floor_run, 3),
                "kernel_s": round(update.kernel_s, 3),
                "outside_kernel": _shares(update),
            }
            for update in self.steps
            if isinstance(update, Update)
        ]
        return {
            "schema": SCHEMA,
            "part": self.part,
            "command": self.command,
            "cpus": self.cpus,
            "versions": self.versions,
            "load_average": self.load,
            "ratios": ratios,
            "steps": [
                {"kind": type(step).__name__.lower(), **dataclasses.asdict(step)}
                for step in self.steps
            ],
        }


def _shares(update: Update) -> dict[str, float]:
    """What the blackout is made of besides the kernel's own start, seconds."""
    parts: dict[str, float] = {}
    for name in ("pause", "save", "hand over", "init", "interpreter", "start", "load state"):
        if name in update.phases:
            start, end = update.phases[name]
            parts[name] = round(end - start, 3)
    return parts


def _between(lines: Sequence[Line], begin: str, end: str) -> tuple[float, float]:
    """When the first line with ``begin`` came, and the first with ``end`` after it."""
    for index, line in enumerate(lines):
        if begin in line.text:
            later = next((it for it in lines[index:] if end in it.text), None)
            if later is not None:
                return line.at, later.at
    raise PkernfsError(f"the console has no {begin!r} followed by {end!r}")


class Bench:
    """One host, and what was measured on it."""

    def __init__(self, host: Machine, results: Results, meter: Meter) -> None:
        self.host = host
        self.results = results
        self._meter = meter

    def bare(self) -> None:
        """A bare kexec."""
        mark = len(self.host.console.lines)
        done = self.host.run(["python3", "-I", "-c", _BARE])
        if done.status is not None:
            raise PkernfsError(f"no kexec: {done.stderr}")
        self.host.wait_reboot()
        begin, end = _between(self.host.console.since(mark), _JUMP, _FIRST)
        step = Bare(end - begin, self._meter.between(begin, end))
        self._add(step, f"bare kexec {step.seconds:.2f} s, {step.run_s:.2f} s of the processor")

    def update(self, guests: int, ram_bytes: int) -> None:
        """An update with all guests that run."""
        mark = len(self.host.console.lines)
        demo.update(self.host, ["--kernel", f"/boot/vmlinuz-{self.host.version}"])
        begin, end = _between(self.host.console.since(mark), _JUMP, _FIRST)
        report = demo.report_of(self.host)
        wrong = [vm["name"] for vm in report["vms"] if not vm["survived"]]
        if wrong or len(report["vms"]) != guests:
            raise PkernfsError(f"not all guests survived: {wrong}")
        blackouts = tuple(sorted(float(vm["blackout_s"]) for vm in report["vms"]))
        phases = {it["name"]: (it["start_s"], it["end_s"]) for it in report["phases"]}
        # The report's clock and the lab's, by the moment of the jump: some milliseconds apart.
        zero = begin - phases["kernel"][0]
        runs = sorted(
            self._meter.between(zero + vm["stopped_s"], zero + vm["running_s"])
            for vm in report["vms"]
        )
        kernel = self._meter.between(begin, end)
        step = Update(guests, ram_bytes, blackouts, tuple(runs), end - begin, kernel, phases)
        text = f"{guests} guest(s): {blackouts[0]:.2f} to {blackouts[-1]:.2f} s"
        self._add(step, f"{text}, {runs[0]:.2f} to {runs[-1]:.2f} s of the processor")

    def _add(self, step: Bare | Update, text: str) -> None:
        self.results.steps.append(step)
        self.results.load.append(round(os.getloadavg()[0], 2))
        say(text)


def _start_sparse(host: Machine, name: str, size: int) -> tick.Tick:
    (host.share / "sparse.py").write_text(_SPARSE)
    return tick.start(host, name, f"{size // MIB}M", program=("python3", "/mnt/share/sparse.py"))


def _stop(host: Machine, *guests: tick.Tick) -> None:
    for guest in guests:
        guest.counts_on()
        host.run(["pkernfs", "vm", "stop", guest.name, "--force", "--delete"]).check()


def measure_guests(bench: Bench, counts: Sequence[int], rounds: int) -> None:
    """So many guests at a time, with 32 MiB each."""
    bench.bare()
    for _ in range(rounds):
        for count in counts:
            guests = [tick.start(bench.host, f"guest-{number}") for number in range(count)]
            bench.update(count, 32 * MIB)
            _stop(bench.host, *guests)
            bench.bare()


def measure_size(bench: Bench, rounds: int) -> None:
    """One guest, small and large in turn."""
    bench.bare()
    for _ in range(rounds):
        for size in (256 * MIB, 64 * GIB):
            guest = _start_sparse(bench.host, "guest", size)
            bench.update(1, size)
            _stop(bench.host, guest)
            bench.bare()


def _versions(host: Machine) -> dict[str, str]:
    qemu = host.run(["qemu-system-x86_64", "--version"]).check().stdout
    return {
        "kernel": host.hello.kernel,
        "host's QEMU": qemu.splitlines()[0],
        "emulator": emulator(host.stack.host).version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.ratios", description=__doc__)
    parser.add_argument("--part", choices=("guests", "size"), default="guests")
    parser.add_argument("--cpus", type=int, default=1, help="processors of the virtual host")
    parser.add_argument("--guests", default="1,12", help="how many guests, one after the other")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help="write docs/blackout.md, too")
    parser.add_argument("--page", action="store_true", help="write only that, from the last run")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> Results:
    """A whole run; with several processors the emulation may fail (see HostConfig.kvm)."""
    for _ in range(_TRIES - 1):
        try:
            return _try(arguments)
        except PkernfsError as error:
            say(f"from the beginning: {error.what[-300:]}")
    return _try(arguments)


def _try(arguments: argparse.Namespace) -> Results:
    config = HostConfig(kernel=KERNEL, kvm=True, cpus=arguments.cpus)
    if arguments.part == "size":
        layout = Layout.of(region=66 * GIB, ram=70 * GIB)
        config = dataclasses.replace(config, layout=layout, used=6 * GIB)
    command = " ".join(["python -m bench.ratios", *sys.argv[1:]])
    results = Results(arguments.part, arguments.cpus, command)
    with Machine(config) as host, Meter.of_processor(host.pid) as meter:
        results.versions = _versions(host)
        bench = Bench(host, results, meter)
        if arguments.part == "size":
            measure_size(bench, arguments.rounds)
        else:
            counts = [int(count) for count in arguments.guests.split(",")]
            measure_guests(bench, counts, arguments.rounds)
    return results


def main() -> int:
    """Measure, and write the results."""
    arguments = _arguments()
    home = build_root() / "bench"
    home.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        results = _measure(arguments)
        output = home / f"ratios-{arguments.part}.json"
        output.write_text(json.dumps(results.to_json(), indent=1) + "\n")
        for ratio in results.to_json()["ratios"]:
            print(json.dumps(ratio))
        say(f"written to {output}")
    if arguments.docs or arguments.page:
        from bench.ratios_page import write

        write(home, source_tree() / "docs" / "blackout.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
