# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's CPR state: what QEMU 11.1.3 wrote, and what was never written by any."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkernfs.errors import PkernfsError
from pkernfs.vmm import cpr
from pkernfs.vmm.cpr import CprState, Descriptor, Kind

NIC = "0000:01:00.0"
#: As recorded from QEMU 11.1.3 with an e1000e whose guest uses three MSI-X vectors.
RECORDED = bytes.fromhex(
    "514350520000000101000000152f726f6d406574632f616370692f7461626c6573000000000020010000001b30"
    "3030303a30313a30302e305f6b766d5f696e746572727570740000000002200100000017303030303a30313a30"
    "302e305f696e74657272757074000000000020010000001b303030303a30313a30302e305f6b766d5f696e7465"
    "72727570740000000001200100000008"
    "70632e62696f73"
    "000000000020010000000b7666696f5f67726f7570000000000820010000000770632e726f6d00000000002001"
    "00000017303030303a30313a30302e305f696e7465727275707400000000022001000000132f726f6d40657463"
    "2f616370692f72736470000000000020010000000d303030303a30313a30302e30000000000020010000001a30"
    "3030303a30313a30302e305f6572725f6e6f74696669657200000000002001000000197666696f5f636f6e7461"
    "696e65725f666f725f67726f757000000000082001000000162f726f6d406574632f7461626c652d6c6f616465"
    "72000000000020010000001a303030303a30313a30302e305f7265715f6e6f7469666965720000000000200100"
    "000017303030303a30313a30302e305f696e74657272757074000000000120010000001b303030303a30313a30"
    "302e305f6b766d5f696e7465727275707400000000002000051543707253746174652f7666696f206465766963"
    "65730000000100"
)


def test_what_qemu_wrote() -> None:
    state = cpr.parse(RECORDED)
    assert len(state.descriptors) == 16
    assert state.descriptors[0] == Descriptor("/rom@etc/acpi/tables", 0)
    assert Descriptor("vfio_group", 8) in state.descriptors
    vectors = sorted(
        (item.number, item.event_of(NIC))
        for item in state.descriptors
        if item.name.endswith("interrupt")
    )
    pairs = [(n, kind) for n in range(3) for kind in (cpr.VECTOR, cpr.KVM_VECTOR)]
    assert vectors == sorted(pairs)
    assert cpr.build(state) == RECORDED


@given(st.integers(min_value=0, max_value=len(RECORDED) - 1))
def test_cut_short(size: int) -> None:
    try:
        state = cpr.parse(RECORDED[:size])
    except PkernfsError:
        return
    # The end of the list is an end as well: a state without subsections.
    assert state.tail == b"\0"
    assert RECORDED[size:].startswith(b"\x05")


@given(st.integers(0, len(RECORDED) - 1), st.integers(1, 255))
def test_another_byte_is_seen_or_kept(at: int, change: int) -> None:
    """Never anything but a refusal, or a state that is written as it was read."""
    data = bytearray(RECORDED)
    data[at] ^= change
    try:
        state = cpr.parse(bytes(data))
    except PkernfsError:
        return
    assert cpr.build(state) == data


@given(st.binary(max_size=200))
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(PkernfsError):
        cpr.parse(data)


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(st.lists(st.builds(Descriptor, _NAMES, st.integers(-(1 << 31), (1 << 31) - 1)), max_size=9))
def test_round_trip(descriptors: list[Descriptor]) -> None:
    state = CprState(tuple(descriptors), b"\0")
    assert cpr.parse(cpr.build(state)) == state
    assert len(cpr.pieces(state)) == len(descriptors) + 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"QEVM" + RECORDED[4:], "no CPR state"),
        (RECORDED[:4] + struct.pack(">i", 2) + RECORDED[8:], "version 2, this pkernfs knows"),
        (RECORDED + b"\0", "a part that this version does not know"),
        (RECORDED[:-1] + b"\x01", "a part that this version does not know"),
        (RECORDED.replace(b"vfio devices", b"luo sessions"), "does not know"),
        (RECORDED.replace(b"\0\x20\x01", b"\0\x21\x01"), "as this version knows it"),
    ],
)
def test_other_versions(data: bytes, says: str) -> None:
    with pytest.raises(PkernfsError, match=says):
        cpr.parse(data)


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("pc.bios", "/memfd:pc.bios (deleted)", Kind.MEMORY),
        ("vfio_group", "/dev/vfio/8", Kind.GROUP),
        ("vfio_container_for_group", "/dev/vfio/vfio", Kind.CONTAINER),
        (NIC, "anon_inode:[vfio-device]", Kind.DEVICE),
        (f"{NIC}_kvm_interrupt", "anon_inode:[eventfd]", Kind.EVENT),
        (f"{NIC}_intx-unmask", "anon_inode:[eventfd]", Kind.EVENT),
    ],
)
def test_kinds(name: str, target: str, kind: Kind) -> None:
    assert cpr.kind_of(Descriptor(name, 0), target, [NIC]) is kind


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("net0", "/dev/net/tun"),
        ("0000:02:00.0", "anon_inode:[vfio-device]"),
        ("0000:02:00.0_interrupt", "anon_inode:[eventfd]"),
        (f"{NIC}_new_notifier", "anon_inode:[eventfd]"),
        ("vfio_group", "/memory"),
        ("iommufd", "/dev/iommu"),
    ],
)
def test_what_cant_be_made_again(name: str, target: str) -> None:
    with pytest.raises(PkernfsError, match="can't be made again"):
        cpr.kind_of(Descriptor(name, 0), target, [NIC])


def _stream(
    description: bytes, before: bytes = b"QEVM\0\0\0\x03\x06\x06 opaque \x06\0\0\0\x01{"
) -> bytes:
    return before + b"\0\x06" + len(description).to_bytes(4, "big") + description


@given(st.binary(max_size=64), st.integers(1, 40))
def test_a_stream_is_complete_at_its_end_only(before: bytes, cut: int) -> None:
    whole = _stream(b'{"page_size": 4096, "devices": [{"name": "x"}, {"name": "y"}]}', before)
    assert cpr.complete(whole)
    assert not cpr.complete(whole[:-cut])


def test_a_description_inside_of_a_description() -> None:
    assert cpr.complete(_stream(b'{"a": "\x00\x06\x00\x00\x00\x02{}", "b": {}}'))
