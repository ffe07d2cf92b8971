// SPDX-License-Identifier: GPL-2.0-only
/*
 * Is there a store in a range, or what is left of one? Memory that was in use before
 * is not zero, so that says nothing.
 */
#include <linux/sched.h>

#include "store_private.h"

/* The fields that no store is without, whatever a flipped bit did to the rest. */
static bool super_like(const struct pkernfs_super *super)
{
	return super->magic == cpu_to_le64(PKERNFS_MAGIC) ||
	       (super->block_shift == cpu_to_le32(PKERNFS_BLOCK_SHIFT) &&
		super->slot_shift == cpu_to_le32(PKERNFS_SLOT_SHIFT));
}

static bool header_like(const struct pkernfs_meta_header *header, u32 block)
{
	return header->magic == cpu_to_le64(PKERNFS_META_MAGIC) &&
	       header->block == cpu_to_le32(block);
}

/*
 * A store that was being made when the kernel ended: no copy has its magic number yet, and
 * there is nothing but what make_block0() writes.
 */
static bool half_made(void *block0)
{
	const struct pkernfs_meta_header *header =
		block0 + (PKERNFS_HEADER_SLOT << PKERNFS_SLOT_SHIFT);
	u32 slot;

	if (pkernfs_super_at(block0, PKERNFS_SUPER_A_SLOT)->magic ||
	    pkernfs_super_at(block0, PKERNFS_SUPER_B_SLOT)->magic || (u32)le64_to_cpu(header->next))
		return false;
	for (slot = PKERNFS_SUPER_A_SLOT + 2; slot < PKERNFS_HEADER_SLOT; slot++)
		if (slot != PKERNFS_SUPER_B_SLOT &&
		    !pkernfs_is_zero(block0 + (slot << PKERNFS_SLOT_SHIFT),
				     1 << PKERNFS_SLOT_SHIFT))
			return false;
	return true;
}

static bool in_block(void *addr, u32 block)
{
	bool found;

	found = header_like(addr + (PKERNFS_HEADER_SLOT << PKERNFS_SLOT_SHIFT), block);
	if (!block) {
		found = found || super_like(pkernfs_super_at(addr, PKERNFS_SUPER_A_SLOT)) ||
			super_like(pkernfs_super_at(addr, PKERNFS_SUPER_B_SLOT));
		found = found && !half_made(addr);
	}
	return found;
}

static int block_remains(struct pkernfs_backing *backing, u32 block)
{
	void *addr = backing->map_meta(backing, block);
	bool found;

	if (!addr)
		return -ENOMEM;
	found = in_block(addr, block);
	backing->unmap_meta(backing, block, addr);
	return found;
}

/* A store is known by its super blocks, or by the header of any of its metadata blocks. */
int pkernfs_store_remains(struct pkernfs_backing *backing, void *block0)
{
	u32 block;

	if (block0 && in_block(block0, 0))
		return 1;
	for (block = block0 ? 1 : 0; block < backing->nr_blocks; block++) {
		int found = block_remains(backing, block);

		if (found)
			return found;
		cond_resched();
	}
	return 0;
}
