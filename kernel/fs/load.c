// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opening a store: nothing that is found in the range is believed before it was
 * checked, and nothing is written before all of it was.
 *
 * What a crash left over stays for as long as the store is read-only. Its blocks count as
 * free by then, though a slot that names them has its commit word: nothing may be
 * allocated before pkernfs_store_repair().
 */
#include "store_private.h"

static const u32 super_slots[] = { PKERNFS_SUPER_A_SLOT, PKERNFS_SUPER_B_SLOT };

static bool super_valid(const struct pkernfs_super *super)
{
	return super->magic == cpu_to_le64(PKERNFS_MAGIC) &&
	       super->checksum == cpu_to_le32(pkernfs_super_checksum(super));
}

/* Copies the super block out of the range, from whichever copy is good. */
static int find_super(struct pkernfs_store *store, u8 *block0)
{
	struct pkernfs_super *a = (void *)block0 + (super_slots[0] << PKERNFS_SLOT_SHIFT);
	struct pkernfs_super *b = (void *)block0 + (super_slots[1] << PKERNFS_SLOT_SHIFT);
	const bool a_valid = super_valid(a), b_valid = super_valid(b);

	if (!a_valid && !b_valid) {
		if (a->magic != cpu_to_le64(PKERNFS_MAGIC) &&
		    b->magic != cpu_to_le64(PKERNFS_MAGIC) &&
		    pkernfs_store_remains(store->backing, block0) <= 0)
			return refuse(store, -EINVAL, "no store in this range: pkernfs make, or mount -o init, makes one");
		return damaged(store, "both super blocks are damaged");
	}
	if (a_valid && b_valid && memcmp(a, b, sizeof(*a)))
		return damaged(store, "the two super blocks differ");
	if (a_valid != b_valid)
		store->due.broken = a_valid ? b : a;
	memcpy(store->super, a_valid ? a : b, sizeof(*store->super));
	return 0;
}

static bool label_valid(const u8 *label, size_t size)
{
	const u8 *end = memchr(label, 0, size);

	return end && pkernfs_is_zero(end, label + size - end);
}

static int check_super(struct pkernfs_store *store)
{
	const struct pkernfs_super *super = store->super;
	const u64 size = (u64)store->nr_blocks << PKERNFS_BLOCK_SHIFT;

	if (le32_to_cpu(super->version) != PKERNFS_VERSION)
		return refuse(store, -EOPNOTSUPP, "version %u of the format is not known",
			      le32_to_cpu(super->version));
	if (le64_to_cpu(super->incompat) & ~(u64)PKERNFS_INCOMPAT_KNOWN)
		return refuse(store, -EOPNOTSUPP, "features %#llx are not known",
			      le64_to_cpu(super->incompat));
	if (le64_to_cpu(super->base) != store->backing->base)
		return refuse(store, -ENXIO, "store was made at %#llx, this range is at %#llx",
			      le64_to_cpu(super->base), store->backing->base);
	if (le64_to_cpu(super->size) != size)
		return refuse(store, -ENXIO, "store has %#llx bytes, this range %#llx",
			      le64_to_cpu(super->size), size);
	if (le32_to_cpu(super->block_shift) != PKERNFS_BLOCK_SHIFT ||
	    le32_to_cpu(super->slot_shift) != PKERNFS_SLOT_SHIFT ||
	    le32_to_cpu(super->page_blocks) >= store->nr_blocks ||
	    !label_valid(super->label, sizeof(super->label)) ||
	    super->reserved0 || !pkernfs_is_zero(super->reserved, sizeof(super->reserved)))
		return damaged(store, "a field of the super block can't be");
	store->page_blocks = le32_to_cpu(super->page_blocks);
	return 0;
}

static int check_header(struct pkernfs_store *store, const struct pkernfs_meta *meta)
{
	const struct pkernfs_meta_header *header = pkernfs_meta_header(meta);
	const u64 next = le64_to_cpu(header->next);

	if (header->magic != cpu_to_le64(PKERNFS_META_MAGIC) ||
	    header->block != cpu_to_le32(meta->block) ||
	    header->checksum != cpu_to_le32(pkernfs_header_checksum(store->super, header)) ||
	    !pkernfs_is_zero(header->reserved, sizeof(header->reserved)))
		return damaged(store, "block %u: its header is damaged", meta->block);
	if (next != pkernfs_header_next(store->super, meta->block, next))
		return damaged(store, "block %u: its link to the next is damaged", meta->block);
	return 0;
}

/* Block 0 is mapped already; the store takes the mapping over. */
static int load_meta(struct pkernfs_store *store, u32 block, void *addr)
{
	struct pkernfs_backing *backing = store->backing;
	struct pkernfs_meta *meta;

	if (!addr)
		addr = backing->map_meta(backing, block);
	if (!addr)
		return -ENOMEM;
	meta = pkernfs_meta_add(store, block, addr);
	if (!meta) {
		backing->unmap_meta(backing, block, addr);
		return -ENOMEM;
	}
	return check_header(store, meta);
}

static u32 next_block(const struct pkernfs_store *store)
{
	const struct pkernfs_meta *last =
		list_last_entry(&store->chain, struct pkernfs_meta, chain);

	return (u32)le64_to_cpu(pkernfs_meta_header(last)->next);
}

/* The chain can't be endless: no block is taken twice. */
static int load_chain(struct pkernfs_store *store)
{
	u32 block;
	int err;

	for (block = next_block(store); block; block = next_block(store)) {
		if (block >= store->nr_blocks)
			return damaged(store, "metadata block %u is out of range", block);
		if (!pkernfs_space_claim(store, block, 1))
			return damaged(store, "metadata block %u is taken already", block);
		err = load_meta(store, block, NULL);
		if (err)
			return err;
	}
	return 0;
}

static int each_clear(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		      void *data)
{
	struct pkernfs_node *node = pkernfs_node_find(store, le64_to_cpu(inode->ino));

	if (node && node->slot == slot)
		return 0;
	pkernfs_put64(&inode->commit, 0);
	pkernfs_slot_free(store, slot);
	return 0;
}

/* All that counts is known to be good: only now something is written. */
void pkernfs_store_repair(struct pkernfs_store *store)
{
	struct pkernfs_backing *backing = store->backing;
	struct pkernfs_repairs *due = &store->due;

	pkernfs_assert_locked(store);
	if (due->broken) {
		pkernfs_copy(due->broken, store->super, sizeof(*store->super));
		backing->say(backing, "repaired a super block from its copy");
	}
	if (due->nr_leftovers) {
		pkernfs_each_committed(store, each_clear, NULL);
		backing->say(backing, "cleared %llu slots that a crash had left over",
			     due->nr_leftovers);
	}
	*due = (struct pkernfs_repairs){ };
}

static int load_super(struct pkernfs_store *store)
{
	struct pkernfs_backing *backing = store->backing;
	void *block0;
	int err;

	if (store->nr_blocks < PKERNFS_MIN_BLOCKS || store->nr_blocks > PKERNFS_MAX_BLOCKS)
		return refuse(store, -EINVAL, "a range has %d to %d blocks of 2 MiB, not %u",
			      PKERNFS_MIN_BLOCKS, PKERNFS_MAX_BLOCKS, store->nr_blocks);
	block0 = backing->map_meta(backing, 0);
	if (!block0)
		return -ENOMEM;
	err = find_super(store, block0);
	if (!err)
		err = check_super(store);
	if (!err)
		err = pkernfs_space_init(store);
	if (err) {
		backing->unmap_meta(backing, 0, block0);
		return err;
	}
	pkernfs_space_claim(store, 0, 1);
	pkernfs_space_claim(store, 1, store->page_blocks);
	return load_meta(store, 0, block0);
}

/* Errors leave what was built up so far to pkernfs_store_close(). */
int pkernfs_load(struct pkernfs_store *store)
{
	int err;

	err = load_super(store);
	if (!err)
		err = load_chain(store);
	if (!err)
		err = pkernfs_load_live(store, &store->due.nr_leftovers);
	if (!err)
		err = pkernfs_load_tree(store);
	return err;
}
