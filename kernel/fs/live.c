// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which inodes of a store count, and whose the blocks are. What is damaged is left out
 * (see damage.c): no result depends on the order in which slots are looked at.
 */
#include <linux/sort.h>

#include "store_private.h"

static bool is_fixed(u32 slot)
{
	return slot % PKERNFS_SLOTS_PER_BLOCK == PKERNFS_HEADER_SLOT ||
	       slot == PKERNFS_SUPER_A_SLOT || slot == PKERNFS_SUPER_B_SLOT;
}

/* Calls fn for every slot with a commit word that is not in quarantine. */
int pkernfs_each_committed(struct pkernfs_store *store, pkernfs_slot_fn fn, void *data)
{
	struct pkernfs_meta *meta;
	int err;
	u32 i;

	list_for_each_entry(meta, &store->chain, chain) {
		for (i = 0; i < PKERNFS_SLOTS_PER_BLOCK; i++) {
			const u32 slot = meta->block * PKERNFS_SLOTS_PER_BLOCK + i;
			struct pkernfs_inode *inode =
				(void *)(meta->addr + (i << PKERNFS_SLOT_SHIFT));

			if (is_fixed(slot) || !inode->commit || test_bit(i, meta->damaged))
				continue;
			err = fn(store, inode, slot, data);
			if (err)
				return err;
		}
	}
	return 0;
}

static int each_check(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		      void *data)
{
	u64 *count = data;

	pkernfs_slot_claim(store, slot);
	if (pkernfs_check_slot(store, inode, slot))
		return pkernfs_quarantine(store, inode, slot, false);
	store->next_seq = max(store->next_seq, le64_to_cpu(inode->seq) + 1);
	++*count;
	return 0;
}

/* Sequence numbers, in order. */
struct seqs {
	u64 *v;
	u64 nr;
};

static int each_seq(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		    void *data)
{
	struct seqs *seqs = data;

	seqs->v[seqs->nr++] = le64_to_cpu(inode->seq);
	return 0;
}

static int compare_seq(const void *a, const void *b)
{
	const u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Leaves those that are there more than once. */
static void keep_twins(struct seqs *seqs)
{
	u64 i, nr = 0;

	for (i = 1; i < seqs->nr; i++)
		if (seqs->v[i] == seqs->v[i - 1] && (!nr || seqs->v[nr - 1] != seqs->v[i]))
			seqs->v[nr++] = seqs->v[i];
	seqs->nr = nr;
}

static bool has_seq(const struct seqs *seqs, u64 seq)
{
	u64 low = 0, high = seqs->nr;

	while (low < high) {
		u64 mid = low + (high - low) / 2;

		if (seqs->v[mid] == seq)
			return true;
		if (seqs->v[mid] < seq)
			low = mid + 1;
		else
			high = mid;
	}
	return false;
}

static int each_twin(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		     void *data)
{
	if (!has_seq(data, le64_to_cpu(inode->seq)))
		return 0;
	because(store, "another slot has its sequence number %llu", le64_to_cpu(inode->seq));
	return pkernfs_quarantine(store, inode, slot, false);
}

/* No two slots were ever committed with the same number: which is right can't be told. */
static int check_seqs(struct pkernfs_store *store, u64 count)
{
	struct seqs seqs = { };
	int err = 0;

	if (!count)
		return 0;
	seqs.v = kvmalloc_array(count, sizeof(*seqs.v), PKERNFS_GFP);
	if (!seqs.v)
		return -ENOMEM;
	pkernfs_each_committed(store, each_seq, &seqs);
	sort(seqs.v, seqs.nr, sizeof(*seqs.v), compare_seq, NULL);
	keep_twins(&seqs);
	if (seqs.nr)
		err = pkernfs_each_committed(store, each_twin, &seqs);
	kvfree(seqs.v);
	return err;
}

/* Of two slots of one inode the later one counts. */
static int each_load(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		     void *data)
{
	u64 *nr_leftovers = data;
	struct pkernfs_node *node;

	node = pkernfs_node_find(store, le64_to_cpu(inode->ino));
	if (node) {
		++*nr_leftovers;
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
static void drop_replaced(struct pkernfs_store *store, u64 *nr_leftovers)
{
	struct pkernfs_node *node, *next;

	pkernfs_each_committed(store, each_replaces, NULL);
	for (node = pkernfs_node_lowest(store); node; node = next) {
		next = pkernfs_node_higher(node);
		if (!node->orphan)
			continue;
		++*nr_leftovers;
		pkernfs_node_free(store, node);
	}
}

static int set_aside(struct pkernfs_store *store, struct pkernfs_node *node)
{
	int err = pkernfs_quarantine(store, node->inode, node->slot, true);

	pkernfs_node_free(store, node);
	return err;
}

static bool is_file(const struct pkernfs_node *node)
{
	return S_ISREG(le32_to_cpu(node->inode->mode));
}

/* What every inode says for itself. */
static int check_nodes(struct pkernfs_store *store)
{
	struct pkernfs_node *node, *next;
	int err;

	for (node = pkernfs_node_lowest(store); node; node = next) {
		next = pkernfs_node_higher(node);
		err = pkernfs_check_inode(store, node->inode);
		if (!err && is_file(node))
			err = pkernfs_check_file(store, node->inode);
		if (err)
			err = set_aside(store, node);
		if (err)
			return err;
	}
	return 0;
}

/* Blocks that are somebody's already are noted; extent pages can't be: each names its inode. */
static int claim_file(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const u32 nr_pages = le32_to_cpu(inode->nr_pages);
	struct pkernfs_run run;
	u32 i;
	int err;

	for (i = 0; i < nr_pages; i++)
		pkernfs_slot_claim(store, le32_to_cpu(pkernfs_page_refs(inode)[i].slot));
	store->max_pages = max(store->max_pages, nr_pages);
	for (i = 0; i < le32_to_cpu(inode->nr_extents); i++) {
		pkernfs_extent_get(store, inode, i, &run);
		if (pkernfs_space_claim(store, run.block, run.count))
			continue;
		err = pkernfs_space_contest(store, run.block, run.count);
		if (err)
			return err;
	}
	return 0;
}

static bool is_contested(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	struct pkernfs_run run;
	u32 i;

	for (i = 0; i < le32_to_cpu(inode->nr_extents); i++) {
		pkernfs_extent_get(store, inode, i, &run);
		if (pkernfs_space_contested(store, run.block, run.count)) {
			because(store, "a block of extent %u+%u has another owner too",
				run.block, run.count);
			return true;
		}
	}
	return false;
}

/* Of the owners of one block nobody can tell which is right: none of them counts. */
static int claim_blocks(struct pkernfs_store *store)
{
	struct pkernfs_node *node, *next;
	int err = 0;

	for (node = pkernfs_node_lowest(store); node && !err; node = pkernfs_node_higher(node))
		if (is_file(node))
			err = claim_file(store, node->inode);
	if (err || !store->contested)
		return err;
	for (node = pkernfs_node_lowest(store); node && !err; node = next) {
		next = pkernfs_node_higher(node);
		if (is_file(node) && is_contested(store, node->inode))
			err = set_aside(store, node);
	}
	return err;
}

/* A number that is still named somewhere is not given to a new inode. */
static void find_next_ino(struct pkernfs_store *store)
{
	struct pkernfs_node *node;

	for (node = pkernfs_node_lowest(store); node; node = pkernfs_node_higher(node))
		store->next_ino = max3(store->next_ino, node->ino + 1,
				       min_t(u64, le64_to_cpu(node->inode->parent),
					     PKERNFS_LOST_INO) + 1);
}

/* Fills store->nodes; *nr_leftovers: committed slots that do not count. */
int pkernfs_load_live(struct pkernfs_store *store, u64 *nr_leftovers)
{
	u64 nr_committed = 0;
	int err;

	err = pkernfs_each_committed(store, each_check, &nr_committed);
	if (!err)
		err = check_seqs(store, nr_committed);
	if (!err)
		err = pkernfs_each_committed(store, each_load, nr_leftovers);
	if (err)
		return err;
	drop_replaced(store, nr_leftovers);
	err = check_nodes(store);
	if (!err)
		err = claim_blocks(store);
	if (err)
		return err;
	find_next_ino(store);
	store->root = pkernfs_node_find(store, PKERNFS_ROOT_INO);
	return store->root ? 0 : damaged(store, "there is no root directory");
}
