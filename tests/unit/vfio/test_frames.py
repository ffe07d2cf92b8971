# SPDX-License-Identifier: GPL-2.0-only
"""Numbered frames, the log of landings, the sender and the report."""

from __future__ import annotations

import io
import socket
import threading
import time
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError
from pkernfs.lab.console import Line
from pkernfs.lab.frame_report import (
    BETWEEN_KERNELS,
    DeviceReport,
    Phase,
    PhaseCount,
    Sent,
    SourceLog,
    analyse,
    between_kernels,
    read_log,
)
from pkernfs.lab.frames import FrameSource, Sender, Wire
from pkernfs.vfio.frame import LONGEST, NumberedFrame, build, frame_length, parse
from pkernfs.vfio.landings import Kind, Landing, LandingLog
from pkernfs.vfio.receiver import receive_until

DESTINATION, SOURCE = b"\xff" * 6, b"\x02" * 6


def test_frame_round_trip() -> None:
    for sequence in (0, 1, 127, 128, 2**40):
        data = build(DESTINATION, SOURCE, 3, sequence, 12345)
        assert 60 <= len(data) == frame_length(sequence) <= LONGEST
        assert parse(data + b"padding") == NumberedFrame(3, sequence, 12345, True)


def test_any_changed_byte_shows() -> None:
    data = build(DESTINATION, SOURCE, 1, 100, 5)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x40
        frame = parse(bytes(changed))
        assert frame is None or not frame.intact
    torn = parse(data[:-1])
    assert torn is not None and not torn.intact


def test_foreign_frames() -> None:
    assert parse(b"") is None
    assert parse(bytes(60)) is None
    assert parse(DESTINATION + SOURCE + b"\x88\xb5" + bytes(50)) is None


def _log(ring: int = 16) -> LandingLog:
    return LandingLog.format(memoryview(bytearray(4096)), ring)


def _frame(sequence: int, *, intact: bool = True, run: int = 0) -> NumberedFrame:
    return NumberedFrame(run, sequence, 0, intact)


def test_log_keeps_runs_short() -> None:
    log = _log()
    for number in range(40):
        assert log.add(_frame(number), number % 16)
    assert log.entries() == [Landing(Kind.FRAMES, 0, 0, 0, 0, 39)]


def test_log_tells_gaps_damage_and_duplicates_apart() -> None:
    log = _log()
    for slot, frame in enumerate((_frame(0), _frame(1), _frame(3), _frame(4, intact=False))):
        log.add(frame, slot)
    assert log.add(_frame(3), 9)
    assert [(entry.kind, entry.first, entry.last) for entry in log.entries()] == [
        (Kind.FRAMES, 0, 1),
        (Kind.FRAMES, 3, 3),
        (Kind.DAMAGED, 4, 4),
        (Kind.FRAMES, 3, 3),
    ]


def test_log_survives_its_receiver() -> None:
    view = memoryview(bytearray(4096))
    log = LandingLog.format(view, 16)
    for number in range(20):
        log.add(_frame(number), number % 16)
    again = LandingLog(view)
    again.begin(waiting=3, head=7)
    # Frames 18 and 19 were logged but not given back: the next receiver finds them again.
    assert [again.add(_frame(number), number % 16) for number in (18, 19, 20)] == [
        False,
        False,
        True,
    ]
    assert again.entries() == [
        Landing(Kind.FRAMES, 0, 0, 0, 0, 19),
        Landing(Kind.ADOPTED, 1, 0, 0, 3, 7),
        Landing(Kind.FRAMES, 1, 0, 4, 20, 20),
    ]
    assert LandingLog(view).generation == 1


def test_log_counts_a_real_duplicate() -> None:
    log = _log()
    for number in range(3):
        log.add(_frame(number), number)
    assert log.add(_frame(2), 3), "the same number in another slot is another frame"


def test_log_refuses_what_is_no_log_and_ends() -> None:
    with pytest.raises(PkernfsError, match="no log"):
        LandingLog(memoryview(bytearray(4096)))
    log = LandingLog.format(memoryview(bytearray(64 + 32)), 16)
    log.add(_frame(0), 0)
    with pytest.raises(PkernfsError, match="full"):
        log.add(_frame(5), 1)


def test_landing_to_json_and_back() -> None:
    entry = Landing(Kind.ADOPTED, 1, 0, 0, 3, 7)
    assert Landing.from_json(entry.to_json()) == entry


def _sent(count: int) -> SourceLog:
    return SourceLog(tuple(Sent(n, n * 10, n * 10 + 12) for n in range(count)))


def _runs(*pairs: tuple[int, int]) -> list[Landing]:
    return [Landing(Kind.FRAMES, 0, 0, first % 16, first, last) for first, last in pairs]


def test_report_of_a_whole_run() -> None:
    report = analyse(_sent(10), _runs((0, 4), (5, 9)), 0, [Phase("a", 0, 45), Phase("b", 45, 200)])
    assert report.whole
    assert (report.frames_sent, report.frames_landed) == (10, 10)
    assert (report.longest_gap_ns, report.longest_wait_ns) == (10, 12)
    # Frame 4 was sent at 40, but known to be in the device at 52 only.
    assert report.phases == (PhaseCount("a", 5, 5, 4), PhaseCount("b", 5, 5, 5))


@pytest.mark.parametrize(
    ("landings", "what"),
    [
        (_runs((0, 3), (5, 9)), {"missing": ((4, 4),)}),
        (_runs((0, 3), (7, 8)), {"missing": ((4, 6), (9, 9))}),
        (_runs((0, 9), (9, 9)), {"duplicated": 1}),
        (_runs((0, 4), (6, 9), (5, 5)), {"out_of_order": 1}),
        (_runs((0, 11)), {"unsent": 2}),
        ([*_runs((0, 9)), Landing(Kind.DAMAGED, 0, 0, 0, 3, 3)], {"damaged": 1}),
        ([Landing(Kind.FRAMES, 0, 5, 0, 0, 9)], {"missing": ((0, 9),)}),
    ],
)
def test_report_of_faults(landings: list[Landing], what: dict[str, object]) -> None:
    report = analyse(_sent(10), landings, 0)
    assert not report.whole
    assert {name: getattr(report, name) for name in what} == what


def test_report_of_nothing_is_not_whole() -> None:
    assert not analyse(SourceLog(), [], 0).whole


def test_device_report_counts_what_landed_between_kernels() -> None:
    lines = [
        Line(0.0, "[    0.000000] Linux version 6.12.1"),
        Line(1e-8, "[    9.000000] kexec_core: Starting new kernel"),
        Line(2e-8, "[    9.100000] the last word"),
        Line(7e-8, "[    0.000000] Linux version 7.3.4"),
        Line(9e-8, "[    0.000000] Command line: no Linux version here"),
    ]
    phases = between_kernels(lines)
    assert phases == [Phase(BETWEEN_KERNELS, 20, 70)]
    report = analyse(_sent(10), _runs((0, 9)), 0, [*phases, Phase("after", 70, 200)])
    entry = DeviceReport("0000:01:00.0", "e1000e", report, 0, 42).to_json()
    # Sent at 20, 30, 40, 50 (in the device 12 later) and 60 (in the device after the phase).
    assert entry["frames_landed_without_kernel"] == 4
    assert (entry["frames_sent"], entry["frames_landed"], entry["switch_us"]) == (10, 10, 42)
    assert entry["frames"]["whole"] is True


def test_log_of_the_sender() -> None:
    log = read_log(["s 0 5", "s 1 15", "s 2 25", "t 1 27", "w 2 9", "r 7 3 99 1", "r 7 4 100 0"])
    assert [frame.taken_ns for frame in log.sent] == [27, 27, None]
    assert log.longest_stall_ns == 9
    assert [(frame.sequence, frame.intact) for frame in log.returned] == [(3, True), (4, False)]


class _Device:
    """QEMU's end of the wire: reads frames, or not."""

    def __init__(self, wire: Wire) -> None:
        self.frames: list[bytes] = []
        self.taking = True
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind(str(wire.device))
        self._end.settimeout(0.02)
        self._wire, self._stop = wire, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self.taking:
                time.sleep(0.005)
                continue
            try:
                self.frames.append(self._end.recv(4096))
            except TimeoutError:
                continue

    def transmit(self, frame: bytes) -> None:
        self._end.sendto(frame, str(self._wire.lab))

    def close(self) -> None:
        # What is still on the way is read first, as QEMU would.
        time.sleep(0.1)
        self._stop.set()
        self._thread.join()
        self._end.close()


def _wait_for(device: _Device, count: int) -> None:
    end = time.monotonic() + 20
    while len(device.frames) < count:
        assert time.monotonic() < end, f"only {len(device.frames)} frames came"
        time.sleep(0.01)


def test_sender(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    assert wire.netdev()[1].startswith("dgram,id=nic0,local.type=unix,local.path=")
    device = _Device(wire)
    try:
        with FrameSource(wire, tmp_path / "log", run=4, interval_s=0.002) as source:
            _wait_for(device, 50)
            device.transmit(build(DESTINATION, SOURCE, 9, 5, 0))
            device.taking = False
            stalled_at = time.monotonic_ns()
            time.sleep(0.3)
            resumed_at = time.monotonic_ns()
            device.taking = True
            source.pace(0)
            _wait_for(device, 400)
            log = source.stop()
    finally:
        device.close()
    got = [parse(frame) for frame in device.frames]
    assert all(frame is not None and frame.intact and frame.run == 4 for frame in got)
    numbers = [frame.sequence for frame in got if frame is not None]
    assert numbers == [frame.sequence for frame in log.sent] == list(range(len(numbers)))
    assert [(frame.run, frame.sequence, frame.intact) for frame in log.returned] == [(9, 5, True)]
    # While the device took nothing, the sender noticed, and claims no frame to be in it.
    assert log.longest_stall_ns > 100_000_000
    phase = Phase("stalled", stalled_at, resumed_at)
    landed = [Landing(Kind.FRAMES, 0, 4, 0, 0, numbers[-1])]
    report = analyse(log, landed, 4, [phase])
    assert report.whole
    assert report.phases[0].sent > 3
    assert report.phases[0].landed_within <= 2
    assert report.longest_wait_ns > 100_000_000


def test_sender_claims_no_frame_that_may_be_held_back(tmp_path: Path) -> None:
    wire, notes = Wire(tmp_path), io.StringIO()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as device:
        device.bind(str(wire.device))
        sender = Sender(wire, notes, run=0, interval_s=0.005)
        for _ in range(3):
            sender.step()
            device.recv(4096)
        sender.step()
    # QEMU has read 0, 1 and 2; it may still hold 2 when the device takes none.
    taken = [line.split()[1] for line in notes.getvalue().splitlines() if line[0] == "t"]
    assert taken == ["0", "1"]


class _Nic:
    """Frames in two portions; the receiver must log before it gives back."""

    def __init__(self, log: LandingLog) -> None:
        self.log = log
        self.portions = [[0, 1, 2], [], [3]]
        self.given: list[int] = []

    def poll(self) -> list[object]:
        from pkernfs.vfio.e1000e import Received

        portion = self.portions.pop(0) if self.portions else []
        return [Received(n, build(DESTINATION, SOURCE, 0, n, 0), 0) for n in portion]

    def give_back(self, frames: list[object]) -> None:
        if frames:
            assert self.log.entries()[-1].last == getattr(frames[-1], "slot")  # noqa: B009
            self.given.append(len(frames))


def test_receiver_logs_before_it_gives_back() -> None:
    log = _log()
    nic = _Nic(log)
    end = time.monotonic() + 0.1
    assert receive_until(nic, log, end, []) == 4  # type: ignore[arg-type]
    assert nic.given == [3, 1]
    assert [(entry.first, entry.last) for entry in log.entries()] == [(0, 3)]
