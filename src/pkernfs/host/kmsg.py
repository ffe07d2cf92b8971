# SPDX-License-Identifier: GPL-2.0-only
"""The kernel log, for what it alone knows."""

from __future__ import annotations

import os
import re

from pkernfs.host.machine import Machine

#: A record is no longer than this (CONSOLE_EXT_LOG_MAX, kernel/printk/printk.c).
_RECORD_MAX = 8192

#: run_init_process() in init/main.c. The record: priority, sequence, time in microseconds
#: (Documentation/ABI/testing/dev-kmsg).
_INIT = re.compile(rb"\d+,\d+,(\d+),[^;]*;Run \S+ as init process")


def first_program_ns(machine: Machine) -> int | None:
    """When the kernel started its first user program, nanoseconds after its own start.

    By the kernel log's clock, which begins some hundredths of a second before or after
    CLOCK_BOOTTIME. None when the log does not have it any more.
    """
    try:
        log = os.open(machine.root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        while True:
            try:
                record = os.read(log, _RECORD_MAX)
            except BrokenPipeError:  # this record was overwritten meanwhile
                continue
            found = _INIT.match(record)
            if found is not None:
                return int(found[1]) * 1000
            if not record:
                return None
    except OSError:  # BlockingIOError: the end
        return None
    finally:
        os.close(log)
