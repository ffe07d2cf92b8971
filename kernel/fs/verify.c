// SPDX-License-Identifier: GPL-2.0-only
/* What can be said of one inode slot, and of the extents that it names. */
#include "store_private.h"

bool pkernfs_name_valid(const u8 *name, u32 len)
{
	if (!len || len > PKERNFS_NAME_MAX)
		return false;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return false;
	return !memchr(name, '/', len) && !memchr(name, 0, len);
}

static int check_names(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const u32 len = le16_to_cpu(inode->name_len);
	const bool root = le64_to_cpu(inode->ino) == PKERNFS_ROOT_INO;

	if (root ? len : !pkernfs_name_valid(inode->name, len))
		return bad_slot(store, "not a valid name");
	if (!pkernfs_is_zero(inode->name + len, sizeof(inode->name) - len))
		return bad_slot(store, "something follows the name");
	if (root && (inode->parent != inode->ino || !pkernfs_is_dir(inode)))
		return bad_slot(store, "the root is no directory of its own");
	return 0;
}

static int check_kind(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const u32 mode = le32_to_cpu(inode->mode);
	const u64 size = le64_to_cpu(inode->size);

	if (mode & ~(S_IFMT | 07777) || !(S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode)))
		return bad_slot(store, "mode %#o is none", mode);
	if (S_ISREG(mode))
		return size > PKERNFS_FILE_MAX ?
			bad_slot(store, "size %llu is out of range", size) : 0;
	if (inode->nr_extents || inode->nr_pages)
		return bad_slot(store, "extents, but no file");
	if (S_ISDIR(mode))
		return size || !pkernfs_is_zero(inode->payload, sizeof(inode->payload)) ?
			bad_slot(store, "content, but a directory") : 0;
	if (!size || size > PKERNFS_SYMLINK_MAX || memchr(inode->payload, 0, size) ||
	    !pkernfs_is_zero(inode->payload + size, sizeof(inode->payload) - size))
		return bad_slot(store, "not a valid target of a symlink");
	return 0;
}

/* Can the slot be believed at all? */
int pkernfs_check_slot(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot)
{
	const u64 seq = le64_to_cpu(inode->seq), ino = le64_to_cpu(inode->ino);

	if (inode->checksum != cpu_to_le32(pkernfs_inode_checksum(store->super, inode)))
		return bad_slot(store, "wrong checksum");
	if (le32_to_cpu(inode->slot) != slot)
		return bad_slot(store, "says it is slot %u", le32_to_cpu(inode->slot));
	if (inode->commit != inode->seq)
		return bad_slot(store, "committed as %llu, but is %llu",
				le64_to_cpu(inode->commit), seq);
	if (seq > PKERNFS_SEQ_MAX || !ino || ino >= PKERNFS_LOST_INO)
		return bad_slot(store, "inode %llu or its sequence number %llu can't be",
				ino, seq);
	return 0;
}

/* What a slot says matters only if it counts. */
int pkernfs_check_inode(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	int err;

	if (inode->replaces == inode->ino || inode->replaces == cpu_to_le64(PKERNFS_ROOT_INO))
		return bad_slot(store, "replaces inode %llu",
				le64_to_cpu(inode->replaces));
	if (inode->flags || inode->reserved0 || inode->reserved1 || inode->reserved2)
		return bad_slot(store, "reserved fields are not zero");
	err = check_names(store, inode);
	return err ? err : check_kind(store, inode);
}

static int check_extent(struct pkernfs_store *store, const struct pkernfs_run *run, u64 *end)
{
	if (!run->count || run->file_block < *end)
		return bad_slot(store, "extents are empty or not in order");
	*end = (u64)run->file_block + run->count;
	if (*end > U32_MAX || run->block <= store->page_blocks ||
	    run->block >= store->nr_blocks || run->count > store->nr_blocks - run->block)
		return bad_slot(store, "extent %u+%u is out of range", run->block, run->count);
	return 0;
}

static int check_extents(struct pkernfs_store *store, const struct pkernfs_extent *extents,
			 u32 count, u64 *end)
{
	u32 i;
	int err;

	for (i = 0; i < count; i++) {
		const struct pkernfs_run run = {
			.file_block = le32_to_cpu(extents[i].file_block),
			.block = le32_to_cpu(extents[i].block),
			.count = le32_to_cpu(extents[i].count),
		};

		err = check_extent(store, &run, end);
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

	if (!pkernfs_slot_is_free(store, slot))
		return bad_slot(store, "names slot %u as an extent page, which can't be one", slot);
	page = pkernfs_slot_addr(store, slot);
	if (le32_to_cpu(ref->checksum) != pkernfs_page_checksum(store->super, page))
		return bad_slot(store, "wrong checksum of its extent page in slot %u", slot);
	if (page->commit || le32_to_cpu(page->slot) != slot || page->ino != inode->ino ||
	    !page->seq || le64_to_cpu(page->seq) > le64_to_cpu(inode->seq) ||
	    le32_to_cpu(page->count) != count || page->reserved ||
	    !pkernfs_is_zero(page->extents + count,
		     (PKERNFS_EXTENTS_PER_PAGE - count) * sizeof(page->extents[0])))
		return bad_slot(store, "its extent page in slot %u can't be", slot);
	return check_extents(store, page->extents, count, end);
}

static int check_pages(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const struct pkernfs_page_ref *refs = pkernfs_page_refs(inode);
	const u32 nr_pages = le32_to_cpu(inode->nr_pages);
	u32 left = le32_to_cpu(inode->nr_extents);
	u64 end = 0;
	u32 i;
	int err;

	if (nr_pages > PKERNFS_MAX_EXTENT_PAGES ||
	    DIV_ROUND_UP_ULL(left, PKERNFS_EXTENTS_PER_PAGE) != nr_pages)
		return bad_slot(store, "%u extents don't fill %u pages", left, nr_pages);
	if (!pkernfs_is_zero(refs + nr_pages, sizeof(inode->payload) - nr_pages * sizeof(*refs)))
		return bad_slot(store, "something follows the extent pages");
	for (i = 0; i < nr_pages; i++) {
		const u32 count = min_t(u32, left, PKERNFS_EXTENTS_PER_PAGE);

		err = check_page(store, inode, &refs[i], count, &end);
		if (err)
			return err;
		left -= count;
	}
	return 0;
}

/* Its extents for themselves; what else lies there, pkernfs_load_live() asks. */
int pkernfs_check_file(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const struct pkernfs_extent *extents = (const void *)inode->payload;
	const u32 count = le32_to_cpu(inode->nr_extents);
	u64 end = 0;

	if (inode->nr_pages)
		return check_pages(store, inode);
	if (count > PKERNFS_INLINE_EXTENTS)
		return bad_slot(store, "%u extents don't fit", count);
	if (!pkernfs_is_zero(extents + count, sizeof(inode->payload) - count * sizeof(*extents)))
		return bad_slot(store, "something follows the extents");
	return check_extents(store, extents, count, &end);
}
