# SPDX-License-Identifier: GPL-2.0-only
"""The chain of metadata blocks: block 0 and whatever is linked from it."""

from __future__ import annotations

from pkernfs.store import layout
from pkernfs.store.findings import Code, Report
from pkernfs.store.image import Image
from pkernfs.store.super import SuperBlock

_LOW_HALF = (1 << 32) - 1


def read_chain(image: Image, store: SuperBlock, blocks: int, report: Report) -> list[int]:
    """The metadata blocks in their order, as far as the links can be trusted.

    :param blocks: of the store and within the image; links that leave it are findings.
    """
    uuid = store.uuid.bytes
    chain: list[int] = []
    seen: set[int] = set()
    block = 0
    while True:
        chain.append(block)
        seen.add(block)
        number = layout.slot_of(block, layout.HEADER_SLOT)
        slot = image.slot(number)
        _check_header(uuid, block, slot, report)
        word = layout.WORD.unpack_from(slot)[0]
        following = word & _LOW_HALF
        if word != layout.next_word(uuid, block, following):
            report.add(Code.CHAIN_NEXT, f"link of metadata block {block} is damaged", slot=number)
        elif following == 0:
            return chain
        elif not store.page_blocks < following < blocks:
            text = f"metadata block {block} links to block {following}, which can't be one"
            report.add(Code.CHAIN_RANGE, text, slot=number)
        elif following in seen:
            text = f"metadata block {block} links back to block {following}"
            report.add(Code.CHAIN_CYCLE, text, slot=number)
        else:
            block = following
            continue
        return chain


def _check_header(uuid: bytes, block: int, slot: bytes, report: Report) -> None:
    header = layout.HEADER.unpack(slot)
    if header["magic"] != layout.META_MAGIC:
        fault = "no magic number"
    elif header["checksum"] != layout.header_checksum(uuid, slot):
        fault = "wrong checksum"
    elif header["block"] != block:
        fault = f"says block {header['block']}"
    elif not layout.is_zero(header["reserved"]):
        fault = "reserved bytes that are not zero"
    else:
        return
    number = layout.slot_of(block, layout.HEADER_SLOT)
    report.add(Code.HEADER, f"header of metadata block {block}: {fault}", slot=number)
