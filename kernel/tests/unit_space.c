// SPDX-License-Identifier: GPL-2.0-only
/* Who gets which blocks and slots, and what happens when there are none left. */
#include "unit.h"

/* ENOSPC comes exactly when statfs says so, changes nothing, and what must work does. */
void test_nodes_exact(void)
{
	struct pkn *n = fresh(4, 0);
	u64 room = usage_of(n).nodes_free, size, ino;

	expect_is(create_all(n, "f"), room);
	expect_is(usage_of(n).nodes_free, 0);
	expect_is(usage_of(n).blocks_free, 0);
	size = pkn_log_size(n);
	expect_is(pkn_create(n, "more", FILE_MODE, NULL), -ENOSPC);
	expect_is(pkn_log_size(n), size);
	expect_is(pkn_rename(n, "f1", "g"), 0);
	expect_is(pkn_rename(n, "g", "f2"), 0);
	expect_is(pkn_chmod(n, "f3", 0), 0);
	expect_is(pkn_resize(n, "f3", 5 * BLOCK), 0);
	expect_is(pkn_resize(n, "f3", 1), 0);
	expect_is(usage_of(n).nodes_free, 1);
	reopen(n);
	expect_is(pkn_unlink(n, "f5", true, &ino), 0);
	expect_is(usage_of(n).nodes_free, 1);
	expect_is(pkn_release(n, ino), 0);
	expect_is(create_all(n, "h"), 2);
	finish(n);
}

void test_blocks_exact(void)
{
	struct pkn *n = fresh(16, 0);
	u64 size;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	expect_is(usage_of(n).blocks_free, 15);
	size = pkn_log_size(n);
	expect_is(pkn_allocate(n, "a", 0, 16, 0), -ENOSPC);
	expect_is(pkn_log_size(n), size);
	expect_is(pkn_allocate(n, "a", 100, 10, 3), 0);
	expect_is(size_of(n, "a"), 3);
	expect_is(pkn_allocate(n, "b", 7, 6, 0), -ENOSPC);
	expect_is(pkn_allocate(n, "b", 7, 5, 0), 0);
	expect_is(usage_of(n).blocks_free, 0);
	expect_is(pkn_allocate(n, "b", 7, 5, 0), 0);
	expect_is(pkn_allocate(n, "b", 6, 1, 0), -ENOSPC);
	reopen(n);
	/* In a full store, space comes back by truncate, punch and unlink. */
	expect_is(pkn_punch(n, "a", 103, 2), 0);
	expect_is(usage_of(n).blocks_free, 2);
	expect_is(pkn_allocate(n, "b", 0, 2, 0), 0);
	expect_is(pkn_resize(n, "a", 3), 0);
	expect_is(usage_of(n).blocks_free, 8);
	expect_is(pkn_unlink(n, "b", false, NULL), 0);
	expect_is(usage_of(n).blocks_free, 15);
	finish(n);
}

static struct pkernfs_filling *reserve(struct pkn *n, const char *path, u32 count, u64 size)
{
	struct pkernfs_filling *fill;

	expect_is(pkernfs_node_reserve(pkn_store(n), pkn_node(n, path), 0, count, size, &fill), 0);
	return fill;
}

static bool at_once(void)
{
	return true;
}

/* Blocks that are being zeroed are nobody's: not free, and gone with a crash. */
void test_allocation_in_steps(void)
{
	struct pkn *n = fresh(1040, 0);
	struct pkernfs_filling *fill;
	struct pkernfs_node *node;
	u64 size;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	node = pkn_node(n, "a");
	expect_is(pkn_write(n, "a", 5000, "x", 1), 0);
	size = pkn_log_size(n);
	fill = reserve(n, "a", 1025, 1025 * BLOCK);
	expect_is(usage_of(n).blocks_free, 14);
	expect_is(size_of(n, "a"), 5001);
	expect_is(pkn_log_size(n), size);
	/* Others go on, also with the name of the file. */
	expect_is(pkn_allocate(n, "b", 0, 15, 0), -ENOSPC);
	expect_is(pkn_allocate(n, "b", 0, 13, 0), 0);
	expect_is(pkn_rename(n, "a", "c"), 0);
	expect_is(pkn_chmod(n, "c", 0600), 0);
	size = pkn_zeroed(n);
	expect_is(pkernfs_filling_zero(pkn_backing(n), fill, NULL), 0);
	expect_is(pkernfs_node_commit(pkn_store(n), node, fill, 0, 0), 0);
	/* Each byte once: the new blocks, and the rest of the one that it had. */
	expect_is(pkn_zeroed(n) - size, 1025 * BLOCK - 5001);
	expect_is(size_of(n, "c"), 1025 * BLOCK);
	expect_is(le32_to_cpu(node->inode->mode), S_IFREG | 0600);
	reopen(n);

	/* Given up, and forgotten by a crash. */
	expect_is(pkn_resize(n, "c", 5001), 0);
	node = pkn_node(n, "c");
	fill = reserve(n, "c", 600, 0);
	expect_is(pkernfs_filling_zero(pkn_backing(n), fill, at_once), -EINTR);
	expect_is(pkernfs_node_commit(pkn_store(n), node, fill, -EINTR, 0), -EINTR);
	expect_is(usage_of(n).blocks_free, 1025);
	expect_is(extents_of(n, "c"), 1);
	fill = reserve(n, "c", 600, 600 * BLOCK);
	expect_is(pkernfs_filling_zero(pkn_backing(n), fill, NULL), 0);
	pkernfs_node_commit(pkn_store(n), node, fill, -EIO, 0);
	expect_is(size_of(n, "c"), 5001);
	reopen(n);
	finish(n);
}

void test_extents_merge(void)
{
	struct pkn *n = fresh(64, 0);
	u32 i, block, count;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	for (i = 0; i < 8; i++)
		expect_is(pkn_write(n, "a", i * BLOCK, "x", 1), 0);
	expect_is(extents_of(n, "a"), 1);
	expect_is(pkn_punch(n, "a", 3, 2), 0);
	expect_is(extents_of(n, "a"), 2);
	expect(!pkernfs_node_map(pkn_store(n), pkn_node(n, "a"), 3, &block, &count));
	expect_is(count, 2);
	expect_is(pkn_allocate(n, "a", 0, 8, 0), 0);
	expect_is(extents_of(n, "a"), 1);
	expect(!pkernfs_node_map(pkn_store(n), pkn_node(n, "a"), 8, &block, &count));
	expect_is(count, U32_MAX - 8);
	expect_is(pkn_resize(n, "a", BLOCK + 1), 0);
	expect_is(usage_of(n).blocks_free, 61);
	expect_is(pkn_resize(n, "a", PKERNFS_FILE_MAX + 1), -EFBIG);
	expect_is(pkn_resize(n, "a", PKERNFS_FILE_MAX), 0);
	expect_is(pkn_allocate(n, "a", U32_MAX - 1, 1, 0), 0);
	expect_is(pkn_allocate(n, "a", U32_MAX, 1, 0), -EFBIG);
	reopen(n);
	finish(n);
}

void test_extent_pages(void)
{
	struct pkn *n = fresh(4096, 0);
	u64 nodes = usage_of(n).nodes_free;
	u32 first, i;

	fragment(n, "a", 309);
	expect_is(le32_to_cpu(pkn_node(n, "a")->inode->nr_pages), 0);
	fragment(n, "b", 1000);
	expect_is(le32_to_cpu(pkn_node(n, "b")->inode->nr_pages), 3);
	reopen(n);
	first = block_of(n, "b", 0);
	for (i = 0; i < 1000; i++)
		expect_is(block_of(n, "b", 2 * i), first + 2 * i);
	/* A change of name or mode keeps the pages. */
	expect_is(pkn_rename(n, "b", "c"), 0);
	expect_is(pkn_chmod(n, "c", 0600), 0);
	reopen(n);
	expect_is(pkn_resize(n, "c", 1999 * BLOCK), 0);
	expect_is(pkn_resize(n, "c", BLOCK), 0);
	expect_is(pkn_resize(n, "a", 0), 0);
	expect_is(extents_of(n, "c"), 1);
	expect_is(pkn_unlink(n, "a", false, NULL), 0);
	expect_is(pkn_unlink(n, "c", false, NULL), 0);
	expect_is(usage_of(n).blocks_free, 4095);
	/* But for the reserve that the largest file needed. */
	expect_is(nodes - usage_of(n).nodes_free, 3);
	reopen(n);
	finish(n);
}

/* A full store with a file in so many pieces that a change needs several slots. */
void test_reserve_with_pages(void)
{
	struct pkn *n = fresh(2048, 0);
	u64 free_blocks, size;

	fragment(n, "a", 677);		/* one more would not fit into two pages */
	expect_is(pkn_allocate(n, "a", 4000, 2, 0), 0);
	fill(n);
	reopen(n);
	size = pkn_log_size(n);
	expect_is(pkn_create(n, "more", FILE_MODE, NULL), -ENOSPC);
	expect_is(pkn_log_size(n), size);
	expect_is(pkn_rename(n, "a", "b"), 0);
	expect_is(pkn_punch(n, "b", 4000, 1), 0);
	expect_is(pkn_punch(n, "b", 2, 1), 0);
	free_blocks = usage_of(n).blocks_free;
	expect(free_blocks >= 1);
	expect_is(pkn_resize(n, "b", 0), 0);
	expect(usage_of(n).blocks_free >= 676);
	reopen(n);
	finish(n);
}

/* A punch in the middle of an extent needs a page more, on a full store too. */
void test_punch_splits_when_full(void)
{
	struct pkn *n = fresh(2048, 0);

	fragment(n, "a", 308);
	expect_is(pkn_allocate(n, "a", 5000, 3, 0), 0);
	expect_is(extents_of(n, "a"), 309);
	fill(n);
	expect_is(pkn_punch(n, "a", 5001, 1), 0);
	expect_is(extents_of(n, "a"), 310);
	expect_is(le32_to_cpu(pkn_node(n, "a")->inode->nr_pages), 1);
	reopen(n);
	finish(n);
}

void test_metadata_comes_and_goes(void)
{
	struct pkn *n = fresh(16, 0);
	char name[32];
	u32 i;

	for (i = 0; i < 2500; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
	}
	expect_is(usage_of(n).blocks, 16 - 5);
	reopen(n);
	/* The middle of the chain goes first. */
	for (i = 500; i < 1600; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		expect_is(pkn_unlink(n, name, false, NULL), 0);
	}
	expect(usage_of(n).blocks > 16 - 5);
	reopen(n);
	for (i = 0; i < 2500; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		if (i < 500 || i >= 1600)
			expect_is(pkn_unlink(n, name, false, NULL), 0);
	}
	expect_is(usage_of(n).blocks, 15);
	expect_is(usage_of(n).blocks_free, 15);
	reopen(n);
	finish(n);
}

/* The block that is given back is the one that slots were last taken from. */
void test_metadata_from_the_middle(void)
{
	struct pkn *n = fresh(16, 0);
	char name[32];
	u32 i;

	for (i = 0; i < 2000; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
	}
	for (i = 1900; i >= 508; i--) {
		if (i > 1018 && i <= 1600)
			continue;
		snprintf(name, sizeof(name), "f%u", i);
		expect_is(pkn_unlink(n, name, false, NULL), 0);
	}
	expect_is(usage_of(n).blocks, 16 - 3);
	expect_is(pkn_create(n, "new", FILE_MODE, NULL), 0);
	reopen(n);
	finish(n);
}
