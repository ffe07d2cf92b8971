# SPDX-License-Identifier: GPL-2.0-only
"""The witness's own proof, and what the lab makes of its lines."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.lab import demo
from pkernfs.lab.console import Console, Line
from pkernfs.lab.inside import witness as inside
from pkernfs.lab.witness import Proof, Witness, beats, longest_silence, parse

_PROOF = Proof("boot", 130, "digest", 1 << 20, 100)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> inside.Witness:
    monkeypatch.setattr(inside, "available", lambda: 6 << 20)
    return inside.Witness(0.5)


def test_digest_is_of_the_memory_and_notices_one_bit(small: inside.Witness) -> None:
    intended = small.fill()
    assert small.blocks == 3
    assert small.answer(["digest", "1"])["digest"] == intended
    small.answer(["spoil", "2"])
    assert small.digest() != intended


def test_digest_notices_swapped_and_repeated_pages(small: inside.Witness) -> None:
    intended = small.fill()
    first, second = small.memory[0:4096], small.memory[4096:8192]
    assert first != second
    small.memory[0:4096], small.memory[4096:8192] = second, first
    assert small.digest() != intended


def test_patterns_differ_by_seed_and_place() -> None:
    pages = {
        inside.pattern(seed, index, 8192)[start : start + 4096]
        for seed in (b"a", b"b")
        for index in (0, 1)
        for start in (0, 4096)
    }
    assert len(pages) == 8


def test_disk_is_compared_with_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * (4 << 20))
    monkeypatch.setattr(inside, "DISK", str(disk))
    monkeypatch.setattr("os.O_DIRECT", 0)
    written = inside.disk_write(2, b"seed", 1 << 20)
    assert inside.disk_verify(2, b"seed", 1 << 20) == written
    with disk.open("r+b") as file:
        file.seek((2 << 20) + 5)
        file.write(b"?")
    with pytest.raises(ValueError, match="MiB 1 "):
        inside.disk_verify(2, b"seed", 1 << 20)


def _beat(number: int, at: float) -> Line:
    message = {"beat": number, "count": number * 10, "clock": at, "boot": "b", "pid": 9, "gap": 0.1}
    return Line(at, json.dumps(message))


def test_silence_is_measured_by_the_lab() -> None:
    lines = [
        _beat(1, 10.0),
        _beat(2, 10.25),
        Line(10.3, '{"beat": 3, "cou'),  # cut by a kexec
        Line(12.0, "[   10.0] a kernel message"),
        _beat(4, 14.5),
        _beat(5, 14.75),
    ]
    found = beats(lines)
    assert [beat.number for beat in found] == [1, 2, 4, 5]
    assert longest_silence(found) == pytest.approx(4.25)
    assert longest_silence(found[:1]) == 0.0


@pytest.mark.parametrize("text", ["", "{", "{}x", "[1]", "no"])
def test_lines_that_are_no_messages(text: str) -> None:
    assert parse(Line(0.0, text)) is None


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[tuple[Witness, socket.socket]]:
    ours, theirs = socket.socketpair()
    with Console(ours, tmp_path / "serial.log") as console:
        yield Witness(console), theirs
    theirs.close()


def test_question_and_answer(guest: tuple[Witness, socket.socket]) -> None:
    witness, other = guest
    says = r"does not answer \(serial.log: no such line within 0 s\); it has not said a word"
    with pytest.raises(PkernfsError, match=says):
        witness.wait_ready(timeout=0.1)
    other.sendall(b'{"reply":"1","digest":"d","count":5,"bytes":4096}\r\n')
    # An answer to nothing that was asked: it came before the question.
    witness.console.wait_for("reply", 5)
    with pytest.raises(PkernfsError, match=r'its last lines:\n\{"reply":"1"'):
        witness.ask("digest", timeout=0.1)
    assert other.recv(100) == b"digest 1 \n"


def test_beats_that_are_waited_for_are_new_ones(guest: tuple[Witness, socket.socket]) -> None:
    witness, other = guest
    other.sendall(_beat(1, 0.0).text.encode() + b"\n")
    witness.console.wait_for("beat", 5)
    with pytest.raises(PkernfsError):
        witness.wait_beats(1, timeout=0.1)
    other.sendall(_beat(2, 0.0).text.encode() + b"\n")
    witness.console.wait_for('"beat": 2', 5)
    assert len(witness.beats()) == 2


def test_console_log_has_every_line(guest: tuple[Witness, socket.socket], tmp_path: Path) -> None:
    witness, other = guest
    other.sendall(b"one\r\ntw")
    other.sendall(b"o\nlast without an end")
    other.shutdown(socket.SHUT_WR)
    witness.console.wait_for("last", 5)
    assert [line.text for line in witness.console.lines] == ["one", "two", "last without an end"]
    logged = (tmp_path / "serial.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in map(str.strip, logged)] == [
        "one",
        "two",
        "last without an end",
    ]


def _evidence(**changes: Any) -> demo.Evidence:
    after = {"count": 200, **{k: v for k, v in changes.items() if k != "disk"}}
    disk = changes.get("disk", "disk")
    return demo.Evidence(_PROOF, dataclasses.replace(_PROOF, **after), "disk", disk, 4.5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"boot": "other"}, "its kernel started anew"),
        ({"pid": 131}, "it is another process"),
        ({"digest": "other"}, "its memory differs"),
        ({"count": 50}, "it counts from anew"),
        ({"disk": ""}, "its disk differs"),
    ],
)
def test_every_difference_fails_the_proof(changes: dict[str, Any], problem: str) -> None:
    assert _evidence(**changes).problems() == [problem]


def _report(survived: bool = True) -> dict[str, Any]:
    vm = {"name": "w", "ram_bytes": 1 << 28, "survived": survived, "blackout_s": 4.1, "error": "e"}
    return {"schema": "pkernfs-report/1", "host": {}, "vms": [vm], "phases": []}


def test_merged_report_has_what_the_issue_asks_for() -> None:
    merged = demo.merge(_report(), {"w": _evidence()})
    vm = merged["vms"][0]
    assert vm["survived"] is True
    assert (vm["digest_before"], vm["digest_after"]) == ("digest", "digest")
    assert (vm["counter_before"], vm["counter_after"]) == (100, 200)
    assert (vm["blackout_s"], vm["blackout_outside_s"]) == (4.1, 4.5)
    assert "survived" in demo.render(merged)


def test_no_guest_survives_against_its_witness_or_its_host() -> None:
    assert demo.merge(_report(), {"w": _evidence(digest="x")})["vms"][0]["survived"] is False
    assert demo.merge(_report(False), {"w": _evidence()})["vms"][0]["survived"] is False
    with pytest.raises(PkernfsError, match="does not have lost"):
        demo.merge(_report(), {"w": _evidence(), "lost": _evidence()})


def test_disk_traffic_can_be_stopped_and_started(
    small: inside.Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(inside.BUSY_OFFSET + (1 << 20))
    monkeypatch.setattr(inside, "DISK", str(disk))
    monkeypatch.setattr("os.O_DIRECT", 0)
    for _ in range(5):
        small.answer(["disk-busy", "1", "on"])
        assert "error" not in small.answer(["disk-busy", "2", "off"])
    assert small.busy_rounds >= 5
