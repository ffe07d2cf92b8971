// SPDX-License-Identifier: GPL-2.0-only
/*
 * Metadata blocks and the free slots in them: a bitmap per block, never stored.
 * Blocks are added one at a time at the end of their chain, and an empty one is
 * taken out again while enough slots remain free.
 */
#include "store_private.h"

static void meta_drop(struct pkernfs_store *store, struct pkernfs_meta *meta)
{
	list_del(&meta->chain);
	rb_erase(&meta->by_block, &store->metas);
	store->nr_metas--;
	store->backing->unmap_meta(store->backing, meta->block, meta->addr);
	kfree(meta);
}

void pkernfs_slots_destroy(struct pkernfs_store *store)
{
	while (!list_empty(&store->chain))
		meta_drop(store, list_first_entry(&store->chain, struct pkernfs_meta, chain));
}

struct pkernfs_meta *pkernfs_meta_find(struct pkernfs_store *store, u32 block)
{
	struct rb_node *at = store->metas.rb_node;

	while (at) {
		struct pkernfs_meta *meta = rb_entry(at, struct pkernfs_meta, by_block);

		if (block == meta->block)
			return meta;
		at = block < meta->block ? at->rb_left : at->rb_right;
	}
	return NULL;
}

static void meta_insert(struct pkernfs_store *store, struct pkernfs_meta *new)
{
	struct rb_node **at = &store->metas.rb_node, *parent = NULL;

	while (*at) {
		parent = *at;
		at = new->block < rb_entry(parent, struct pkernfs_meta, by_block)->block ?
			&parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&new->by_block, parent, at);
	rb_insert_color(&new->by_block, &store->metas);
}

static bool meta_empty(const struct pkernfs_meta *meta)
{
	return meta->block && meta->nr_free == PKERNFS_SLOTS_PER_BLOCK - 1;
}

/* Takes over a mapped block as the last of the chain, all its ordinary slots free. */
struct pkernfs_meta *pkernfs_meta_add(struct pkernfs_store *store, u32 block, void *addr)
{
	struct pkernfs_meta *meta = kzalloc(sizeof(*meta), PKERNFS_GFP);

	if (!meta)
		return NULL;
	meta->block = block;
	meta->addr = addr;
	if (!list_empty(&store->chain))
		meta->order = list_last_entry(&store->chain, struct pkernfs_meta, chain)->order + 1;
	__set_bit(PKERNFS_HEADER_SLOT, meta->used);
	if (!block) {
		__set_bit(PKERNFS_SUPER_A_SLOT, meta->used);
		__set_bit(PKERNFS_SUPER_B_SLOT, meta->used);
	}
	meta->nr_free = PKERNFS_SLOTS_PER_BLOCK -
			bitmap_weight(meta->used, PKERNFS_SLOTS_PER_BLOCK);
	store->slots_free += meta->nr_free;
	list_add_tail(&meta->chain, &store->chain);
	meta_insert(store, meta);
	store->nr_metas++;
	store->nr_empty += meta_empty(meta);
	if (!store->roomy)
		store->roomy = meta;
	return meta;
}

/* Links or unlinks a block with one store to the one before it. */
static void set_next(struct pkernfs_store *store, struct pkernfs_meta *meta, u32 next)
{
	pkernfs_put64(&pkernfs_meta_header(meta)->next,
		      pkernfs_header_next(store->super, meta->block, next));
}

static void write_header(struct pkernfs_store *store, struct pkernfs_meta *meta)
{
	struct pkernfs_meta_header *header = (void *)store->page;

	memset(header, 0, sizeof(*header));
	header->next = cpu_to_le64(pkernfs_header_next(store->super, meta->block, 0));
	header->magic = cpu_to_le64(PKERNFS_META_MAGIC);
	header->block = cpu_to_le32(meta->block);
	header->checksum = cpu_to_le32(pkernfs_header_checksum(store->super, header));
	pkernfs_copy(pkernfs_meta_header(meta), header, sizeof(*header));
}

/* One more metadata block: a step of its own, seen by nobody. */
static int meta_grow(struct pkernfs_store *store)
{
	struct pkernfs_backing *backing = store->backing;
	const struct pkernfs_wish wish = { .count = 1 };
	struct pkernfs_meta *last, *meta;
	void *addr;
	u32 block;
	int err;

	if (!pkernfs_space_take(store, &wish, &block))
		return -ENOSPC;
	err = backing->zero(backing, block, 1);
	if (err)
		goto untake;
	err = -ENOMEM;
	addr = backing->map_meta(backing, block);
	if (!addr)
		goto untake;
	last = list_last_entry(&store->chain, struct pkernfs_meta, chain);
	meta = pkernfs_meta_add(store, block, addr);
	if (!meta)
		goto unmap;
	write_header(store, meta);
	set_next(store, last, block);
	return 0;
unmap:
	backing->unmap_meta(backing, block, addr);
untake:
	pkernfs_space_untake(store, block, 1);
	return err;
}

static void meta_give_back(struct pkernfs_store *store, struct pkernfs_meta *meta)
{
	struct pkernfs_meta *before = list_prev_entry(meta, chain);
	u32 block = meta->block;
	u32 next = 0;

	if (!list_is_last(&meta->chain, &store->chain))
		next = list_next_entry(meta, chain)->block;
	set_next(store, before, next);
	if (store->roomy == meta)
		store->roomy = before;
	store->slots_free -= meta->nr_free;
	store->nr_empty--;
	meta_drop(store, meta);
	/* Nobody but this file ever mapped it. */
	pkernfs_space_untake(store, block, 1);
}

void *pkernfs_slot_addr(struct pkernfs_store *store, u32 slot)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, slot / PKERNFS_SLOTS_PER_BLOCK);

	if (!meta)
		return NULL;
	return meta->addr + ((slot % PKERNFS_SLOTS_PER_BLOCK) << PKERNFS_SLOT_SHIFT);
}

static void slots_taken(struct pkernfs_store *store, struct pkernfs_meta *meta)
{
	store->nr_empty -= meta_empty(meta);
	meta->nr_free--;
	store->slots_free--;
}

bool pkernfs_slot_is_free(struct pkernfs_store *store, u32 slot)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, slot / PKERNFS_SLOTS_PER_BLOCK);

	return meta && !test_bit(slot % PKERNFS_SLOTS_PER_BLOCK, meta->used);
}

/* Marks a slot as used; false if it is already or is none. */
bool pkernfs_slot_claim(struct pkernfs_store *store, u32 slot)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, slot / PKERNFS_SLOTS_PER_BLOCK);

	if (!meta || __test_and_set_bit(slot % PKERNFS_SLOTS_PER_BLOCK, meta->used))
		return false;
	slots_taken(store, meta);
	return true;
}

/*
 * What needs no more slots in the end than it had before, or gives back space,
 * must work on a full store as well: rename, chmod, truncate, punch. As a change
 * writes new slots before it frees the old ones, some slots are kept for these:
 * enough for the file with the most extent pages, and one page more for a punch.
 */
static u64 reserved_for(const struct pkernfs_store *store, u32 nr_pages)
{
	return PKERNFS_RESERVE + max(store->max_pages, nr_pages) + 1;
}

u64 pkernfs_slots_reserved(const struct pkernfs_store *store)
{
	return reserved_for(store, 0);
}

/* How many slots must be free for a step that needs and later gives back so many. */
static u64 slots_wanted(const struct pkernfs_store *store, u32 need, u32 back, u32 nr_pages,
			bool shrinks)
{
	u64 wanted = need;

	if (!shrinks && need > back)
		wanted = max(wanted, need - back + reserved_for(store, nr_pages));
	return wanted;
}

/* The metadata blocks that pkernfs_slots_reserve() would have to add. */
static u32 blocks_wanted(const struct pkernfs_store *store, u32 need, u32 back, u32 nr_pages,
			 bool shrinks)
{
	const u64 wanted = slots_wanted(store, need, back, nr_pages, shrinks);

	if (wanted <= store->slots_free)
		return 0;
	return DIV_ROUND_UP_ULL(wanted - store->slots_free, PKERNFS_SLOTS_PER_BLOCK - 1);
}

/*
 * Sees to it that a step finds its slots: need new ones, of which back are given
 * back in the end. nr_pages: extent pages that the file will have. What shrinks
 * may use the reserve for good.
 */
int pkernfs_slots_reserve(struct pkernfs_store *store, u32 need, u32 back, u32 nr_pages,
			  bool shrinks)
{
	u32 blocks = blocks_wanted(store, need, back, nr_pages, shrinks);
	u32 added;
	int err;

	if (blocks > store->nr_free)
		return pkernfs_no_space(store);
	for (added = 0; added < blocks; added++) {
		err = meta_grow(store);
		if (err)
			goto shrink;
	}
	store->max_pages = max(store->max_pages, nr_pages);
	return 0;
shrink:
	while (added--)
		meta_give_back(store, list_last_entry(&store->chain, struct pkernfs_meta, chain));
	return err;
}

/* After pkernfs_slots_reserve(): there is one. */
u32 pkernfs_slot_take(struct pkernfs_store *store, void **addr)
{
	struct pkernfs_meta *meta = store->roomy;
	u32 index;

	while (!meta->nr_free)
		meta = list_next_entry(meta, chain);
	store->roomy = meta;
	index = find_first_zero_bit(meta->used, PKERNFS_SLOTS_PER_BLOCK);
	__set_bit(index, meta->used);
	slots_taken(store, meta);
	*addr = meta->addr + (index << PKERNFS_SLOT_SHIFT);
	return meta->block * PKERNFS_SLOTS_PER_BLOCK + index;
}

void pkernfs_slot_free(struct pkernfs_store *store, u32 slot)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, slot / PKERNFS_SLOTS_PER_BLOCK);

	__clear_bit(slot % PKERNFS_SLOTS_PER_BLOCK, meta->used);
	meta->nr_free++;
	store->slots_free++;
	store->nr_empty += meta_empty(meta);
	if (meta->order < store->roomy->order)
		store->roomy = meta;
}

/*
 * After a step that freed something: gives empty metadata blocks back, or fills up
 * the reserve. That it can't do either is no failure.
 */
void pkernfs_slots_settle(struct pkernfs_store *store)
{
	const u64 reserved = pkernfs_slots_reserved(store);
	const u64 keep = reserved + PKERNFS_SLACK + PKERNFS_SLOTS_PER_BLOCK - 1;
	struct pkernfs_meta *meta, *before;

	while (store->slots_free < reserved && store->nr_free)
		if (meta_grow(store))
			return;
	list_for_each_entry_safe_reverse(meta, before, &store->chain, chain) {
		if (!store->nr_empty || store->slots_free < keep)
			return;
		if (meta_empty(meta))
			meta_give_back(store, meta);
	}
}
