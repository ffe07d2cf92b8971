// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making, opening and closing a store, and the commit of one step.
 */
#include <linux/crc32.h>

#include "store_private.h"

static_assert(sizeof(struct pkernfs_super) == PKERNFS_SLOT_SIZE);
static_assert(sizeof(struct pkernfs_meta_header) == PKERNFS_SLOT_SIZE);
static_assert(sizeof(struct pkernfs_inode) == PKERNFS_SLOT_SIZE);
static_assert(sizeof(struct pkernfs_extent_page) == PKERNFS_SLOT_SIZE);
static_assert(offsetof(struct pkernfs_inode, slot) == 36);

void pkernfs_assert_locked(const struct pkernfs_store *store)
{
	if (store->backing->lock)
		lockdep_assert_held_write(store->backing->lock);
}

/* CRC-32 as zlib has it: what comes out can be fed in to go on. */
u32 pkernfs_crc(u32 crc, const void *data, size_t bytes)
{
	return ~crc32_le(~crc, data, bytes);
}

/* The checksum of a slot from an offset on, with a field of 32 bits in it as zero. */
static u32 crc_around(u32 crc, const void *slot, size_t from, size_t field)
{
	const __le32 zero = 0;

	crc = pkernfs_crc(crc, slot + from, field - from);
	crc = pkernfs_crc(crc, &zero, sizeof(zero));
	field += sizeof(zero);
	return pkernfs_crc(crc, slot + field, PKERNFS_SLOT_SIZE - field);
}

static u32 crc_uuid(const struct pkernfs_super *super)
{
	return pkernfs_crc(0, super->uuid, sizeof(super->uuid));
}

u32 pkernfs_super_checksum(const struct pkernfs_super *super)
{
	return crc_around(0, super, 0, offsetof(struct pkernfs_super, checksum));
}

u32 pkernfs_header_checksum(const struct pkernfs_super *super,
			    const struct pkernfs_meta_header *header)
{
	return crc_around(crc_uuid(super), header, offsetof(struct pkernfs_meta_header, magic),
			  offsetof(struct pkernfs_meta_header, checksum));
}

u32 pkernfs_inode_checksum(const struct pkernfs_super *super, const struct pkernfs_inode *inode)
{
	const size_t from = offsetof(struct pkernfs_inode, slot);

	return pkernfs_crc(crc_uuid(super), (const u8 *)inode + from, PKERNFS_SLOT_SIZE - from);
}

u32 pkernfs_page_checksum(const struct pkernfs_super *super,
			  const struct pkernfs_extent_page *page)
{
	return pkernfs_crc(crc_uuid(super), page, PKERNFS_SLOT_SIZE);
}

/* The link of a metadata block to the next, which checks itself. */
u64 pkernfs_header_next(const struct pkernfs_super *super, u32 block, u32 next)
{
	const __le32 words[2] = { cpu_to_le32(block), cpu_to_le32(next) };

	return (u64)pkernfs_crc(crc_uuid(super), words, sizeof(words)) << 32 | next;
}

struct pkernfs_meta_header *pkernfs_meta_header(const struct pkernfs_meta *meta)
{
	return (void *)(meta->addr + (PKERNFS_HEADER_SLOT << PKERNFS_SLOT_SHIFT));
}

/*
 * A new slot for what is to become of a node. What a rename once replaced is
 * long gone when the node changes again.
 */
struct pkernfs_inode *pkernfs_step_begin(struct pkernfs_store *store,
					 const struct pkernfs_node *node)
{
	struct pkernfs_inode *draft = store->draft;

	pkernfs_assert_locked(store);
	memcpy(draft, node->inode, sizeof(*draft));
	draft->commit = 0;
	draft->replaces = 0;
	return draft;
}

/* All of a slot but the commit word, which is zero in memory that is free. */
static void write_body(struct pkernfs_inode *to, const struct pkernfs_inode *draft)
{
	const size_t from = offsetof(struct pkernfs_inode, atime_ns);

	pkernfs_copy((u8 *)to + from, (const u8 *)draft + from, sizeof(*to) - from);
}

static u32 step_needs(const struct pkernfs_step *step)
{
	return 1 + (step->runs ? pkernfs_pages_for(step->runs->nr) : 0);
}

static u32 step_gives_back(const struct pkernfs_step *step, const struct pkernfs_inode *old)
{
	if (!old)
		return 0;
	return 1 + (step->runs ? le32_to_cpu(old->nr_pages) : 0);
}

/*
 * Nothing of an orphan is ever committed: its slots are only kept from being
 * used by others, so that it is gone when the next kernel looks.
 */
int pkernfs_step_commit(struct pkernfs_store *store, const struct pkernfs_step *step)
{
	struct pkernfs_inode *draft = store->draft;
	struct pkernfs_node *node = step->node;
	const struct pkernfs_inode *old = node->inode;
	struct pkernfs_inode *new;
	void *addr;
	u32 old_slot = node->slot;
	int err;

	pkernfs_assert_locked(store);
	if (store->next_seq > PKERNFS_SEQ_MAX)
		return -EOVERFLOW;
	err = pkernfs_slots_reserve(store, step_needs(step), step_gives_back(step, old),
				    step->runs ? pkernfs_pages_for(step->runs->nr) : 0,
				    step->shrinks);
	if (err)
		return err;

	/* From here on nothing can fail. */
	draft->seq = cpu_to_le64(store->next_seq++);
	if (step->runs)
		pkernfs_extents_write(store, draft, step->runs);
	if (step->victim)
		draft->replaces = cpu_to_le64(step->victim->ino);
	node->slot = pkernfs_slot_take(store, &addr);
	new = addr;
	draft->slot = cpu_to_le32(node->slot);
	draft->checksum = cpu_to_le32(pkernfs_inode_checksum(store->super, draft));
	write_body(new, draft);
	node->inode = new;

	if (!node->orphan) {
		pkernfs_put64(&new->commit, le64_to_cpu(draft->seq));
		if (step->victim)
			pkernfs_put64((__le64 *)&step->victim->inode->commit, 0);
		if (old)
			pkernfs_put64((__le64 *)&old->commit, 0);
	}
	if (old) {
		if (step->runs)
			pkernfs_extents_free_slots(store, old);
		pkernfs_slot_free(store, old_slot);
	}
	pkernfs_slots_settle(store);
	return 0;
}

static void fill_super(struct pkernfs_super *super, const struct pkernfs_backing *backing,
		       const u8 uuid[16], const char *label, u32 page_blocks, s64 now_ns)
{
	super->magic = cpu_to_le64(PKERNFS_MAGIC);
	super->version = cpu_to_le32(PKERNFS_VERSION);
	memcpy(super->uuid, uuid, sizeof(super->uuid));
	super->base = cpu_to_le64(backing->base);
	super->size = cpu_to_le64((u64)backing->nr_blocks << PKERNFS_BLOCK_SHIFT);
	super->created_ns = cpu_to_le64(now_ns);
	super->block_shift = cpu_to_le32(PKERNFS_BLOCK_SHIFT);
	super->slot_shift = cpu_to_le32(PKERNFS_SLOT_SHIFT);
	super->page_blocks = cpu_to_le32(page_blocks);
	memcpy(super->label, label, strlen(label));
	super->checksum = cpu_to_le32(pkernfs_super_checksum(super));
}

static void fill_root(struct pkernfs_inode *inode, const struct pkernfs_super *super,
		      const struct pkernfs_attr *attr)
{
	const __le64 now = cpu_to_le64(attr->now_ns);

	inode->atime_ns = now;
	inode->mtime_ns = now;
	inode->ctime_ns = now;
	inode->btime_ns = now;
	inode->slot = cpu_to_le32(PKERNFS_SUPER_A_SLOT + 1);
	inode->seq = cpu_to_le64(1);
	inode->ino = cpu_to_le64(PKERNFS_ROOT_INO);
	inode->parent = cpu_to_le64(PKERNFS_ROOT_INO);
	inode->mode = cpu_to_le32(S_IFDIR | (attr->mode & 07777));
	inode->uid = cpu_to_le32(attr->uid);
	inode->gid = cpu_to_le32(attr->gid);
	inode->checksum = cpu_to_le32(pkernfs_inode_checksum(super, inode));
}

/* The super blocks come last: until then there is no store. */
static void make_block0(void *block0, const struct pkernfs_super *super,
			struct pkernfs_inode *root, struct pkernfs_meta_header *header)
{
	struct pkernfs_inode *to = block0 + (le32_to_cpu(root->slot) << PKERNFS_SLOT_SHIFT);
	static const u32 slots[] = { PKERNFS_SUPER_A_SLOT, PKERNFS_SUPER_B_SLOT };
	const size_t magic = sizeof(super->magic);
	int i;

	header->magic = cpu_to_le64(PKERNFS_META_MAGIC);
	header->next = cpu_to_le64(pkernfs_header_next(super, 0, 0));
	header->checksum = cpu_to_le32(pkernfs_header_checksum(super, header));
	pkernfs_copy(block0 + (PKERNFS_HEADER_SLOT << PKERNFS_SLOT_SHIFT), header,
		     sizeof(*header));
	write_body(to, root);
	pkernfs_put64(&to->commit, le64_to_cpu(root->seq));

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		struct pkernfs_super *copy = pkernfs_super_at(block0, slots[i]);

		pkernfs_copy((u8 *)copy + magic, (const u8 *)super + magic,
			     sizeof(*super) - magic);
	}
	/* B first: a store with A alone would look repaired, not half made. */
	pkernfs_put64(&pkernfs_super_at(block0, PKERNFS_SUPER_B_SLOT)->magic, PKERNFS_MAGIC);
	pkernfs_put64(&pkernfs_super_at(block0, PKERNFS_SUPER_A_SLOT)->magic, PKERNFS_MAGIC);
}

static int make_check(struct pkernfs_backing *backing, const char *label, u32 page_blocks)
{
	if (backing->nr_blocks < PKERNFS_MIN_BLOCKS || backing->nr_blocks > PKERNFS_MAX_BLOCKS) {
		backing->say(backing, "a range has %d to %d blocks of 2 MiB, not %u",
			     PKERNFS_MIN_BLOCKS, PKERNFS_MAX_BLOCKS, backing->nr_blocks);
		return -EINVAL;
	}
	if (page_blocks >= backing->nr_blocks - 1) {
		backing->say(backing, "%u blocks for struct pages leave none of %u for files",
			     page_blocks, backing->nr_blocks);
		return -EINVAL;
	}
	if (strlen(label) > PKERNFS_LABEL_MAX) {
		backing->say(backing, "a label has at most %d bytes", PKERNFS_LABEL_MAX);
		return -EINVAL;
	}
	return 0;
}

int pkernfs_store_make(struct pkernfs_backing *backing, const u8 uuid[16], const char *label,
		       u32 page_blocks, const struct pkernfs_attr *root, bool force)
{
	struct pkernfs_meta_header *header;
	struct pkernfs_super *super, *a, *b;
	struct pkernfs_inode *inode;
	void *block0;
	int err;

	err = make_check(backing, label, page_blocks);
	if (err)
		return err;
	err = force ? 0 : pkernfs_store_remains(backing, NULL);
	if (err > 0) {
		backing->say(backing, "the range holds a store, or what is left of one");
		return -EEXIST;
	}
	if (err)
		return err;
	err = -ENOMEM;
	super = kzalloc(sizeof(*super), PKERNFS_GFP);
	inode = kzalloc(sizeof(*inode), PKERNFS_GFP);
	header = kzalloc(sizeof(*header), PKERNFS_GFP);
	if (!super || !inode || !header)
		goto free;
	block0 = backing->map_meta(backing, 0);
	if (!block0)
		goto free;

	a = pkernfs_super_at(block0, PKERNFS_SUPER_A_SLOT);
	b = pkernfs_super_at(block0, PKERNFS_SUPER_B_SLOT);
	/* The old store ends here, not with its blocks half gone. */
	pkernfs_put64(&a->magic, 0);
	pkernfs_put64(&b->magic, 0);
	err = backing->zero(backing, 0, 1);
	if (err)
		goto unmap;
	fill_super(super, backing, uuid, label, page_blocks, root->now_ns);
	fill_root(inode, super, root);
	make_block0(block0, super, inode, header);
unmap:
	backing->unmap_meta(backing, 0, block0);
free:
	kfree(header);
	kfree(inode);
	kfree(super);
	return err;
}

int pkernfs_store_open(struct pkernfs_backing *backing, bool read_only,
		       struct pkernfs_store **ret)
{
	struct pkernfs_store *store;
	int err = -ENOMEM;

	store = kzalloc(sizeof(*store), PKERNFS_GFP);
	if (!store)
		goto say;
	store->backing = backing;
	store->nr_blocks = backing->nr_blocks;
	store->nodes = RB_ROOT;
	store->metas = RB_ROOT;
	INIT_LIST_HEAD(&store->chain);
	store->super = kmalloc(sizeof(*store->super), PKERNFS_GFP);
	store->draft = kzalloc(sizeof(*store->draft), PKERNFS_GFP);
	store->page = kzalloc(sizeof(*store->page), PKERNFS_GFP);
	if (!store->super || !store->draft || !store->page)
		goto close;
	err = pkernfs_load(store);
	if (err)
		goto close;
	if (!read_only)
		pkernfs_store_repair(store);
	pkernfs_damage_settle(store);
	*ret = store;
	return 0;
close:
	pkernfs_store_close(store);
say:
	if (err == -ENOMEM)
		backing->say(backing, "not enough memory to open the store");
	return err;
}

/* Also takes down what a failed open had built up. */
void pkernfs_store_close(struct pkernfs_store *store)
{
	struct pkernfs_node *node, *next;

	rbtree_postorder_for_each_entry_safe(node, next, &store->nodes, by_ino) {
		kfree(node->alias);
		kfree(node);
	}
	pkernfs_lost_drop(store);
	pkernfs_damage_drop(store);
	pkernfs_slots_destroy(store);
	pkernfs_space_destroy(store);
	kfree(store->page);
	kfree(store->draft);
	kfree(store->super);
	kfree(store);
}

void pkernfs_store_usage(struct pkernfs_store *store, struct pkernfs_usage *usage)
{
	const u64 slots = store->slots_free +
			  (u64)store->nr_free * (PKERNFS_SLOTS_PER_BLOCK - 1);
	const u64 reserved = pkernfs_slots_reserved(store);

	usage->blocks = store->nr_blocks - store->page_blocks - store->nr_metas;
	usage->blocks_free = store->nr_free;
	usage->blocks_limbo = store->nr_limbo;
	usage->nodes = store->nr_nodes;
	usage->nodes_free = slots > reserved ? slots - reserved : 0;
}

const struct pkernfs_super *pkernfs_store_super(struct pkernfs_store *store)
{
	return store->super;
}

struct pkernfs_node *pkernfs_store_root(struct pkernfs_store *store)
{
	return store->root;
}

bool pkernfs_store_meta_block(struct pkernfs_store *store, u32 block, void **addr)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, block);

	if (meta)
		*addr = meta->addr;
	return meta;
}
