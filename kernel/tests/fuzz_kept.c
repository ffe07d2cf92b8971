// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must not change in a damaged store: a mount writes nothing but zero commit words
 * and a super block, what is damaged stays as it is to the byte, and nobody gets a block
 * that no good inode owned.
 */
#include "fuzz.h"

static u8 image[NR_BLOCKS * BLOCK];

static u64 metadata_of(struct base *base)
{
	struct pkernfs_store *store = pkn_store(base->n);
	struct pkernfs_meta *meta;
	u64 blocks = 0;

	list_for_each_entry(meta, &store->chain, chain)
		blocks |= 1ULL << meta->block;
	return blocks;
}

static u64 owned_by_files(struct base *base)
{
	struct pkernfs_store *store = pkn_store(base->n);
	struct pkernfs_node *node;
	struct pkernfs_run run;
	u64 blocks = 0;
	u32 i;

	for (node = pkernfs_node_lowest(store); node; node = pkernfs_node_higher(node)) {
		for (i = 0; i < le32_to_cpu(node->inode->nr_extents); i++) {
			pkernfs_extent_get(store, node->inode, i, &run);
			/* Nor may two good inodes own one block. */
			check(!(blocks & ((1ULL << run.count) - 1) << run.block));
			blocks |= ((1ULL << run.count) - 1) << run.block;
		}
	}
	return blocks;
}

/* Metadata is in the blocks that the bases have it in; anything else is all zero or data. */
void keep_image(struct base *base, struct kept *kept)
{
	u32 i;

	kept->image = image;
	kept->metadata = 0;
	for (i = 0; i < base->nr_headers; i++) {
		const u32 block = base->headers[i] / PKERNFS_SLOTS_PER_BLOCK;

		kept->metadata |= 1ULL << block;
		memcpy(image + block * BLOCK, pkn_memory(base->n) + block * BLOCK, BLOCK);
	}
}

static bool is_changed(struct base *base, u32 slot, u32 from)
{
	return memcmp(image + slot * SLOT + from, slot_at(base, slot) + from, SLOT - from);
}

void check_untouched(struct base *base, struct kept *kept)
{
	u32 slot;

	for (slot = 0; slot < NR_BLOCKS * PKERNFS_SLOTS_PER_BLOCK; slot++)
		if (kept->metadata >> slot / PKERNFS_SLOTS_PER_BLOCK & 1)
			check(!is_changed(base, slot, 0));
}

void keep_owned(struct base *base, struct kept *kept)
{
	struct pkernfs_store *store = pkn_store(base->n);
	struct pkernfs_meta *meta;
	u32 i;

	kept->nr_damaged = store->damage.nr_quarantined;
	kept->owned = metadata_of(base) | owned_by_files(base);
	list_for_each_entry(meta, &store->chain, chain) {
		for (i = 0; i < PKERNFS_SLOTS_PER_BLOCK; i++) {
			const u32 slot = meta->block * PKERNFS_SLOTS_PER_BLOCK + i;

			if (slot == PKERNFS_SUPER_A_SLOT || slot == PKERNFS_SUPER_B_SLOT)
				continue;
			check(!is_changed(base, slot, sizeof(__le64)));
			if (is_changed(base, slot, 0))
				check(!*(u64 *)slot_at(base, slot) && !test_bit(i, meta->damaged));
		}
	}
}

void check_kept(struct base *base, struct kept *kept)
{
	struct pkernfs_store *store = pkn_store(base->n);
	struct pkernfs_meta *meta;
	u32 nr_damaged = 0, i;

	list_for_each_entry(meta, &store->chain, chain) {
		for (i = 0; i < PKERNFS_SLOTS_PER_BLOCK; i++) {
			if (!test_bit(i, meta->damaged))
				continue;
			nr_damaged++;
			check(!is_changed(base, meta->block * PKERNFS_SLOTS_PER_BLOCK + i, 0));
		}
	}
	check(nr_damaged == kept->nr_damaged && nr_damaged == store->damage.nr_quarantined);
	if (nr_damaged)
		check(!((metadata_of(base) | owned_by_files(base)) & ~kept->owned));
}
