# SPDX-License-Identifier: GPL-2.0-only
"""Before the kexec: be the new QEMU for a guest's QEMU, and take down what it hands over.

QEMU migrates in the mode ``cpr-transfer`` with a return path: when it has sent everything it
waits for the other side's word (close_return_path_on_source() in migration/migration.c). That
word never comes. Either the next kernel starts, or the migration is cancelled, and QEMU
gives its devices their interrupts and its memory its addresses back (the notifiers of
hw/vfio/cpr.c and cpr-legacy.c) and runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pkernfs.errors import PkernfsError
from pkernfs.vfio import bind, uapi
from pkernfs.vfio.device import Device
from pkernfs.vmm import cpr, cpr_memory, cpr_saved, passthrough
from pkernfs.vmm.config import Guest
from pkernfs.vmm.cpr import CprState, Kind
from pkernfs.vmm.monitor import Moment, Monitor

#: SCM_MAX_FD: descriptors in one message (include/net/scm.h).
_MOST_FDS = 253
_PART = 1 << 20


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            listener.listen(1)
            listener.setblocking(False)
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def _readable(end: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def say() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(end, say)
    try:
        await ready
    finally:
        loop.remove_reader(end)


async def receive_state(end: socket.socket, fds: list[int]) -> bytes:
    """Everything up to the end of a CPR stream; its descriptors are added to ``fds``."""
    data = b""
    while True:
        try:
            part, found, _, _ = socket.recv_fds(end, _PART, _MOST_FDS)
        except BlockingIOError:
            await _readable(end)
            continue
        fds += found
        if not part:
            return data
        data += part


async def receive_stream(end: socket.socket) -> bytes:
    """A migration stream, until it is complete; QEMU then waits.

    :raises PkernfsError: QEMU gave up before.
    """
    loop = asyncio.get_running_loop()
    data = bytearray()
    while not (data.endswith(b"}") and cpr.complete(data)):
        part = await loop.sock_recv(end, _PART)
        if not part:
            raise PkernfsError(f"QEMU stopped after {len(data)} bytes of its state")
        data += part
    return bytes(data)


async def _streams(session: Monitor, fds: list[int]) -> tuple[CprState, bytes]:
    """Both streams. QEMU waits on the connection that ``session.undo`` closes."""
    runtime, loop = session.guest.runtime, asyncio.get_running_loop()
    paths = {"main": runtime / "main.sock", "cpr": runtime / "cpr.sock"}
    with contextlib.ExitStack() as listening:
        ends = {name: listening.enter_context(_listening(path)) for name, path in paths.items()}
        await session.execute("migrate", cpr.channels(**paths))
        end, _ = await loop.sock_accept(ends["cpr"])
        # Closing it is what QEMU waits for before it goes on (cpr_transfer_source_active()).
        with end:
            end.setblocking(False)
            state = cpr.parse(await receive_state(end, fds))
        if len(fds) != len(state.descriptors):
            raise PkernfsError(f"QEMU passed {len(fds)} of {len(state.descriptors)} descriptors")
        main, _ = await loop.sock_accept(ends["main"])
        session.undo.callback(main.close)
        main.setblocking(False)
        return state, await receive_stream(main)


def _write_blocks(path: Path, named: Sequence[tuple[str, int]]) -> tuple[cpr_saved.Block, ...]:
    """Write the content of QEMU's memory descriptors to a file, one after the other."""
    blocks = []
    with path.open("wb") as file:
        for name, fd in named:
            size = os.fstat(fd).st_size
            offset = file.tell()
            while (done := file.tell() - offset) < size:
                file.write(os.pread(fd, min(_PART, size - done), done))
            blocks.append(cpr_saved.Block(name, offset, size))
        file.flush()
        os.fsync(file.fileno())
    return tuple(blocks)


def _describe(bdf: str, fd: int) -> cpr_saved.PassedDevice:
    """What the next kernel has to be told of a device that is open as ``fd``."""
    place = (
        Device(fd, bdf).region_info(uapi.VFIO_PCI_CONFIG_REGION_INDEX).offset + cpr_saved.COMMAND
    )
    command = int.from_bytes(os.pread(fd, 2, place), "little")
    passthrough.check_interrupts([bdf])
    mode = bind.interrupt_mode(bdf)
    return cpr_saved.PassedDevice(bdf, bind.iommu_group(bdf), command, mode)


def _record(
    guest: Guest, stream: bytes, state: CprState, fds: Sequence[int], table: str
) -> cpr_saved.Record:
    config = guest.config()
    targets = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds]
    kinds = tuple(
        cpr.kind_of(descriptor, target, config.devices)
        for descriptor, target in zip(state.descriptors, targets, strict=True)
    )
    found = [*zip(state.descriptors, kinds, fds, strict=True)]
    devices = tuple(_describe(item.name, fd) for item, kind, fd in found if kind is Kind.DEVICE)
    if {device.bdf for device in devices} != set(config.devices):
        raise PkernfsError(f"QEMU passes on {len(devices)} of {len(config.devices)} devices")
    memory = [(item.name, fd) for item, kind, fd in found if kind is Kind.MEMORY]
    pieces = tuple(cpr_memory.view(table))
    for piece in pieces:
        cpr_memory.owner(piece, [name for name, _ in memory])
    blocks = _write_blocks(guest.cpr_memory, memory)
    return cpr_saved.Record(
        qemu_version=config.qemu_version,
        state=state,
        kinds=kinds,
        pieces=pieces,
        blocks=blocks,
        devices=devices,
        stream_crc=zlib.crc32(stream),
        memory_crc=cpr_saved.crc(guest.cpr_memory),
    )


def _write_stream(path: Path, stream: bytes) -> None:
    with path.open("wb") as file:
        file.write(stream)
        file.flush()
        os.fsync(file.fileno())


async def save(
    session: Monitor,
    path: Path,
    timeout: float,
    saw: Callable[[bool], None] = lambda _: None,
) -> tuple[Moment | None, Moment]:
    """Stop a guest with passed-through devices and take its state down.

    QEMU is left waiting; :func:`pkernfs.vmm.monitor.go_on` cancels that.

    :param path: file for the migration stream; the rest lies beside it.
    :param timeout: seconds that all of it may take.
    :param saw: as for :func:`pkernfs.vmm.monitor.save`.
    :returns: as :func:`pkernfs.vmm.monitor.save`.
    :raises PkernfsError: it failed.
    """
    session.forget_events()
    guest, run, stopped = session.guest, await session.is_running(), None
    saw(run)
    fds: list[int] = []
    try:
        async with asyncio.timeout(timeout):
            if run:
                # Before QEMU lists its descriptors: a vector that the guest turns on after
                # that would be missing.
                await session.execute("stop")
                stopped = await session.wait_for(timeout, "STOP")
            state, stream = await _streams(session, fds)
            answer = await session.execute(
                "human-monitor-command", {"command-line": "info mtree -f"}
            )
        _write_stream(path, stream)
        cpr_saved.write(guest, _record(guest, stream, state, fds, str(answer)))
    except TimeoutError as error:
        raise PkernfsError(
            f"guest {guest.name}: its state was not complete within {timeout:g} s"
        ) from error
    except PkernfsError as error:
        what = f"guest {guest.name}: its state can't be saved: {error.what}"
        raise PkernfsError(what, error.hint) from error
    except OSError as error:
        raise PkernfsError(f"guest {guest.name}: its state can't be saved: {error}") from error
    finally:
        # QEMU has its own; but the device's must not be the last one, closed too early.
        for fd in fds:
            os.close(fd)
    return stopped, Moment("saved", time.time_ns())
