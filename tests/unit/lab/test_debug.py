# SPDX-License-Identifier: GPL-2.0-only
"""The debug kernel: how it is named, what its reports look like, how long it is waited for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.lab import debug_checks, debug_kernel, image, scan
from pkernfs.lab.link import Result
from pkernfs.lab.machine import Machine, poll
from pkernfs.lab.patience import patient, slower

_STOCK = ("6.12.118+deb13-amd64", "7.3.4+deb13-amd64")
_DEBUG = "6.12.118-debug"

# In the words of the sources of Linux 6.12.118.
_REPORTS = {
    "KASAN": "BUG: KASAN: slab-use-after-free in pkernfs_evict_inode+0x4d/0x90 [pkernfs]",
    "KASAN, wild": "Oops: general protection fault, probably for non-canonical address "
    "0xdffffc0000000004: 0000 [#1] PREEMPT SMP KASAN",
    "two locks in two orders": "WARNING: possible circular locking dependency detected",
    "one lock twice": "WARNING: possible recursive locking detected",
    "with interrupts on and off": "WARNING: inconsistent lock state",
    "interrupts, indirectly": "WARNING: possible irq lock inversion dependency detected",
    "RCU": "WARNING: suspicious RCU usage",
    "unlocked by nobody": "WARNING: bad unlock balance detected!",
    "left in user space": "WARNING: lock held when returning to user space!",
    "freed while held": "WARNING: held lock freed!",
    "no key": "INFO: trying to register non-static key.",
    "sleeps": "BUG: sleeping function called from invalid context at mm/util.c:710",
    "page dump": "page dumped because: VM_BUG_ON_PAGE(page_ref_count(page) == 0)",
    "VM_BUG_ON": "kernel BUG at mm/memory.c:2471!",
    "VM_WARN_ON": "WARNING: CPU: 0 PID: 421 at mm/memory.c:2310 vmf_insert_pfn_prot+0x1c/0x2b0",
    "page state": "BUG: Bad page state in process python3  pfn:10d2a3",
    "page tables": "BUG: non-zero pgtables_bytes on freeing mm: 4096",
    "list": "list_del corruption. prev->next should be ffff888104a8c010, but was dead000000000100",
    "leak": "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
}
_QUIET = (
    "kasan: KernelAddressSanitizer initialized",
    "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    " memory used by lock dependency info: 6365 kB",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 34567)",
    "Running RCU self tests",
)

_LEAK_OF_OURS = """\
unreferenced object 0xffff888104a8c000 (size 192):
  comm "mount", pid 231, jiffies 4294912345
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 5c9b8a1e):
    __kmalloc_cache_noprof+0x1e4/0x2b0
    pkernfs_node_new+0x3c/0x120 [pkernfs]
    pkernfs_fill_super+0x1f2/0x4a0 [pkernfs]
"""
_LEAK_OF_OTHERS = """\
unreferenced object 0xffff888102345000 (size 64):
  comm "swapper/0", pid 1, jiffies 4294667296
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    __kmalloc_cache_noprof+0x1e4/0x2b0
    acpi_ds_build_internal_object+0x1f4/0x260
"""
# The module was unloaded meanwhile: its functions have no name any more.
_LEAK_OF_THE_UNLOADED = _LEAK_OF_OTHERS.replace(
    "acpi_ds_build_internal_object+0x1f4/0x260", "0xffffffffc0a01234"
)


class _Host:
    """A host that says something when it is asked."""

    def __init__(self, text: str, status: int | None = 0) -> None:
        self._result = Result(("sh",), status, text, "")

    def sh(self, script: str, *, timeout: float) -> Result:
        return self._result


_LOCKDEP_WORKS = " debug_locks:                                       1\n"
_LOCKDEP_IS_OFF = " debug_locks:                                       0\n"


def _check(text: str, status: int | None = 0) -> None:
    debug_checks.check(cast(Machine, _Host(text, status)))


@pytest.mark.parametrize("line", _REPORTS.values(), ids=_REPORTS)
def test_its_reports_fail_a_run(line: str) -> None:
    assert scan.findings([f"[   12.345678] {line}"]) != []


@pytest.mark.parametrize("line", _QUIET)
def test_what_it_says_of_itself_does_not(line: str) -> None:
    assert scan.findings([f"[    0.000000] {line}"]) == []


@pytest.mark.parametrize("text", [_LEAK_OF_OURS, _LEAK_OF_THE_UNLOADED])
def test_a_leak_of_ours_is_told(text: str) -> None:
    with pytest.raises(PkernfsError, match="1 of pkernfs") as caught:
        _check(_LOCKDEP_WORKS + _LEAK_OF_OTHERS + text)
    assert text.strip() in caught.value.what


def test_other_leaks_are_not() -> None:
    assert len(debug_checks.reports(_LEAK_OF_OTHERS * 2)) == 2
    _check(_LOCKDEP_WORKS + _LEAK_OF_OTHERS)
    _check(_LOCKDEP_WORKS)


def test_lockdep_that_gave_up_is_told() -> None:
    with pytest.raises(PkernfsError, match="lockdep has given up"):
        _check(_LOCKDEP_IS_OFF)


def test_a_host_that_reboots_is_not_asked() -> None:
    _check("", status=None)


def test_the_name_debug_means_the_debug_kernel_only() -> None:
    kernels = (*_STOCK, _DEBUG)
    assert image.pick_kernel(kernels, "debug") == _DEBUG
    assert image.pick_kernel(kernels, _DEBUG) == _DEBUG
    assert image.pick_kernel(kernels, "6.12") == _STOCK[0]
    with pytest.raises(UsageError):
        image.pick_kernel(_STOCK, "debug")
    with pytest.raises(UsageError):
        image.pick_kernel(kernels, "7.3.4-debug")


def test_a_built_kernel_comes_with_its_own_modules() -> None:
    built = image.BuiltKernel(_DEBUG, Path("/c/bzImage"), Path("/c/root"))
    host = image.HostImage(Path("/h"), Path("/h.ext4"), (*_STOCK, _DEBUG), (built,))
    assert (host.vmlinuz(_DEBUG), host.module_root(_DEBUG)) == (built.image, built.root)
    assert host.vmlinuz(_STOCK[0]) == Path(f"/h/boot/vmlinuz-{_STOCK[0]}")
    assert host.module_root(_STOCK[0]) == Path("/h")


def test_the_fragment_asks_for_what_the_recipe_needs() -> None:
    recipe = debug_kernel.RECIPE
    lines = recipe.fragment.read_text().splitlines()
    assert [name for name in recipe.needed if f"CONFIG_{name}=y" not in lines] == []
    assert 'CONFIG_LOCALVERSION="-debug"' in lines


def test_everything_waits_longer_for_a_slow_host() -> None:
    assert patient(10) == 10
    with slower(3):
        assert patient(10) == 30
        with slower(2):
            assert patient(10) == 30
        with pytest.raises(PkernfsError, match=r"nothing: not within 0\.03 s"):
            poll(lambda: False, 0.01, "nothing")
    assert patient(10) == 10
