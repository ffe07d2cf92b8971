// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opening a store: nothing that is found in the range is believed before it was
 * checked, and nothing is written before all of it was.
 */
#include <linux/sort.h>

#include "store_private.h"

#define refuse(store, err, fmt, ...) \
	((store)->backing->say((store)->backing, fmt, ##__VA_ARGS__), (err))
#define damaged(store, fmt, ...)	refuse(store, -EUCLEAN, fmt, ##__VA_ARGS__)
#define bad_slot(store, slot, fmt, ...) \
	damaged(store, "slot %u: " fmt, slot, ##__VA_ARGS__)

static const u32 super_slots[] = { PKERNFS_SUPER_A_SLOT, PKERNFS_SUPER_B_SLOT };

/* What was found out on the way. */
struct loading {
	struct pkernfs_super *broken;	/* the copy to be repaired, or NULL */
	u64 nr_committed;		/* slots, of which ... */
	u64 nr_leftovers;		/* ... do not count */
};

static bool is_zero(const void *data, size_t bytes)
{
	return !memchr_inv(data, 0, bytes);
}

bool pkernfs_name_valid(const u8 *name, u32 len)
{
	if (!len || len > PKERNFS_NAME_MAX)
		return false;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return false;
	return !memchr(name, '/', len) && !memchr(name, 0, len);
}

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
		    b->magic != cpu_to_le64(PKERNFS_MAGIC))
			return refuse(store, -EINVAL, "no store in this range");
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

	return end && is_zero(end, label + size - end);
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
	    super->reserved0 || !is_zero(super->reserved, sizeof(super->reserved)))
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
	    !is_zero(header->reserved, sizeof(header->reserved)))
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

static int check_names(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	const u32 len = le16_to_cpu(inode->name_len);
	const bool root = le64_to_cpu(inode->ino) == PKERNFS_ROOT_INO;

	if (root ? len : !pkernfs_name_valid(inode->name, len))
		return bad_slot(store, slot, "not a valid name");
	if (!is_zero(inode->name + len, sizeof(inode->name) - len))
		return bad_slot(store, slot, "something follows the name");
	if (root && (inode->parent != inode->ino || !pkernfs_is_dir(inode)))
		return bad_slot(store, slot, "the root is no directory of its own");
	if (!root && inode->parent == inode->ino)
		return bad_slot(store, slot, "inode lies in itself");
	return 0;
}

static int check_kind(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	const u32 mode = le32_to_cpu(inode->mode);
	const u64 size = le64_to_cpu(inode->size);

	if (mode & ~(S_IFMT | 07777) || !(S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode)))
		return bad_slot(store, slot, "mode %#o is none", mode);
	if (S_ISREG(mode))
		return size > PKERNFS_FILE_MAX ?
			bad_slot(store, slot, "size %llu is out of range", size) : 0;
	if (inode->nr_extents || inode->nr_pages)
		return bad_slot(store, slot, "extents, but no file");
	if (S_ISDIR(mode))
		return size || !is_zero(inode->payload, sizeof(inode->payload)) ?
			bad_slot(store, slot, "content, but a directory") : 0;
	if (!size || size > PKERNFS_SYMLINK_MAX || memchr(inode->payload, 0, size) ||
	    !is_zero(inode->payload + size, sizeof(inode->payload) - size))
		return bad_slot(store, slot, "not a valid target of a symlink");
	return 0;
}

/* Can the slot be believed at all? */
static int check_slot(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	const u64 seq = le64_to_cpu(inode->seq), ino = le64_to_cpu(inode->ino);

	if (inode->checksum != cpu_to_le32(pkernfs_inode_checksum(store->super, inode)))
		return bad_slot(store, slot, "wrong checksum");
	if (le32_to_cpu(inode->slot) != slot)
		return bad_slot(store, slot, "says it is slot %u", le32_to_cpu(inode->slot));
	if (inode->commit != inode->seq)
		return bad_slot(store, slot, "committed as %llu, but is %llu",
				le64_to_cpu(inode->commit), seq);
	if (seq > PKERNFS_SEQ_MAX || !ino || ino > PKERNFS_SEQ_MAX)
		return bad_slot(store, slot, "inode %llu or its sequence number %llu can't be",
				ino, seq);
	return 0;
}

/* What a slot says matters only if it counts. */
static int check_inode(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	int err;

	if (inode->replaces == inode->ino || inode->replaces == cpu_to_le64(PKERNFS_ROOT_INO))
		return bad_slot(store, slot, "replaces inode %llu",
				le64_to_cpu(inode->replaces));
	if (inode->flags || inode->reserved0 || inode->reserved1 || inode->reserved2)
		return bad_slot(store, slot, "reserved fields are not zero");
	err = check_names(store, inode, slot);
	return err ? err : check_kind(store, inode, slot);
}

/* Of two slots of one inode the later one counts. */
static int load_inode(struct pkernfs_store *store, struct pkernfs_inode *inode, u32 slot,
		      struct loading *loading)
{
	struct pkernfs_node *node;
	int err;

	err = check_slot(store, inode, slot);
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

static int check_extent(struct pkernfs_store *store, u32 slot, const struct pkernfs_run *run,
			u64 *end)
{
	if (!run->count || run->file_block < *end)
		return bad_slot(store, slot, "extents are empty or not in order");
	*end = (u64)run->file_block + run->count;
	if (*end > U32_MAX || !run->block || run->block >= store->nr_blocks ||
	    run->count > store->nr_blocks - run->block)
		return bad_slot(store, slot, "extent %u+%u is out of range", run->block,
				run->count);
	if (!pkernfs_space_claim(store, run->block, run->count))
		return bad_slot(store, slot, "extent %u+%u is taken already", run->block,
				run->count);
	return 0;
}

static int check_extents(struct pkernfs_store *store, u32 slot,
			 const struct pkernfs_extent *extents, u32 count, u64 *end)
{
	u32 i;
	int err;

	for (i = 0; i < count; i++) {
		const struct pkernfs_run run = {
			.file_block = le32_to_cpu(extents[i].file_block),
			.block = le32_to_cpu(extents[i].block),
			.count = le32_to_cpu(extents[i].count),
		};

		err = check_extent(store, slot, &run, end);
		if (err)
			return err;
	}
	return 0;
}

static int check_page(struct pkernfs_store *store, const struct pkernfs_inode *inode,
		      const struct pkernfs_page_ref *ref, u32 count, u64 *end)
{
	const u32 slot = le32_to_cpu(ref->slot);
	const struct pkernfs_extent_page *page;

	if (!pkernfs_slot_claim(store, slot))
		return bad_slot(store, slot, "extent page of inode %llu, but no free slot",
				le64_to_cpu(inode->ino));
	page = pkernfs_slot_addr(store, slot);
	if (le32_to_cpu(ref->checksum) != pkernfs_page_checksum(store->super, page))
		return bad_slot(store, slot, "wrong checksum of an extent page");
	if (page->commit || le32_to_cpu(page->slot) != slot || page->ino != inode->ino ||
	    !page->seq || le64_to_cpu(page->seq) > le64_to_cpu(inode->seq) ||
	    le32_to_cpu(page->count) != count || page->reserved ||
	    !is_zero(page->extents + count,
		     (PKERNFS_EXTENTS_PER_PAGE - count) * sizeof(page->extents[0])))
		return bad_slot(store, slot, "a field of an extent page can't be");
	return check_extents(store, slot, page->extents, count, end);
}

static int check_pages(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	const struct pkernfs_page_ref *refs = pkernfs_page_refs(inode);
	const u32 nr_pages = le32_to_cpu(inode->nr_pages);
	u32 left = le32_to_cpu(inode->nr_extents);
	u64 end = 0;
	u32 i;
	int err;

	if (nr_pages > PKERNFS_MAX_EXTENT_PAGES ||
	    DIV_ROUND_UP_ULL(left, PKERNFS_EXTENTS_PER_PAGE) != nr_pages)
		return bad_slot(store, slot, "%u extents don't fill %u pages", left, nr_pages);
	if (!is_zero(refs + nr_pages, sizeof(inode->payload) - nr_pages * sizeof(*refs)))
		return bad_slot(store, slot, "something follows the extent pages");
	for (i = 0; i < nr_pages; i++) {
		const u32 count = min_t(u32, left, PKERNFS_EXTENTS_PER_PAGE);

		err = check_page(store, inode, &refs[i], count, &end);
		if (err)
			return err;
		left -= count;
	}
	store->max_pages = max(store->max_pages, nr_pages);
	return 0;
}

static int check_file(struct pkernfs_store *store, const struct pkernfs_node *node)
{
	const struct pkernfs_inode *inode = node->inode;
	const struct pkernfs_extent *extents = (const void *)inode->payload;
	const u32 count = le32_to_cpu(inode->nr_extents);
	u64 end = 0;

	if (inode->nr_pages)
		return check_pages(store, inode, node->slot);
	if (count > PKERNFS_INLINE_EXTENTS)
		return bad_slot(store, node->slot, "%u extents don't fit", count);
	if (!is_zero(extents + count, sizeof(inode->payload) - count * sizeof(*extents)))
		return bad_slot(store, node->slot, "something follows the extents");
	return check_extents(store, node->slot, extents, count, &end);
}

static int check_nodes(struct pkernfs_store *store)
{
	struct pkernfs_node *node;
	int err;

	for (node = lowest_node(store); node; node = higher_node(node)) {
		err = check_inode(store, node->inode, node->slot);
		if (!err && S_ISREG(le32_to_cpu(node->inode->mode)))
			err = check_file(store, node);
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
