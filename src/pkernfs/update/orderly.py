# SPDX-License-Identifier: GPL-2.0-only
"""The update as a part of ``systemctl kexec``: systemd stops every service and then jumps.

``pkernfs update --load-only`` loads the next kernel. On the way down systemd stops
pkernfs-kexec.service first of all, and that runs :func:`going_down`: the guests are saved
while everything they need is still there, or the shutdown is called off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pkernfs.errors import PkernfsError
from pkernfs.files import read_json, write_json
from pkernfs.host import kexec, systemd
from pkernfs.host.devices import Control
from pkernfs.host.kernels import Kernel
from pkernfs.host.machine import Machine
from pkernfs.update import handover
from pkernfs.update.handover import Request, Watch, WayBack
from pkernfs.update.plan import Plan, running_guests
from pkernfs.update.timeline import Timeline
from pkernfs.vmm.config import Places

_STAGED_SCHEMA = "pkernfs-staged/1"


def _staged_file(places: Places) -> Path:
    return places.run / "staged.json"


def load_only(
    machine: Machine,
    places: Places,
    request: Request,
    waits: Callable[[str], None] | None = None,
) -> Plan:
    """Make all checks and load the next kernel, for a ``systemctl kexec`` later on.

    :param waits: see :func:`pkernfs.update.lock.update_lock`.
    :raises PkernfsError: an update would not work, or nobody would save the guests then.
    """
    if not systemd.has_units(machine):
        raise PkernfsError(
            "nothing here would save the guests at systemctl kexec",
            "install the units (make install-units), or use pkernfs update alone",
        )
    _refuse_devices()
    plan = handover.dry_run(machine, places, request, waits)
    if plan.guests and not systemd.is_active(systemd.KEEPER):
        raise PkernfsError(
            f"{systemd.KEEPER} is not up: nobody would save the guests",
            f"systemctl start {systemd.KEEPER}",
        )
    kexec.load(
        Kernel(plan.kernel_after, Path(plan.image), Path(plan.initrd) if plan.initrd else None),
        plan.boot_line,
    )
    value = {
        "image": plan.image,
        "initrd": plan.initrd,
        "append": request.append,
        "order": request.order,
        "watchdog": request.watchdog,
        "override": sorted(request.override),
        "fingerprint": request.fingerprint,
    }
    write_json(_staged_file(places), {"schema": _STAGED_SCHEMA, **value})
    return plan


def _refuse_devices() -> None:
    if Control().devices():
        raise PkernfsError(
            "devices are preserved: what stops their programs on the way down would reset them",
            "pkernfs update, without systemctl kexec, takes them along",
        )


def _staged(machine: Machine, places: Places) -> Request:
    """What :func:`load_only` was asked for.

    :raises PkernfsError: the loaded kernel is not from there.
    """
    file = _staged_file(places)
    if not kexec.is_loaded(machine) or not file.exists():
        raise PkernfsError(
            "the kernel to start was not loaded by pkernfs, "
            "so nobody knows whether it leaves the guests' memory alone",
            "load it with pkernfs update --load-only [--kernel FILE], then systemctl kexec",
        )
    value = read_json(file, _STAGED_SCHEMA)
    initrd = value["initrd"]
    return Request(
        image=Path(value["image"]),
        initrd=Path(initrd) if initrd else None,
        append=value["append"],
        order=tuple(value["order"]),
        watchdog=value["watchdog"],
        override=frozenset(value["override"]),
        fingerprint=value["fingerprint"],
    )


def going_down(machine: Machine, places: Places, watch: Watch) -> None:
    """Save the guests if the host is going down by kexec; nothing happens otherwise.

    The kernel is loaded anew, so that it is the one that was checked, with this update's
    marker in its boot line.

    :raises PkernfsError: the guests can't be taken along. They run on, and the host stays up.
    """
    if not systemd.going_down_by_kexec() or not running_guests(places):
        return
    try:
        _refuse_devices()
        handover.update(machine, places, _staged(machine, places), watch, leave=_leave)
    except BaseException as error:
        reason = f"the shutdown was called off, the guests run on: {error}"
        systemd.call_shutdown_off(f"pkernfs: {reason}")
        if isinstance(error, PkernfsError):
            raise PkernfsError(reason, error.hint) from error
        raise


def _end() -> NoReturn:
    os._exit(0)


def _leave(_: Machine, _plan: Plan, timeline: Timeline, way_back: WayBack) -> NoReturn:
    """Leave the guests saved and the kernel loaded: systemd makes the jump.

    Ends this process here and now, since every way back would let the guests run on. The
    journal stays, so that they still can be if the jump does not come.
    """
    timeline.mark("end", "hand over")
    timeline.mark("begin", "kernel")
    timeline.close()
    way_back.guard.end()
    sys.stdout.flush()
    _end()
