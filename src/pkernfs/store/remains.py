# SPDX-License-Identifier: GPL-2.0-only
"""What is left of a store that can't be opened: decided as pkernfs_store_remains() does.

Memory that was in use before is not zero, so that says nothing. A store is known by its super
blocks, or by the header of any of its metadata blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pkernfs.store import layout

_MAGIC_AT: Final = layout.HEADER.offsets["magic"]
_MAGIC: Final = layout.META_MAGIC.to_bytes(layout.WORD.size, "little")

#: A copy of a slot by its number; shorter than a slot beyond the end.
Slots = Callable[[int], bytes]


def remains(slot: Slots, size: int) -> bool:
    """Does a range hold a store, or what is left of one?

    :param size: of the range, bytes.
    """
    first = _header_like(slot, 0) or any(_super_like(slot(n)) for n in layout.SUPER_SLOTS)
    if first and not _half_made(slot):
        return True
    return any(_header_like(slot, block) for block in range(1, size // layout.BLOCK_SIZE))


def _super_like(data: bytes) -> bool:
    if len(data) < layout.SUPER.size:
        return False
    values = layout.SUPER.unpack(data)
    shifts = (values["block_shift"], values["slot_shift"])
    return bool(
        values["magic"] == layout.MAGIC or shifts == (layout.BLOCK_SHIFT, layout.SLOT_SHIFT)
    )


def _header_like(slot: Slots, block: int) -> bool:
    data = slot(block * layout.SLOTS_PER_BLOCK + layout.HEADER_SLOT)
    # Taking a header apart costs more than to see that it is none.
    if len(data) < layout.HEADER.size or not data.startswith(_MAGIC, _MAGIC_AT):
        return False
    return bool(layout.HEADER.unpack(data)["block"] == block)


def _half_made(slot: Slots) -> bool:
    """A store whose making was interrupted: nothing but what make() writes, and no magic."""
    supers = [slot(number) for number in layout.SUPER_SLOTS]
    header = layout.HEADER.unpack(slot(layout.HEADER_SLOT))
    if any(layout.SUPER.unpack(data)["magic"] for data in supers) or header["next"] & 0xFFFFFFFF:
        return False
    others = set(range(layout.SLOTS_PER_BLOCK))
    others -= {*layout.SUPER_SLOTS, layout.SUPER_SLOTS[0] + 1, layout.HEADER_SLOT}
    return all(layout.is_zero(slot(number)) for number in others)
