# SPDX-License-Identifier: GPL-2.0-only
"""The part that preserved devices have in an update."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator

from pkernfs.host.bootline import BootLine
from pkernfs.host.devices import Control, next_kernel_line
from pkernfs.update.plan import Plan
from pkernfs.update.timeline import Timeline


@contextlib.contextmanager
def armed(plan: Plan, control: Control | None = None) -> Iterator[Plan]:
    """Have the preserved devices ready to be handed over within the block.

    Whoever leaves the block has not started the next kernel: then it is taken back.

    :returns: the plan, with what the next kernel has to be told; the same one when no device
        is preserved.
    :raises PkernfsError: the devices can't be handed over; nothing has changed.
    """
    control = control or Control()
    if not control.devices():
        yield plan
        return
    words = control.arm()
    try:
        line = next_kernel_line(BootLine.parse(plan.boot_line), words)
        yield dataclasses.replace(plan, boot_line=str(line))
    finally:
        control.disarm()


def check_again(control: Control | None = None) -> None:
    """Last check before the jump: what devices reach may have grown since.

    :raises PkernfsError: it does not fit any more.
    """
    control = control or Control()
    if control.armed:
        control.arm()


def note(timeline: Timeline, control: Control | None = None) -> None:
    """Record the preserved devices as they are now; the report has the last state of each."""
    for device in (control or Control()).devices():
        timeline.mark("device", device.bdf, text=json.dumps(dataclasses.asdict(device)))
