# SPDX-License-Identifier: GPL-2.0-only
"""``python -m bench.soak``: update after update between two kernels (``make soak N=100``).

Two guests, a network card under DMA, a tree of files: all have to be the same after each round,
and what the host and the store use must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.soak_report import Sample, problems, table, to_json
from pkernfs.errors import PkernfsError
from pkernfs.lab import demo, devices, guest, tree
from pkernfs.lab.frames import Wire
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.paths import build_root
from pkernfs.lab.progress import say
from pkernfs.lab.witness import Witness

_KERNELS = ("6.12", "7.3")
_GUESTS = 2
_RAM = "128M"
_RECORDS = "/mnt/pkernfs/updates"
#: What the host has at rest: without what it keeps only as long as nobody needs the memory.
_MEASURE = f"""
import json, os, shutil
os.sync()
open("/proc/sys/vm/drop_caches", "w").write("3")
lines = (line.split(":") for line in open("/proc/meminfo"))
memory = {{name: int(value.split()[0]) << 10 for name, value in lines}}
def taken():
    found = os.statvfs("/mnt/pkernfs")
    return (found.f_blocks - found.f_bfree) * found.f_frsize
before = taken()
shutil.rmtree("{_RECORDS}", ignore_errors=True)
print(json.dumps({{"available": memory["MemAvailable"], "slab": memory["Slab"],
    "unreclaimable": memory["SUnreclaim"], "used": taken(), "records": before - taken()}}))
"""


@dataclass(frozen=True)
class _Soak:
    """A host in the long run, and what it was like in the beginning."""

    host: Machine
    witnesses: dict[str, Witness]
    device: devices.Proof
    files: list[str]

    def round(self, number: int) -> Sample:
        """One update, and what the host is like after it.

        :raises PkernfsError: something did not survive it.
        """
        host = self.host
        kernel = _KERNELS[number % 2]
        image = f"/boot/vmlinuz-{host.stack.host.kernel(kernel)}"
        with self.device.frames(host) as source:
            evidence = demo.prove_update(host, self.witnesses, ["--kernel", image])
            _, wrong = self.device.finish(host, source)
        wrong += [f"{name}: {text}" for name, own in evidence.items() for text in own.problems()]
        if tree.describe(host) != self.files:
            wrong.append("the tree of files differs")
        if not host.hello.kernel.startswith(kernel):
            wrong.append(f"{host.hello.kernel} runs")
        if wrong:
            raise PkernfsError(f"round {number}: {'; '.join(wrong)}", f"logs: {host.logs}")
        host.run(["pkernfs", "check"]).check()
        vms = demo.report_of(host)["vms"]
        return self.sample(number, max(float(vm["blackout_s"]) for vm in vms))

    def sample(self, number: int, blackout_s: float = 0.0) -> Sample:
        """The host at rest. What belongs to one round only is removed, or it would add up."""
        devices.forget_frames(self.host)
        text = self.host.run(["python3", "-I", "-S", "-c", _MEASURE]).check().stdout
        kernel = self.host.hello.kernel
        short = next(name for name in _KERNELS if kernel.startswith(f"{name}."))
        return Sample(number, short, **json.loads(text), blackout_s=blackout_s)


@contextlib.contextmanager
def _soaked(place: Path) -> Iterator[_Soak]:
    device = devices.Proof(Wire(place), place / "frames")
    extra = devices.nic_arguments(device.wire)
    config = HostConfig(kernel=_KERNELS[0], kvm=True, extra=extra, allowed=devices.EXPECTED)
    with Machine(config) as host:
        say(f"host on {host.hello.kernel}, logs in {host.logs}")
        tree.make(host)
        witnesses = {}
        for port in range(_GUESTS):
            name = f"witness-{port + 1}"
            witnesses[name] = guest.start(host, guest.GuestConfig(name=name, ram=_RAM, port=port))
        for witness in witnesses.values():
            witness.wait_ready()
        yield _Soak(host, witnesses, device, tree.describe(host))


def run(rounds: int, output: Path) -> list[str]:
    """The long run; what was noted is in ``output`` after each round.

    :param rounds: how many updates.
    :param output: a file; beside it the table.
    :returns: what leaks or drifts, in words.
    :raises PkernfsError: something did not survive an update.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="pkernfs-") as place, _soaked(Path(place)) as soak:
        for number in range(rounds + 1):
            begun = time.monotonic()
            samples.append(soak.round(number) if number else soak.sample(number))
            output.write_text(json.dumps(to_json(samples), indent=1) + "\n")
            output.with_suffix(".txt").write_text(table(samples) + "\n")
            say(f"round {number} of {rounds}: {time.monotonic() - begun:.0f} s")
    return problems(samples)


def main() -> int:
    """Run it; 1 when something did not survive, leaks, or drifts."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="updates")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least one round")
    output = build_root() / "soak" / "soak.json"
    try:
        found = run(arguments.rounds, output)
    except PkernfsError as error:
        print(f"error: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    print(output.with_suffix(".txt").read_text(), end="")
    for text in found:
        print(f"problem: {text}")
    print(f"all of it: {output}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
