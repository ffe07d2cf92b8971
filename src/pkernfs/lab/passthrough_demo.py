# SPDX-License-Identifier: GPL-2.0-only
"""The demonstration with a passed-through card: what the guest itself counts."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from pkernfs.lab import demo, guest, passthrough
from pkernfs.lab.frames import Wire
from pkernfs.lab.machine import Machine
from pkernfs.lab.passthrough import Card, CardReport, Proof
from pkernfs.lab.paths import build_root
from pkernfs.lab.progress import say, step

_CARD, _PLAIN = "card", "plain"


def run(kernel: str, target: str, ram: str, output: Path | None = None) -> bool:
    """A guest with a card and one without, through an update; prints the table.

    :param kernel: name of the kernel that the host starts with.
    :param target: name of the kernel that replaces it.
    :param ram: memory of each guest.
    :param output: where the report goes, ``build/demo/passthrough.json`` by default.
    :returns: whether both survived, and the card's driver noticed nothing.
    :raises PkernfsError: a step failed.
    """
    output = output or build_root() / "demo" / "passthrough.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pkernfs-")))
        card = Card(Wire(place), passthrough.free_port())
        host = stack.enter_context(Machine(card.host(kernel)))
        say(f"host on {host.hello.kernel} after {host.boot_seconds:.1f} s, logs in {host.logs}")
        with step("a guest with a passed-through card and one without started"):
            plain = guest.start(host, guest.GuestConfig(name=_PLAIN, ram=ram, port=1))
            witness = passthrough.start_guest(host, _CARD, ram=ram)
            plain.wait_ready()
        proof = Proof(card, place)
        with step("a frame every 20 ms and a TCP connection to the guest, from now on"):
            stack.enter_context(proof.traffic(witness))
        version = host.stack.host.kernel(target)
        arguments = ["--kernel", f"/boot/vmlinuz-{version}"]
        evidence = demo.prove_update(host, {_CARD: witness, _PLAIN: plain}, arguments)
        with step("frames and bytes counted"):
            entry = proof.finish(host, _CARD)
        table = host.run(["pkernfs", "report"]).check().stdout
        report = demo.merge(demo.report_of(host), evidence)
    report["devices"] = [entry.to_json()]
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(table)
    print(demo.render({**report, "devices": []}))
    print(render(entry))
    print(f"\nreport: {output}")
    return not entry.problems and all(vm["survived"] for vm in report["vms"])


def render(entry: CardReport) -> str:
    """What the guest says of its card, as plain text."""
    vectors = ", ".join(f"{count} of {name}" for name, count in entry.interrupts.items())
    lines = [
        f"{entry.model} {entry.bdf} of guest {entry.guest}:"
        f" {'its driver noticed nothing' if not entry.problems else 'NOTICED'}",
        f"  frames   {entry.frames_sent} sent, {entry.frames_received} received by the guest"
        f" in order, {entry.frames_received_without_kernel} of them sent while no kernel ran",
        f"  tcp      one connection, {entry.tcp_bytes} bytes there and back",
        f"  driver   {len(entry.log)} lines in the guest's log, interrupts since: {vectors}",
        f"  faults   {entry.faults}",
    ]
    return "\n".join([*lines, *(f"  problem  {text}" for text in entry.problems)])
