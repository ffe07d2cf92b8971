# SPDX-License-Identifier: GPL-2.0-only
"""Has one allocation of the kernel fail, the Nth that our modules cause.

/proc/PID/fail-nth counts allocations of one thread down, as the kernel's own test of iommufd
uses it; failslab and fail_page_alloc have a filter by the addresses on the stack. So what an
interpreter's own system calls allocate is not counted.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_DEBUGFS = Path("/sys/kernel/debug")
_NTH = "/proc/thread-self/fail-nth"
#: No operation has so many; one that never succeeds ends here.
_LIMIT = 2000
#: Nobody asked for anything wrong: nothing else may come of it.
_EXPECTED = (errno.ENOMEM,)


@dataclass
class Shot:
    """What became of the failure that was asked for: was there such an allocation?"""

    hit: bool = False


@dataclass
class Outcome:
    """What a sweep over one operation saw.

    :ivar points: how many allocations were made to fail.
    :ivar errors: how often each errno was the result.
    :ivar endured: how often the operation succeeded all the same.
    """

    points: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    endured: int = 0


def _text_of(*modules: str) -> tuple[int, int]:
    """First and last address of the code of modules."""
    marks = {f"[{module}]" for module in modules}
    found = []
    for line in Path("/proc/kallsyms").read_text().splitlines():
        words = line.split()
        if len(words) == 4 and words[3] in marks and words[1] in "tT":
            found.append(int(words[0], 16))
    if not found:
        raise AssertionError(f"no code of {modules}: not loaded?")
    return min(found), max(found) + 4096


def arrange(*modules: str) -> None:
    """Count the allocations that these modules cause, of any kind, from now on."""
    if not (_DEBUGFS / "failslab").exists():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", str(_DEBUGFS)], check=True)
    start, end = _text_of(*modules)
    for name in ("failslab", "fail_page_alloc"):
        values = {
            "require-start": str(start),
            "require-end": str(end),
            "stacktrace-depth": "32",
            "verbose": "0",
            # As if memory were that short, also where the kernel would wait for more.
            "ignore-gfp-wait": "N",
        }
        if name == "fail_page_alloc":
            values |= {"ignore-gfp-highmem": "N", "min-order": "0"}
        for key, value in values.items():
            (_DEBUGFS / name / key).write_text(value)


@contextmanager
def failing(nth: int) -> Iterator[Shot]:
    """The ``nth`` allocation of this thread within the block fails."""
    shot = Shot()
    fd = os.open(_NTH, os.O_RDWR)
    try:
        os.write(fd, str(nth).encode())
        try:
            yield shot
        finally:
            shot.hit = int(os.pread(fd, 32, 0)) == 0
            os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)


def sweep(
    prepare: Callable[[], object],
    act: Callable[[], object],
    undo: Callable[[bool], object],
    expected: tuple[int, ...] = _EXPECTED,
) -> Outcome:
    """Do something again and again, each time with one more of its allocations failing.

    Ends when there was no such allocation any more.

    :param act: it ends in success or in one of the ``expected`` errnos.
    :param undo: puts things back, and raises if they are not as they should be; told
        whether ``act`` succeeded.
    """
    outcome = Outcome()
    for nth in range(1, _LIMIT):
        prepare()
        error: OSError | None = None
        with failing(nth) as shot:
            try:
                act()
            except OSError as caught:
                error = caught
        if error is not None and (not shot.hit or error.errno not in expected):
            raise AssertionError(f"allocation {nth} failed, and then: {error!r}")
        undo(error is None)
        if not shot.hit:
            return outcome
        outcome.points += 1
        if error is None:
            outcome.endured += 1
        else:
            name = errno.errorcode[error.errno or 0]
            outcome.errors[name] = outcome.errors.get(name, 0) + 1
    raise AssertionError(f"no end after {_LIMIT} allocations")
