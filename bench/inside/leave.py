# SPDX-License-Identifier: GPL-2.0-only
"""In a lab host, for the peers: save a guest by QMP, and jump to the next kernel.

``leave.py JSON``, standard library only. Everything that can be done while the guest runs
is done before it is stopped: the next kernel is loaded, the interpreter is up, the monitor
is connected. The members of JSON:

  line, kernel, initrd  the next kernel
  qmp                   socket of the guest's QEMU; null: there is no guest
  uri                   where QEMU writes to
  capabilities, parameters   for migrate-set-capabilities and migrate-set-parameters
  sync                  files to be made durable before the jump
  umount                file systems to be unmounted before the jump, once QEMU has quit
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# include/uapi/linux/reboot.h
_MAGIC1 = 0xFEE1DEAD
_MAGIC2 = 672274793
_KEXEC = 0x45584543
_SYS_REBOOT = 169


def mark(text: str) -> None:
    """A line in the kernel log, which the lab sees with its own clock."""
    Path("/dev/kmsg").write_text(f"<6>bench: {text}\n")


class Monitor:
    """A QMP session."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """The answer to a command."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments  # type: ignore[assignment]
        self._file.write(json.dumps(request) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise SystemExit(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def save(self, uri: str) -> None:
        """Write the guest's state; it does not run any more when this returns."""
        self.execute("migrate", uri=uri)
        while True:
            state = self.execute("query-migrate")
            if state["status"] == "completed":
                return
            if state["status"] in ("failed", "cancelled"):
                raise SystemExit(f"migrate: {state}")
            time.sleep(0.01)

    def quit(self) -> None:
        """End QEMU, and wait until it has hung up."""
        self.execute("quit")
        with contextlib.suppress(ConnectionResetError):
            while self._socket.recv(4096):
                pass


def umount(libc: ctypes.CDLL, path: str) -> None:
    """Unmount, as soon as the process that has just hung up is really gone."""
    deadline = time.monotonic() + 20
    while libc.umount2(path.encode(), 0):
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > deadline:
            raise SystemExit(f"umount {path}: {os.strerror(number)}")
        time.sleep(0.005)


def main() -> None:
    """See the module."""
    plan = json.loads(sys.argv[1])
    command = ["kexec", "-s", "-l", plan["kernel"], f"--initrd={plan['initrd']}"]
    subprocess.run([*command, f"--command-line={plan['line']}"], check=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if plan["qmp"]:
        monitor = Monitor(plan["qmp"])
        names = plan["capabilities"]
        monitor.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in names],
        )
        monitor.execute("migrate-set-parameters", **plan["parameters"])
        mark("save")
        monitor.save(plan["uri"])
        mark("saved")
        for path in plan["sync"]:
            with Path(path).open("rb") as file:
                os.fsync(file.fileno())
        if plan["umount"]:
            monitor.quit()
        for path in plan["umount"]:
            umount(libc, path)
    mark("jump")
    number, first, second, what = (
        ctypes.c_long(v) for v in (_SYS_REBOOT, _MAGIC1, _MAGIC2, _KEXEC)
    )
    libc.syscall(number, first, second, what, None)
    raise SystemExit(f"reboot: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
