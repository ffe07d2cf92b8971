# SPDX-License-Identifier: GPL-2.0-only
"""The sweep over allocations that fail: what it counts, and what it takes for a fault."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.system.fault_scripts import inject


class Kernel:
    """Counts down as /proc/PID/fail-nth does."""

    def __init__(self) -> None:
        self.left = 0

    def allocate(self) -> bool:
        """An allocation; False: it failed."""
        if self.left:
            self.left -= 1
            return self.left != 0
        return True

    @contextmanager
    def failing(self, nth: int) -> Iterator[inject.Shot]:
        shot = inject.Shot()
        self.left = nth
        try:
            yield shot
        finally:
            shot.hit = self.left == 0
            self.left = 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(inject, "failing", fake.failing)
    return fake


def _ends_in(number: int, kernel: Kernel, allocations: int) -> Callable[[], None]:
    def act() -> None:
        for _ in range(allocations):
            if not kernel.allocate():
                raise OSError(number, "refused")

    return act


def _sweep(act: Callable[[], object]) -> tuple[inject.Outcome, list[bool]]:
    undone: list[bool] = []
    return inject.sweep(lambda: None, act, undone.append), undone


def test_every_allocation_fails_once(kernel: Kernel) -> None:
    outcome, undone = _sweep(_ends_in(errno.ENOMEM, kernel, 3))
    assert outcome == inject.Outcome(points=3, errors={"ENOMEM": 3})
    assert undone == [False, False, False, True]


def test_what_goes_well_all_the_same_is_counted(kernel: Kernel) -> None:
    outcome, undone = _sweep(lambda: kernel.allocate() or kernel.allocate())
    assert outcome == inject.Outcome(points=1, endured=1)
    assert undone == [True, True]


def test_another_errno_is_a_fault(kernel: Kernel) -> None:
    with pytest.raises(AssertionError, match="allocation 1 failed, and then: OSError"):
        _sweep(_ends_in(errno.EIO, kernel, 1))


def test_an_error_that_no_allocation_explains_is_a_fault(kernel: Kernel) -> None:
    def act() -> None:
        raise OSError(errno.ENOMEM, "for no reason")

    with pytest.raises(AssertionError, match="for no reason"):
        _sweep(act)


def test_things_that_are_not_put_back_are_a_fault(kernel: Kernel) -> None:
    def undo(succeeded: bool) -> None:
        raise AssertionError("left behind")

    with pytest.raises(AssertionError, match="left behind"):
        inject.sweep(lambda: None, _ends_in(errno.ENOMEM, kernel, 1), undo)


def test_what_never_ends_is_a_fault(kernel: Kernel) -> None:
    def act() -> None:
        while kernel.left:
            kernel.allocate()

    with pytest.raises(AssertionError, match="no end"):
        _sweep(act)
