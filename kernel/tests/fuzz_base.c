// SPDX-License-Identifier: GPL-2.0-only
/* Valid stores to begin with. */
#include "fuzz.h"

/* An extent page for a file whose extents would fit into its inode. */
static void add_page(struct base *base, const char *path)
{
	struct pkernfs_inode *inode = (void *)pkn_node(base->n, path)->inode;
	const u32 count = le32_to_cpu(inode->nr_extents), slot = 250;
	u8 content[2][SLOT] __attribute__((aligned(8))) = { };
	struct pkernfs_extent_page *page = (void *)content[0];
	struct pkernfs_inode *new = (void *)content[1];
	struct pkernfs_page_ref *ref = (void *)new->payload;

	memcpy(new, inode, SLOT);
	page->slot = cpu_to_le32(slot);
	page->count = cpu_to_le32(count);
	page->ino = inode->ino;
	page->seq = inode->seq;
	memcpy(page->extents, inode->payload, count * sizeof(page->extents[0]));
	memset(new->payload, 0, sizeof(new->payload));
	new->nr_pages = cpu_to_le32(1);
	ref->slot = cpu_to_le32(slot);
	ref->checksum = cpu_to_le32(pkernfs_page_checksum(super_of(base), page));
	pkn_poke(base->n, slot * SLOT, page, SLOT);
	set_slot(base, le32_to_cpu(inode->slot), content[1], true);
	pkn_close(base->n);
	check(!pkn_open(base->n));
}

static void find_slots(struct base *base)
{
	u32 block = 0, i;

	do {
		for (i = 0; i < PKERNFS_HEADER_SLOT; i++) {
			u32 slot = block * PKERNFS_SLOTS_PER_BLOCK + i;
			struct pkernfs_inode *inode = (void *)slot_at(base, slot);

			if (i % 256 && inode->commit && base->nr_inodes < MAX_SLOTS)
				base->inodes[base->nr_inodes++] = slot;
		}
		base->headers[base->nr_headers++] = block * PKERNFS_SLOTS_PER_BLOCK +
						    PKERNFS_HEADER_SLOT;
		block = *(u32 *)slot_at(base, base->headers[base->nr_headers - 1]);
	} while (block);
	base->pages[base->nr_pages++] = 250;
}

/*
 * kind 0: a tree, with an extent page; 1: in the middle of a rename over a file;
 * 2: with a second block of metadata.
 */
struct base *make_base(u32 kind)
{
	struct base *base = calloc(1, sizeof(*base));
	struct pkn_entry entry;
	struct pkn *n;
	char name[16];
	u64 size;
	u32 i;

	base->n = n = pkn_new(NR_BLOCKS, 1UL << 30);
	check(!pkn_make(n, "fuzz", 1, false) && !pkn_open(n));
	check(!pkn_create(n, "d", DIR_MODE, NULL) && !pkn_create(n, "d/e", DIR_MODE, NULL));
	check(!pkn_create(n, "d/f", FILE_MODE, NULL) && !pkn_create(n, "b", FILE_MODE, NULL));
	check(!pkn_create(n, "l", S_IFLNK | 0777, "d/e/f") && !pkn_create(n, "q", DIR_MODE, NULL));
	check(!pkn_create(n, "d/e/z", FILE_MODE, NULL));
	check(!pkn_write(n, "d/f", 3 * BLOCK, "data", 4) && !pkn_write(n, "d/f", 5, "data", 4));
	check(!pkn_write(n, "b", 100, "data", 4));
	add_page(base, "d/f");
	if (kind == 2) {
		for (i = 0; i < 520; i++) {
			snprintf(name, sizeof(name), "q/x%u", i);
			check(!pkn_create(n, name, FILE_MODE, NULL));
		}
		for (i = 0; i < 515; i++) {
			snprintf(name, sizeof(name), "q/x%u", i);
			check(!pkn_unlink(n, name, false, NULL));
		}
	}
	if (kind == 1) {
		size = pkn_log_size(n);
		check(!pkn_rename(n, "b", "d/f"));
		do
			pkn_log_entry(n, size++, &entry);
		while (entry.kind != PKN_WORD);
		pkn_close(n);
		pkn_rollback(n, size);
	}
	pkn_close(n);
	find_slots(base);
	pkn_record(n, false);
	pkn_keep(n);
	return base;
}
