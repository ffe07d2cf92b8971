// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opening a store: nothing that is found in the range is believed before it was
 * checked, and nothing is written before all of it was.
 */
#include <linux/sort.h>

#include "store_private.h"

static const u32 super_slots[] = { PKERNFS_SUPER_A_SLOT, PKERNFS_SUPER_B_SLOT };

/* What was found out on the way. */
struct loading {
	struct pkernfs_super *broken;	/* the copy to be repaired, or NULL */
	u64 nr_committed;		/* slots, of which ... */
	u64 nr_leftovers;		/* ... do not count */
};

static bool super_valid(const struct pkernfs_super *super)
{
	return super->magic == cpu_to_le64(PKERNFS_MAGIC) &&
	       super->checksum == cpu_to_le32(pkernfs_super_checksum(super));
}

/* Copies the super block out of the range, from whichever copy is good. */
static int find_super(struct pkernfs_store *store, u8 *block0, struct loading *loading)
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
		loading->broken = a_valid ? b : a;
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

/* Of two slots of one inode the later one counts. */
static int load_inode(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		      struct loading *loading)
{
	struct pkernfs_node *node;
	int err;

	err = pkernfs_check_slot(store, inode, slot);
	if (err)
		return err;
	pkernfs_slot_claim(store, slot);
	loading->nr_committed++;
	store->next_seq = max(store->next_seq, le64_to_cpu(inode->seq) + 1);

	node = pkernfs_node_find(store, le64_to_cpu(inode->ino));
	if (node) {
		loading->nr_leftovers++;
		if (le64_to_cpu(inode->seq) > le64_to_cpu(node->inode->seq)) {
			node->inode = inode;
			node->slot = slot;
		}
		return 0;
	}
	node = pkernfs_node_new(store, slot, inode);
	if (!node)
		return -ENOMEM;
	pkernfs_node_insert(store, node);
	return 0;
}

typedef int (*each_fn)(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		       void *data);

static bool is_fixed(u32 slot)
{
	return slot % PKERNFS_SLOTS_PER_BLOCK == PKERNFS_HEADER_SLOT ||
	       slot == PKERNFS_SUPER_A_SLOT || slot == PKERNFS_SUPER_B_SLOT;
}

/* Calls fn for every slot with a commit word. */
static int each_committed(struct pkernfs_store *store, each_fn fn, void *data)
{
	struct pkernfs_meta *meta;
	int err;
	u32 i;

	list_for_each_entry(meta, &store->chain, chain) {
		for (i = 0; i < PKERNFS_SLOTS_PER_BLOCK; i++) {
			const u32 slot = meta->block * PKERNFS_SLOTS_PER_BLOCK + i;
			struct pkernfs_inode *inode =
				(void *)(meta->addr + (i << PKERNFS_SLOT_SHIFT));

			if (is_fixed(slot) || !inode->commit)
				continue;
			err = fn(store, inode, slot, data);
			if (err)
				return err;
		}
	}
	return 0;
}

static int each_load(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		     void *data)
{
	return load_inode(store, inode, slot, data);
}

static int each_seq(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		    void *data)
{
	u64 **next = data;

	*(*next)++ = le64_to_cpu(inode->seq);
	return 0;
}

static int compare_seq(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* No two slots were ever committed with the same sequence number. */
static int check_seqs(struct pkernfs_store *store, u64 count)
{
	u64 *seqs = kvmalloc_array(count, sizeof(*seqs), PKERNFS_GFP);
	u64 *next = seqs;
	int err = 0;
	u64 i;

	if (!seqs)
		return -ENOMEM;
	each_committed(store, each_seq, &next);
	sort(seqs, count, sizeof(*seqs), compare_seq, NULL);
	for (i = 1; i < count && !err; i++)
		if (seqs[i] == seqs[i - 1])
			err = damaged(store, "two slots have sequence number %llu", seqs[i]);
	kvfree(seqs);
	return err;
}

static struct pkernfs_node *lowest_node(struct pkernfs_store *store)
{
	return rb_entry_safe(rb_first(&store->nodes), struct pkernfs_node, by_ino);
}

static struct pkernfs_node *higher_node(struct pkernfs_node *node)
{
	return rb_entry_safe(rb_next(&node->by_ino), struct pkernfs_node, by_ino);
}

static int each_replaces(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
			 void *data)
{
	struct pkernfs_node *victim = pkernfs_node_find(store, le64_to_cpu(inode->replaces));

	if (victim && victim->inode->ino != inode->ino &&
	    le64_to_cpu(victim->inode->seq) < le64_to_cpu(inode->seq))
		victim->orphan = true;
	return 0;
}

/* Takes out what a rename had replaced when the crash came. */
static void drop_replaced(struct pkernfs_store *store, struct loading *loading)
{
	struct pkernfs_node *node, *next;

	each_committed(store, each_replaces, NULL);
	for (node = lowest_node(store); node; node = next) {
		next = higher_node(node);
		if (!node->orphan)
			continue;
		loading->nr_leftovers++;
		pkernfs_node_free(store, node);
	}
}

static int check_nodes(struct pkernfs_store *store)
{
	struct pkernfs_node *node;
	int err;

	for (node = lowest_node(store); node; node = higher_node(node)) {
		err = pkernfs_check_inode(store, node->inode, node->slot);
		if (!err && S_ISREG(le32_to_cpu(node->inode->mode)))
			err = pkernfs_check_file(store, node);
		if (err)
			return err;
	}
	return 0;
}

static int link_all(struct pkernfs_store *store)
{
	struct pkernfs_node *node, *dir;

	for (node = lowest_node(store); node; node = higher_node(node)) {
		if (node == store->root)
			continue;
		dir = pkernfs_node_find(store, le64_to_cpu(node->inode->parent));
		if (!dir || !pkernfs_is_dir(dir->inode))
			return bad_slot(store, node->slot, "inode %llu lies in no directory",
					node->ino);
		if (!pkernfs_node_link(dir, node))
			return bad_slot(store, node->slot, "name of inode %llu is there twice",
					node->ino);
	}
	return 0;
}

/* The node that follows in a walk from the root, directories before what is in them. */
static struct pkernfs_node *walk_next(struct pkernfs_node *node)
{
	struct rb_node *at = rb_first(&node->children);

	while (!at && node->parent != node) {
		at = rb_next(&node->by_child);
		node = node->parent;
	}
	return rb_entry_safe(at, struct pkernfs_node, by_child);
}

static int load_tree(struct pkernfs_store *store)
{
	struct pkernfs_node *node;
	u64 reached = 0;
	int err;

	store->root = pkernfs_node_find(store, PKERNFS_ROOT_INO);
	if (!store->root)
		return damaged(store, "there is no root directory");
	store->root->parent = store->root;
	err = link_all(store);
	if (err)
		return err;
	for (node = store->root; node; node = walk_next(node))
		reached++;
	if (reached != store->nr_nodes)
		return damaged(store, "%llu inodes can't be reached from the root",
			       store->nr_nodes - reached);
	return 0;
}

static u64 find_next_ino(struct pkernfs_store *store)
{
	return rb_entry(rb_last(&store->nodes), struct pkernfs_node, by_ino)->ino + 1;
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

/* Everything is known to be good: only now something is written. */
static void repair(struct pkernfs_store *store, const struct loading *loading)
{
	struct pkernfs_backing *backing = store->backing;

	if (loading->broken) {
		pkernfs_copy(loading->broken, store->super, sizeof(*store->super));
		backing->say(backing, "repaired a super block from its copy");
	}
	if (loading->nr_leftovers) {
		each_committed(store, each_clear, NULL);
		backing->say(backing, "cleared %llu slots that a crash had left over",
			     loading->nr_leftovers);
	}
}

static int load_super(struct pkernfs_store *store, struct loading *loading)
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
	err = find_super(store, block0, loading);
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
	struct loading loading = { };
	int err;

	err = load_super(store, &loading);
	if (!err)
		err = load_chain(store);
	if (!err)
		err = each_committed(store, each_load, &loading);
	if (!err && loading.nr_committed)
		err = check_seqs(store, loading.nr_committed);
	if (err)
		return err;
	drop_replaced(store, &loading);
	err = check_nodes(store);
	if (!err)
		err = load_tree(store);
	if (err)
		return err;
	store->next_ino = find_next_ino(store);
	repair(store, &loading);
	return 0;
}
