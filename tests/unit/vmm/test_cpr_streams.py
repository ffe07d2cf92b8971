# SPDX-License-Identifier: GPL-2.0-only
"""Both ends of QEMU's channels, with a socket in QEMU's place."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest

from pkernfs.errors import PkernfsError, UsageError
from pkernfs.vfio import bind, uapi
from pkernfs.vmm import command, cpr, cpr_record, cpr_replay, cpr_saved, passthrough
from pkernfs.vmm.config import Guest, GuestConfig, Places
from pkernfs.vmm.cpr import CprState, Descriptor, Kind
from pkernfs.vmm.cpr_memory import Piece
from pkernfs.vmm.cpr_saved import Block, PassedDevice, Record
from tests.answers import answers

from .test_cpr import NIC, RECORDED


def received(state: CprState, fds: list[int], end: socket.socket) -> tuple[bytes, list[int]]:
    """What the recorder has of a CPR stream that is sent as QEMU does it."""
    *parts, last = cpr.pieces(state)
    for part, fd in zip(parts, fds, strict=True):
        end.sendall(part)
        socket.send_fds(end, [cpr.CARRIER], [fd])
    end.sendall(last)
    return last, fds


def test_descriptors_come_in_their_order(tmp_path: Path) -> None:
    state = cpr.parse(RECORDED)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    files = [
        os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR)
        for number in range(len(state.descriptors))
    ]
    got: list[int] = []
    with ours, theirs:
        received(state, files, theirs)
        theirs.shutdown(socket.SHUT_WR)
        data = asyncio.run(cpr_record.receive_state(ours, got))
    assert data == RECORDED
    names = [Path(f"/proc/self/fd/{fd}").readlink().name for fd in got]
    assert names == [str(number) for number in range(len(files))]
    for fd in (*files, *got):
        os.close(fd)


def test_a_stream_in_parts() -> None:
    stream = b"QEVM" + bytes(3000) + b"\0\x06" + struct.pack(">I", 8) + b'{"a": 1}'

    async def run() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            receiving = asyncio.ensure_future(cpr_record.receive_stream(ours))
            for at in range(0, len(stream), 700):
                theirs.sendall(stream[at : at + 700])
                await asyncio.sleep(0.001)
            # Not closed: QEMU waits.
            return await asyncio.wait_for(receiving, 5)

    assert asyncio.run(run()) == stream


def test_a_connection_that_breaks() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.sendall(b"QEVM")
            theirs.close()
            await cpr_record.receive_stream(ours)

    with pytest.raises(PkernfsError, match="stopped after 4 bytes"):
        asyncio.run(run())


def test_a_qemu_that_hangs_up_while_it_is_fed(tmp_path: Path) -> None:
    path = tmp_path / "main.sock"

    async def run() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.transport.abort()

        async with await asyncio.start_unix_server(hang_up, path):
            await asyncio.wait_for(cpr_replay.feed(path, bytes(1 << 22)), 10)

    asyncio.run(run())


def test_vectors() -> None:
    events = {cpr.VECTOR: {0: 10, 1: 11, 3: 13}, cpr.KVM_VECTOR: {0: 20, 3: 23}}
    assert cpr_replay.vectors(events) == [20, 11, -1, 23]
    assert cpr_replay.vectors({}) == []


@pytest.mark.parametrize(
    ("mode", "events", "indices"),
    [
        ("msix", {cpr.KVM_VECTOR: {0: 5}}, [uapi.VFIO_PCI_MSIX_IRQ_INDEX]),
        ("msi", {cpr.KVM_VECTOR: {0: 5}}, [uapi.VFIO_PCI_MSI_IRQ_INDEX]),
        ("msi", {}, []),
        (
            "msi",
            {cpr.VECTOR: {0: 5}, cpr.ERROR: {0: 6}, cpr.REQUEST: {0: 7}},
            [
                uapi.VFIO_PCI_MSI_IRQ_INDEX,
                uapi.VFIO_PCI_ERR_IRQ_INDEX,
                uapi.VFIO_PCI_REQ_IRQ_INDEX,
            ],
        ),
    ],
)
def test_what_vfio_is_told(
    mode: str, events: dict[str, dict[int, int]], indices: list[int]
) -> None:
    told = list(cpr_replay.requests(events, mode))
    assert [index for index, _ in told] == indices
    for index, argument in told:
        size, _, named, start, count = struct.unpack_from("<5I", argument)
        assert (size, named, start, count) == (len(argument), index, 0, 1)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    guest = Guest("web", Places(tmp_path / "store", tmp_path / "run"))
    guest.directory.mkdir(parents=True)
    config = GuestConfig(
        "web", 2 << 20, "/usr/bin/qemu", "11.1.3", "pc-q35-11.1", ("-m", "2"), "/", devices=(NIC,)
    )
    guest.write_config(config)
    assert guest.config() == config
    return guest


def record(guest: Guest) -> Record:
    guest.state.write_bytes(b"stream")
    guest.cpr_memory.write_bytes(b"memory")
    return Record(
        qemu_version="11.1.3",
        state=CprState((Descriptor("pc.bios", 0), Descriptor("vfio_group", 8)), b"\0"),
        kinds=(Kind.MEMORY, Kind.GROUP),
        pieces=(Piece(0, 4096, True, "pc.bios", 0),),
        blocks=(Block("pc.bios", 0, 6),),
        devices=(PassedDevice(NIC, 8, 0x507, "msix"),),
        stream_crc=zlib.crc32(b"stream"),
        memory_crc=zlib.crc32(b"memory"),
    )


def test_a_record_is_read_as_written(guest: Guest) -> None:
    written = record(guest)
    cpr_saved.write(guest, written)
    assert cpr_saved.read(guest) == written
    guest.forget_saved()
    assert [path.name for path in guest.directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["state", "cpr.mem"])
def test_a_file_that_changed(guest: Guest, name: str) -> None:
    cpr_saved.write(guest, record(guest))
    (guest.directory / name).write_bytes(b"Memory")
    with pytest.raises(PkernfsError, match="is not what was written"):
        cpr_saved.read(guest)


def test_a_record_that_is_incomplete(guest: Guest) -> None:
    cpr_saved.write(guest, record(guest))
    value = json.loads(guest.cpr_file.read_text())
    del value["pieces"]
    guest.cpr_file.write_text(json.dumps(value))
    with pytest.raises(PkernfsError, match="incomplete"):
        cpr_saved.read(guest)


def test_the_command_of_a_guest_with_a_device(guest: Guest) -> None:
    words = command.base_arguments("web", "/ram", 2 << 20, "pc-q35-11.1", "kvm", (), (NIC,))
    assert words[-2:] == ("-device", f"vfio-pci,host={NIC}")
    assert any(word.endswith(",aux-ram-share=on") for word in words)
    start = command.start_arguments(guest.config(), 3, 4, incoming=True)
    channel = {
        "channel-type": "cpr",
        "addr": {"transport": "socket", "type": "fd", "str": "4"},
    }
    assert start[-5:-1] == ["-incoming", "defer", "-S", "-incoming"]
    assert json.loads(start[-1]) == channel


@pytest.mark.parametrize("mode", ["msi", "msix"])
def test_interrupts_that_can_be_handed_over(tmp_path: Path, mode: str) -> None:
    vectors = tmp_path / "bus/pci/devices" / NIC / "msi_irqs"
    vectors.mkdir(parents=True)
    for number in (24, 25):
        (vectors / str(number)).write_text(f"{mode}\n")
    assert bind.interrupt_mode(NIC, tmp_path) == mode


@answers(
    phase="check",
    failure="a guest's driver uses INTx for its passed-through device",
    outcome="refused, nothing touched; doctor says it before",
)
def test_a_driver_that_uses_intx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bus/pci/devices" / NIC).mkdir(parents=True)
    assert bind.interrupt_mode(NIC, tmp_path) == ""
    monkeypatch.setattr(passthrough, "interrupt_mode", lambda bdf: "")
    with pytest.raises(PkernfsError, match=f"{NIC}: its driver .* no MSI or MSI-X vector"):
        passthrough.check_interrupts([NIC])
    passthrough.check_interrupts([])


def test_what_is_refused_beside_a_device() -> None:
    with pytest.raises(PkernfsError, match=r"10\.0\.2 can.t hand"):
        passthrough.check_qemu("10.0.2", ())
    with pytest.raises(UsageError, match="intel-iommu"):
        passthrough.check_qemu("11.1.3", ("-device", "intel-iommu,intremap=on"))
    with pytest.raises(UsageError, match="twice"):
        passthrough.names(["01:00.0", NIC])
    assert passthrough.names(["01:00.0"]) == (NIC,)
    passthrough.check_qemu("10.1.0", ("-device", "virtio-net-pci"))
