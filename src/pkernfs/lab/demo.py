# SPDX-License-Identifier: GPL-2.0-only
"""The demonstration: a guest outlives its host's kernel, and proves that it did."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkernfs.errors import PkernfsError
from pkernfs.lab import devices, guest
from pkernfs.lab.frames import Wire
from pkernfs.lab.machine import HostConfig, Machine
from pkernfs.lab.paths import build_root
from pkernfs.lab.progress import say, step
from pkernfs.lab.witness import BEAT_S, Proof, Witness, longest_silence
from pkernfs.update.render import html
from pkernfs.update.render.view import ReportView
from pkernfs.update.report import REPORT_SCHEMA

_DISK_MIB = 8
_AFTER_BEATS = 8


@dataclass(frozen=True)
class Evidence:
    """What a witness said before and after the update.

    :ivar disk_before: digest of what it wrote to its disk.
    :ivar disk_after: digest of what it read back; empty when that failed.
    :ivar silence: longest time without a heartbeat around the update, seconds.
    """

    before: Proof
    after: Proof
    disk_before: str
    disk_after: str
    silence: float

    def problems(self) -> list[str]:
        """Why this is not the same guest with the same memory; empty when it is."""
        pairs = {
            "its kernel started anew": self.before.boot == self.after.boot,
            "it is another process": self.before.pid == self.after.pid,
            "its memory differs": self.before.digest == self.after.digest,
            "it counts from anew": self.before.count < self.after.count,
            "its disk differs": self.disk_before == self.disk_after,
        }
        return [text for text, good in pairs.items() if not good]


def update(host: Machine, arguments: Sequence[str] = ()) -> str:
    """``pkernfs update`` in the host, to the end of ``pkernfs resume`` in its next kernel.

    :returns: what it printed, as far as that left the host before its kernel did.
    :raises PkernfsError: it did not come to that, or resume failed.
    """
    result = host.run(["pkernfs", "update", *arguments])
    if result.status is not None:
        result.check()
        raise PkernfsError("pkernfs update came back without an error")
    hello = host.wait_reboot()
    if hello.resume != 0:
        log = host.sh("cat /run/pkernfs-lab/resume.log").stdout.strip()
        raise PkernfsError(f"pkernfs resume failed with status {hello.resume}: {log[-2000:]}")
    return result.stdout


def report_of(host: Machine) -> dict[str, Any]:
    """The host's own report of its last update.

    :raises PkernfsError: there is none.
    """
    value = json.loads(host.run(["pkernfs", "report", "--json"]).check().stdout)
    if not isinstance(value, dict) or value.get("schema") != REPORT_SCHEMA:
        raise PkernfsError(f"the host's report is not a {REPORT_SCHEMA}")
    return value


def prove_update(
    host: Machine, witnesses: dict[str, Witness], arguments: Sequence[str] = ()
) -> dict[str, Evidence]:
    """Take evidence from every witness, update the host, take it again.

    :param witnesses: by the name of the guest; they are ready.
    :param arguments: for ``pkernfs update``.
    :raises PkernfsError: a step failed.
    """
    with step("disks written, digests taken"):
        disks = {
            name: str(witness.ask(f"disk-write {_DISK_MIB} {name}")["digest"])
            for name, witness in witnesses.items()
        }
        before = {name: witness.prove() for name, witness in witnesses.items()}
        marks = {name: len(witness.beats()) - 1 for name, witness in witnesses.items()}
    with step("update, until the guests run again"):
        update(host, arguments)
    with step("digests taken from memory again, disks read back"):
        evidence = {}
        for name, witness in witnesses.items():
            beats = witness.wait_beats(_AFTER_BEATS)
            silence = longest_silence(beats[marks[name] :])
            evidence[name] = Evidence(
                before[name], witness.prove(), disks[name], _verify(witness, name), silence
            )
    return evidence


def _verify(witness: Witness, name: str) -> str:
    try:
        return str(witness.ask(f"disk-verify {_DISK_MIB} {name}")["digest"])
    except PkernfsError as error:
        say(error.what)
        return ""


def merge(report: dict[str, Any], evidence: dict[str, Evidence]) -> dict[str, Any]:
    """The host's report with what the witnesses and the lab's clock say."""
    merged = []
    for vm in report["vms"]:
        found = evidence[vm["name"]]
        problems = found.problems() + ([vm["error"]] if not vm["survived"] else [])
        own = {
            "survived": not problems,
            "problems": problems,
            "digest_before": found.before.digest,
            "digest_after": found.after.digest,
            "digest_bytes": found.before.bytes,
            "counter_before": found.before.count,
            "counter_after": found.after.count,
            "boot_id_before": found.before.boot,
            "boot_id_after": found.after.boot,
            "pid_before": found.before.pid,
            "pid_after": found.after.pid,
            "disk_digest_before": found.disk_before,
            "disk_digest_after": found.disk_after,
            "blackout_outside_s": round(found.silence, 3),
            "blackout_outside_exact_to_s": 2 * BEAT_S,
        }
        merged.append({**vm, **own})
    missing = [name for name in evidence if name not in {vm["name"] for vm in merged}]
    if missing:
        raise PkernfsError(f"the host's report does not have {', '.join(missing)}")
    return {**report, "vms": merged}


def run(kernel: str, target: str, guests: int, ram: str, output: Path | None = None) -> bool:
    """The whole demonstration; prints the table.

    :param kernel: name of the kernel that the host starts with.
    :param target: name of the kernel that replaces it.
    :param guests: how many, up to three.
    :param ram: memory of each.
    :param output: where the report goes, ``build/demo/report.json`` by default.
    :returns: whether every guest survived.
    :raises PkernfsError: a step failed.
    """
    output = output or build_root() / "demo" / "report.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pkernfs-")))
        device = devices.Proof(Wire(place), place / "frames")
        extra = (*devices.nic_arguments(device.wire), *devices.bystander_arguments())
        allowed = devices.EXPECTED
        plan = HostConfig(kernel=kernel, kvm=True, extra=extra, allowed=allowed)
        host = stack.enter_context(Machine(plan))
        say(f"host on {host.hello.kernel} after {host.boot_seconds:.1f} s, logs in {host.logs}")
        witnesses = {}
        with step(f"{guests} guest(s) of {ram} started, memory filled with a pattern"):
            for port in range(guests):
                name = f"witness-{port + 1}"
                config = guest.GuestConfig(name=name, ram=ram, port=port)
                witnesses[name] = guest.start(host, config)
            for witness in witnesses.values():
                witness.wait_ready()
        with step("network device driven by VFIO, preserved, a frame every 5 ms from now on"):
            devices.start_edu(host, devices.BYSTANDER)
            source = stack.enter_context(device.frames(host))
        version = host.stack.host.kernel(target)
        evidence = prove_update(host, witnesses, ["--kernel", f"/boot/vmlinuz-{version}"])
        with step("network device adopted under load, its frames counted"):
            entry, problems = device.finish(host, source)
            bystander = devices.bystander_report(host)
        table = host.run(["pkernfs", "report"]).check().stdout
        report = merge(report_of(host), evidence)
        own = {device["bdf"]: device for device in report.get("devices", [])}
        seen = {**entry.to_json(), "problems": problems}
        report["devices"] = [{**own.get(entry.bdf, {}), **seen}]
        report["cut_off"] = [bystander]
        output.write_text(json.dumps(report, indent=1) + "\n")
    print(table)
    print(render(report))
    print(f"\nreport: {output}\nas a page: {_page(report, output)}")
    whole = not any(entry["problems"] for entry in report["devices"])
    whole &= not any(entry["dma_landed"] for entry in report["cut_off"])
    return whole and bool(report["vms"]) and all(vm["survived"] for vm in report["vms"])


def _page(report: dict[str, Any], output: Path) -> Path:
    """The report as a page, beside it."""
    page = output.with_suffix(".html")
    page.write_text(html.render(ReportView.of(report)), encoding="utf-8")
    return page


def render(report: dict[str, Any]) -> str:
    """What the witnesses prove, as plain text."""
    lines = []
    for vm in report["vms"]:
        same = "the same" if vm["digest_before"] == vm["digest_after"] else "DIFFERENT"
        disk = "the same" if vm["disk_digest_before"] == vm["disk_digest_after"] else "DIFFERENT"
        lines += [
            f"{vm['name']}: {'survived' if vm['survived'] else 'DID NOT SURVIVE'}",
            f"  memory   {vm['digest_bytes'] >> 20} MiB, digest {vm['digest_after']}, {same}",
            f"  process  {vm['pid_before']} -> {vm['pid_after']}, boot {vm['boot_id_after']}",
            f"  counter  {vm['counter_before']} -> {vm['counter_after']}",
            f"  disk     {_DISK_MIB} MiB written before, read back after: {disk}",
            f"  blackout {vm['blackout_s'] or 0:.3f} s by the host's clock,"
            f" {vm['blackout_outside_s']:.3f} s between heartbeats seen from outside",
        ]
        lines += [f"  problem  {text}" for text in vm["problems"]]
    for device in report.get("devices", []):
        landed, sent = device["frames_landed"], device["frames_sent"]
        lines += [
            f"{device['model']} {device['bdf']}: {'never stopped' if landed == sent else 'LOST'}",
            f"  frames   {sent} sent, {landed} landed in order,"
            f" {device['frames_landed_without_kernel']} of them while no kernel ran",
            f"  faults   {device['faults']}",
            f"  switch   {device['switch_us']} us, under the highest load",
        ]
        lines += [f"  problem  {text}" for text in device["problems"]]
    for device in report.get("cut_off", []):
        lines += [
            f"{device['model']} {device['bdf']}, not preserved:"
            f" {'NOT CUT OFF' if device['dma_landed'] else 'cut off'}, {device['faults']} fault(s)"
        ]
    return "\n".join(lines)
