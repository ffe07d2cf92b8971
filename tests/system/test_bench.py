# SPDX-License-Identifier: GPL-2.0-only
"""The comparison works: one host, one kexec, one small measure. What it finds is not judged."""

from __future__ import annotations

import pytest

from bench.measures import store
from bench.measures.blackout import floor
from bench.peers.bare import Bare
from bench.stage import Room, Stage

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_a_bare_kexec_and_files_are_timed() -> None:
    with Stage("smoke", Room(kernel="6.12")) as stage:
        files = store.metadata(stage, store.PLACES[0], 20)
        assert set(files) >= {"create", "truncate", "unlink", "work: create"}
        found = floor(stage, Bare())
        assert found["blackout"] == pytest.approx(
            found["save"] + found["leave"] + found["kernel"], abs=0.01
        )
        # One processor is emulated, by one thread; the rest of the emulation is little.
        assert 0.1 < found["work"] < 2 * found["blackout"]
        stage.host.check_log()
