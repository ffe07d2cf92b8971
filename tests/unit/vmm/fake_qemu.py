# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for QEMU: the same command line and QMP, no machine behind it.

FAKE_QEMU (a file) may name a way to misbehave, one word: ``dies`` at start, ``mute``
(never greets), ``blocked`` (can't be saved), ``fails`` (saving fails), ``hangs`` (saving
never ends), ``fat`` (memory ends up in the state), ``refuses`` (loading fails), ``stuck``
(loading never ends), ``half`` (knows no mode), ``keeps`` (does not go back to its own way
of migrating), ``discards`` (empties its memory when it ends, unless told not to),
``empties`` (does so whatever it is told).
"""

import contextlib
import json
import mmap
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE = "state of a fake machine\n"


_LISTS = (
    *("query-block", "query-block-jobs", "query-cpus-fast", "query-memory-devices"),
    *("query-named-block-nodes", "query-stats"),
)


def answers() -> dict[str, Any]:
    """What FAKE_ANSWERS (a file) has this process say: as the one that runs, or a successor.

    With "when", a successor whose command line has the first of its items says the second.
    """
    path = os.environ.get("FAKE_ANSWERS")
    if not path or not Path(path).exists():
        return {}
    said = json.loads(Path(path).read_text())
    found: dict[str, Any] = said["next" if "-incoming" in sys.argv else "running"]
    if "when" in said and "-incoming" in sys.argv and said["when"][0] in " ".join(sys.argv):
        found = said["when"][1]
    return found


def behaviour() -> str:
    path = os.environ.get("FAKE_QEMU")
    return Path(path).read_text().strip() if path and Path(path).exists() else ""


class FakeQemu:
    connection: socket.socket

    def __init__(self, incoming: bool) -> None:
        self.autostart = True
        self.status = "inmigrate" if incoming else "running"
        self.error = ""
        self.migration = "none"
        # A memory backend with discard-data=on, which may be set off.
        self.told_to_keep = False
        self.settings: dict[str, Any] = {"mode": "normal", "x-ignore-shared": False}

    def send(self, message: object) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: str) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        self.send({"event": name, "data": data, "timestamp": stamp})

    def requests(self) -> Iterator[dict[str, Any]]:
        """Requests as they come; nothing but their syntax says where one ends."""
        pending = ""
        while chunk := self.connection.recv(65536):
            pending += chunk.decode()
            while pending.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(pending.lstrip())
                except ValueError:
                    break
                pending = pending.lstrip()[end:]
                yield request

    def answer(self, command: str) -> object:
        if command == "query-status":
            return {"status": self.status, "running": self.status == "running"}
        if command == "query-kvm":
            return {"present": True, "enabled": "tcg" not in sys.argv}
        if command == "query-migrate":
            blocked = {"blocked-reasons": ["a device"]} if behaviour() == "blocked" else {}
            status = self.migration
            if status == "cancelling":
                self.migration = "cancelled"
                self.status = "running"
            return {"error-desc": self.error, "status": status, **blocked}
        if command == "query-migrate-parameters":
            return {"mode": self.settings["mode"]}
        if command == "query-migrate-capabilities":
            names = [name for name in self.settings if name != "mode"]
            return [{"capability": name, "state": self.settings[name]} for name in names]
        if command == "query-version":
            return {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}
        if command in _LISTS:
            return answers().get(command, [])
        if command in ("query-cpu-model-expansion", "qom-list-get"):
            return answers()[command]
        if command == "qom-list":
            return [{"name": "nic", "type": "child<fake-nic>"}]
        if command == "qom-get":
            return behaviour() in ("discards", "empties") and not self.told_to_keep
        if command == "x-query-ramblock":
            table = (
                "Name PSize Offset Used Total HVA RO\n"
                "pkernfs-ram 4 KiB 0x0 0x4000000 0x4000000 0x7f rw\n"
                "pc.bios 4 KiB 0x0 0x40000 0x40000 0x7f ro\n"
            )
            return {"human-readable-text": table}
        if command == "cont":
            assert self.migration not in ("active", "cancelling")
            self.status = "running"
            self.event("RESUME")
        if command == "stop" and self.status == "inmigrate":
            self.autostart = False
        elif command == "stop":
            self.status = "paused"
            self.event("STOP")
        return {}

    def configure(self, command: str, arguments: dict[str, Any]) -> None:
        if command == "migrate-set-parameters":
            self.settings |= arguments
        for capability in arguments.get("capabilities", []):
            self.settings[capability["capability"]] = capability["state"]
        if command == "qom-set" and behaviour() != "empties":
            self.told_to_keep = arguments["value"] is False
        if command == "migrate_cancel" and self.migration == "active":
            self.migration = "cancelling"

    def refuses(self, command: str, arguments: dict[str, Any]) -> str:
        """Why a command is refused; empty: it is not."""
        how = behaviour()
        if command == "cont" and how == "stays":
            return "fake disk is locked"
        if command == "migrate-set-parameters" and how == "half":
            return "Parameter 'mode' is unexpected"
        if arguments.get("mode") == "normal" and how == "keeps":
            return "fake mode is kept"
        return ""

    def migrate(self, path: Path) -> None:
        assert self.settings["mode"] == "cpr-reboot"
        assert self.settings["x-ignore-shared"]
        if self.status == "running":
            self.event("STOP")
        if behaviour() == "hangs":
            self.status, self.migration = "finish-migrate", "active"
            return
        if behaviour() == "fails":
            self.error = "no space on fake device"
            self.event("MIGRATION", status="failed")
            return
        was = self.status
        path.write_text(f"{STATE}{was}\n" + ("x" * (16 << 20) if behaviour() == "fat" else ""))
        self.status = "postmigrate"
        self.event("MIGRATION", status="completed")

    def load(self, path: Path) -> None:
        self.event("MIGRATION", status="setup")
        if behaviour() == "stuck":
            return
        text = path.read_text()
        if behaviour() == "refuses" or not text.startswith(STATE):
            self.error = "fake state does not fit"
            self.event("MIGRATION", status="failed")
            return
        self.status = text.removeprefix(STATE).split()[0]
        if self.status == "running" and "-S" in sys.argv:
            self.status = "paused"
        if self.status == "running":
            self.event("RESUME")
        self.event("MIGRATION", status="completed")

    def serve(self) -> None:
        version = {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}
        self.send({"QMP": {"version": version, "capabilities": []}})
        for request in self.requests():
            command, arguments = request["execute"], request.get("arguments", {})
            if why := self.refuses(command, arguments):
                error = {"class": "GenericError", "desc": why}
                self.send({"error": error, "id": request.get("id")})
                continue
            if command == "cont" and behaviour() == "silent":
                continue
            self.send({"return": self.answer(command), "id": request.get("id")})
            self.configure(command, arguments)
            if command in ("migrate", "migrate-incoming"):
                path = Path(arguments["uri"].removeprefix("file:"))
                (self.migrate if command == "migrate" else self.load)(path)
            if command in ("quit", "system_powerdown"):
                sys.exit(0)


def _map_memory() -> object:
    """Map the file of the guest's memory, as QEMU does."""
    match = re.search(r"mem-path=((?:[^,]|,,)+)", " ".join(sys.argv))
    if match is None:
        return None
    with Path(match[1].replace(",,", ",")).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def main() -> None:
    if "--version" in sys.argv:
        print("QEMU emulator version 11.1.3 (fake)")
        return
    if sys.argv[1:] == ["-machine", "help"]:
        print("pc-q35-11.1  Standard PC (Q35)\nq35  Standard PC (Q35) (alias of pc-q35-11.1)")
        return
    if behaviour() == "dies":
        print("fake-qemu: -device nonsense: not a valid device", file=sys.stderr)
        sys.exit(1)
    _mapped = _map_memory()  # as long as this runs
    match = re.search(r",fd=(\d+),", " ".join(sys.argv))
    assert match is not None
    listener = socket.socket(fileno=int(match[1]))
    fake: FakeQemu | None = None
    while True:
        connection, _ = listener.accept()
        if behaviour() == "mute" or {"-mute-when-incoming", "-incoming"} <= set(sys.argv):
            time.sleep(60)
        fake = fake or FakeQemu("-incoming" in sys.argv)
        fake.connection = connection
        with contextlib.suppress(OSError):
            fake.serve()


main()
