# SPDX-License-Identifier: GPL-2.0-only
"""Virtual hosts for the system tests, and figures that tests tell at the end of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pkernfs.lab.debug_kernel import SLOWDOWN
from pkernfs.lab.image import DEBUG
from pkernfs.lab.machine import HostConfig, Machine
from tests.kernels import KERNELS

HostFactory = Callable[..., Machine]
_KERNELS = ("6.12", "7.3")
_TAIL_LINES = 40
#: How long a test may take that says nothing of it, as in the Makefile.
_TIMEOUT_S = 1200
#: Hosts that run now, for the kernel log in the report of a failed test.
_running: list[Machine] = []


Tell = Callable[[str], None]
_TOLD = "told"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Says a line in the summary of the run: how many images were tried, for one."""
    return lambda text: record_property(_TOLD, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have told."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:
            if name == _TOLD:
                terminalreporter.write_line(f"{report.nodeid}: {text}")


@contextlib.contextmanager
def _watched(machine: Machine) -> Iterator[Machine]:
    with machine:
        _running.append(machine)
        try:
            yield machine
        finally:
            _running.remove(machine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on the debug kernel as much more time as the lab gives its host."""
    if DEBUG not in KERNELS:
        return
    for item in items:
        own = item.get_closest_marker("timeout")
        limit = own.args[0] if own else _TIMEOUT_S
        item.add_marker(pytest.mark.timeout(limit * SLOWDOWN), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of every running host's kernel log to a failure."""
    report = yield
    if report.failed:
        for machine in _running:
            tail = "\n".join(line.text for line in machine.console.lines[-_TAIL_LINES:])
            report.sections.append((f"kernel log of the host, all of it in {machine.logs}", tail))
    return report


def with_kvm(node: pytest.Item | pytest.Collector) -> bool:
    """The one setting by which tests choose: the mark ``kvm``, see HostConfig.kvm."""
    return node.get_closest_marker("kvm") is not None


@pytest.fixture(scope="session")
def shared_host() -> Iterator[Callable[[str, bool], Machine]]:
    """A function to the running host that all tests share, of a kernel, with or without KVM."""
    with contextlib.ExitStack() as stack:
        hosts: dict[tuple[str, bool], Machine] = {}

        def get(kernel: str, kvm: bool) -> Machine:
            if (kernel, kvm) not in hosts:
                config = HostConfig(kernel=kernel, kvm=kvm)
                hosts[kernel, kvm] = stack.enter_context(_watched(Machine(config)))
            return hosts[kernel, kvm]

        yield get


def _without_new_problems(machine: Machine) -> Iterator[Machine]:
    before = len(machine.problems)
    yield machine
    fresh = machine.problems[before:]
    assert not fresh, f"this test left bad lines in the kernel log: {fresh[:5]}"


@pytest.fixture
def host(
    request: pytest.FixtureRequest, shared_host: Callable[[str, bool], Machine]
) -> Iterator[Machine]:
    """The shared host on 6.12, with a store. Leave nothing behind in it."""
    yield from _without_new_problems(shared_host("6.12", with_kvm(request.node)))


@pytest.fixture(params=_KERNELS)
def each_host(
    request: pytest.FixtureRequest, shared_host: Callable[[str, bool], Machine]
) -> Iterator[Machine]:
    """The shared host of every kernel, one after the other."""
    yield from _without_new_problems(shared_host(request.param, with_kvm(request.node)))


@pytest.fixture
def new_host(request: pytest.FixtureRequest) -> Iterator[HostFactory]:
    """Boots a host of the test's own, by the fields of HostConfig; it ends with the test.

    For tests that replace the host's kernel, let it panic, or need a special one.
    """
    with contextlib.ExitStack() as stack:

        def boot(**fields: Any) -> Machine:
            config = HostConfig(kvm=with_kvm(request.node), **fields)
            context: AbstractContextManager[Machine] = _watched(Machine(config))
            return stack.enter_context(context)

        yield boot
