# SPDX-License-Identifier: GPL-2.0-only
"""Shells complete what the parser knows: asked of a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pkernfs.cli import VERBS, complete, completion
from pkernfs.vmm.config import Places

_ASK = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_pkernfs_completion pkernfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


def _bash(tmp_path: Path, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    script = tmp_path / "completion"
    script.write_text(completion.script(completion.Shell.BASH))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "--norc", "-c", _ASK, "bash", str(script), line]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


def test_bash_completes_verbs_and_options(tmp_path: Path) -> None:
    assert set(_bash(tmp_path, "pkernfs ")) == set(VERBS)
    assert _bash(tmp_path, "pkernfs upd") == ["update"]
    assert _bash(tmp_path, "pkernfs vm st") == ["start", "stop"]
    assert _bash(tmp_path, "pkernfs report --ht") == ["--html"]
    assert _bash(tmp_path, "pkernfs completion f") == ["fish"]
    assert _bash(tmp_path, "pkernfs update --nonsense") == []


def test_bash_completes_pci_names_behind_their_colons(tmp_path: Path) -> None:
    devices = sorted(path.name for path in Path("/sys/bus/pci/devices").glob("0000:*"))
    if not devices:
        pytest.skip("this machine has no PCI bus")
    # bash takes "0000" and ":" for words of their own, and wants what follows.
    behind = devices[0].removeprefix("0000:")
    assert behind in _bash(tmp_path, f"pkernfs device preserve 0000:{behind[:2]}")
    assert f"0000:{behind}" in _bash(tmp_path, "pkernfs device preserve 0")


def test_names_come_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "_places", lambda: Places(tmp_path, tmp_path / "run"))
    for name in ("web", "webcam", "db"):
        (tmp_path / "vms" / name).mkdir(parents=True)
        (tmp_path / "vms" / name / "config.json").write_text("{}")
    for update in ("20260101-000000-aaaa", "20260202-000000-bbbb"):
        (tmp_path / "updates" / update).mkdir(parents=True)
        (tmp_path / "updates" / update / "plan.json").write_text("{}")
    assert list(complete.guests("w")) == ["web", "webcam"]
    assert list(complete.guests("")) == ["db", "web", "webcam"]
    assert list(complete.updates("202602")) == ["20260202-000000-bbbb"]


def test_without_a_store_nothing_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setattr(complete, "_places", lambda: Places(missing, missing))
    monkeypatch.setattr(complete, "_PCI", missing)
    for offer in (complete.guests, complete.updates, complete.pci_devices):
        assert list(offer("")) == []


@pytest.mark.parametrize("shell", list(completion.Shell))
def test_there_is_a_script_for_every_shell(shell: completion.Shell) -> None:
    text = completion.script(shell)
    assert completion.VARIABLE in text
    assert text.endswith("\n")
