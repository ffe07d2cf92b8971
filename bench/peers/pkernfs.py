# SPDX-License-Identifier: GPL-2.0-only
"""pkernfs, by its own command line."""

from __future__ import annotations

from bench.peers.base import Peer
from bench.stage import HOME, GuestSize, Stage, tick_arguments
from pkernfs.errors import PkernfsError

STORE = "/mnt/pkernfs"
GUEST = "bench"
#: A new store, unless there is one.
MOUNT = f"mountpoint -q {STORE} || {{ modprobe pkernfs; mount -t pkernfs -o init none {STORE}; }}"


class Pkernfs(Peer):
    """``pkernfs vm start``, ``pkernfs update``, ``pkernfs resume``."""

    name = "pkernfs"
    about = "`pkernfs vm start`, `pkernfs update`; `pkernfs resume` in the next kernel"

    def prepare(self, stage: Stage) -> None:
        super().prepare(stage)
        stage.sh(self.name, MOUNT)

    def memory(self, size: GuestSize) -> str:
        return f"{STORE}/vms/{GUEST}/ram"

    def start(self, stage: Stage, size: GuestSize) -> None:
        program = ["python3", f"{HOME}/sparse_start.py"] if size.sparse else ["pkernfs"]
        words = ["vm", "start", GUEST, "--ram", size.name, "--", *tick_arguments(size.ram)]
        stage.run(self.name, [*program, *words], timeout=180)

    def update(self, stage: Stage, size: GuestSize) -> None:
        stage.write_early(self.name, "exec pkernfs resume >/run/bench.log 2>&1")
        command = ["pkernfs", "update", "--kernel", stage.image_path]
        stage.note(self.name, " ".join(command))
        result = stage.host.run(command)
        if result.status is not None:
            result.check()
            raise PkernfsError("pkernfs update came back without an error")
        stage.host.wait_reboot()

    def end(self, stage: Stage) -> None:
        stage.clear_early()
        stage.host.sh(f"pkernfs vm stop {GUEST} --force --delete; rm -rf {STORE}/updates")
