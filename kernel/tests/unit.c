// SPDX-License-Identifier: GPL-2.0-only
/* Unit tests of the metadata code. Exits at the first expectation that fails. */
#include <stdio.h>
#include <time.h>

#include <linux/minmax.h>
#include <linux/slab.h>

#include "native.h"

#define MIB		(1UL << 20)
#define GIB		(1UL << 30)
#define BLOCK		(1UL << PKERNFS_BLOCK_SHIFT)
#define FILE_MODE	(S_IFREG | 0644)
#define DIR_MODE	(S_IFDIR | 0755)
#define LINK_MODE	(S_IFLNK | 0777)

#define expect(cond) do { \
	if (!(cond)) { \
		fprintf(stderr, "%s:%d: expected: %s\n", __func__, __LINE__, #cond); \
		abort(); \
	} \
} while (0)

#define expect_is(a, b) do { \
	const long long _a = (a), _b = (b); \
	if (_a != _b) { \
		fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __func__, __LINE__, #a, \
			_a, _b); \
		abort(); \
	} \
} while (0)

static struct pkn *fresh(u32 nr_blocks, u64 base)
{
	struct pkn *n = pkn_new(nr_blocks, base);

	expect_is(pkn_make(n, "test", 0, false), 0);
	expect_is(pkn_open(n), 0);
	return n;
}

static struct pkernfs_usage usage_of(struct pkn *n)
{
	struct pkernfs_usage usage;

	pkn_usage(n, &usage);
	return usage;
}

static char *dump(struct pkn *n)
{
	u64 size = pkn_dump(n, NULL, 0);
	char *text = calloc(1, size + 1);

	pkn_dump(n, text, size);
	return text;
}

/* What is in memory is what the next kernel would find. */
static void reopen(struct pkn *n)
{
	struct pkernfs_usage before = usage_of(n), after;
	char *was = dump(n), *is;

	pkn_close(n);
	expect_is(shim_live, 0);
	expect_is(pkn_open(n), 0);
	is = dump(n);
	expect(!strcmp(was, is));
	after = usage_of(n);
	expect_is(after.blocks, before.blocks);
	expect_is(after.blocks_free, before.blocks_free);
	expect_is(after.nodes, before.nodes);
	expect(!*pkn_said(n));
	free(was);
	free(is);
}

static void finish(struct pkn *n)
{
	pkn_free(n);
	expect_is(shim_live, 0);
}

static u64 size_of(struct pkn *n, const char *path)
{
	return le64_to_cpu(pkernfs_node_inode(pkn_store(n), pkn_node(n, path))->size);
}

static u32 extents_of(struct pkn *n, const char *path)
{
	return le32_to_cpu(pkernfs_node_inode(pkn_store(n), pkn_node(n, path))->nr_extents);
}

static u32 block_of(struct pkn *n, const char *path, u32 file_block)
{
	u32 block, count;

	return pkernfs_node_map(pkn_store(n), pkn_node(n, path), file_block, &block, &count) ?
		block : 0;
}

static void test_make(void)
{
	struct pkn *n = pkn_new(8, GIB);
	const u64 zero = 0;

	expect_is(pkn_open(n), -EINVAL);
	expect(strstr(pkn_said(n), "no store"));
	expect_is(pkn_make(n, "a-label-that-is-far-too-long-for-it", 0, false), -EINVAL);
	expect_is(pkn_make(n, "test", 7, false), -EINVAL);
	pkn_said(n);
	expect_is(pkn_make(n, "test", 3, false), 0);
	expect_is(pkn_make(n, "test", 3, false), -EEXIST);
	expect(strstr(pkn_said(n), "not empty"));
	expect_is(pkn_make(n, "test", 3, true), 0);
	expect_is(pkn_open(n), 0);
	expect_is(usage_of(n).blocks, 4);
	expect_is(usage_of(n).blocks_free, 4);
	expect_is(usage_of(n).nodes, 1);
	expect(!strcmp((const char *)pkernfs_store_super(pkn_store(n))->label, "test"));
	reopen(n);
	pkn_close(n);

	/* One damaged super block is repaired, two are too many. */
	pkn_poke(n, 16, &zero, 8);
	expect_is(pkn_open(n), 0);
	expect(strstr(pkn_said(n), "repaired"));
	pkn_close(n);
	expect_is(pkn_open(n), 0);
	expect(!*pkn_said(n));
	pkn_close(n);
	pkn_poke(n, 16, &zero, 8);
	pkn_poke(n, MIB + 16, &zero, 8);
	expect_is(pkn_open(n), -EUCLEAN);
	finish(n);
}

static void test_other_range(void)
{
	struct pkn *n = fresh(8, GIB), *other = pkn_new(8, 2 * GIB), *longer = pkn_new(9, GIB);

	pkn_poke(other, 0, pkn_memory(n), BLOCK);
	expect_is(pkn_open(other), -ENXIO);
	pkn_poke(longer, 0, pkn_memory(n), BLOCK);
	expect_is(pkn_open(longer), -ENXIO);
	pkn_free(other);
	pkn_free(longer);
	finish(n);
}

static void test_tree(void)
{
	struct pkn *n = fresh(4, 0);
	char name[300] = "";
	u64 ino;

	memset(name, 'n', 255);
	expect_is(pkn_create(n, "d", DIR_MODE, NULL), 0);
	expect_is(pkn_create(n, "d/e", DIR_MODE, NULL), 0);
	expect_is(pkn_create(n, "d/e/f", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "d/l", LINK_MODE, "e/f"), 0);
	expect_is(pkn_create(n, "d/l", FILE_MODE, NULL), -EEXIST);
	expect_is(pkn_create(n, "x/y", FILE_MODE, NULL), -ENOENT);
	expect_is(pkn_create(n, "d/e/f/g", FILE_MODE, NULL), -ENOTDIR);
	expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
	name[255] = 'n';
	expect_is(pkn_create(n, name, FILE_MODE, NULL), -ENAMETOOLONG);
	expect_is(pkn_create(n, "..", DIR_MODE, NULL), -EINVAL);
	expect_is(pkn_create(n, "p", S_IFIFO | 0644, NULL), -EINVAL);
	expect_is(pkn_node(n, "d")->nr_subdirs, 1);
	expect_is(pkn_node(n, "d")->nr_children, 2);
	expect_is(pkn_unlink(n, "d", false, &ino), -ENOTEMPTY);
	expect_is(pkn_unlink(n, "/", false, &ino), -EBUSY);
	expect_is(pkn_rename(n, "d", "d/e/x"), -EINVAL);
	expect_is(pkn_rename(n, "d", "d"), 0);
	expect_is(pkn_rename(n, "d/e/f", "d/e"), -EISDIR);
	expect_is(pkn_rename(n, "d/e", "d/l"), -ENOTDIR);
	expect_is(pkn_create(n, "d2", DIR_MODE, NULL), 0);
	expect_is(pkn_rename(n, "d2", "d/e"), -ENOTEMPTY);
	expect_is(pkn_rename(n, "d/e", "d2"), 0);
	expect(!pkn_node(n, "d/e") && pkn_node(n, "d2/f"));
	expect_is(pkn_node(n, "d")->nr_subdirs, 0);
	expect_is(pkn_rename(n, "d2/f", "d/l"), 0);
	expect_is(le32_to_cpu(pkn_node(n, "d/l")->inode->mode), FILE_MODE);
	expect_is(pkn_chmod(n, "d/l", 0400), 0);
	expect_is(le32_to_cpu(pkn_node(n, "d/l")->inode->mode), S_IFREG | 0400);
	reopen(n);
	finish(n);
}

/* An image of a rename that was stopped before its second word, and before its third. */
static void test_leftovers(void)
{
	struct pkn *n = fresh(4, 0);
	struct pkn_entry entry;
	u64 size, words = 0;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	size = pkn_log_size(n);
	expect_is(pkn_rename(n, "a", "b"), 0);
	pkn_close(n);
	for (; words < 2; size++) {
		pkn_log_entry(n, size, &entry);
		words += entry.kind == PKN_WORD;
	}
	pkn_rollback(n, size);
	expect_is(pkn_open(n), 0);
	expect(strstr(pkn_said(n), "cleared 1 slots"));
	expect(!pkn_node(n, "a") && pkn_node(n, "b")->ino == 2);
	reopen(n);
	pkn_close(n);
	pkn_rollback(n, size - 1);
	expect_is(pkn_open(n), 0);
	expect(strstr(pkn_said(n), "cleared 2 slots"));
	expect(!pkn_node(n, "a") && pkn_node(n, "b")->ino == 2);
	finish(n);
}

static u64 create_all(struct pkn *n, const char *prefix)
{
	char name[32];
	u64 count = 0;
	int err;

	for (;; count++) {
		snprintf(name, sizeof(name), "%s%llu", prefix, count);
		err = pkn_create(n, name, FILE_MODE, NULL);
		if (err)
			break;
	}
	expect_is(err, -ENOSPC);
	return count;
}

/* Leaves no room for anything, but takes no more than two blocks for that. */
static void fill(struct pkn *n)
{
	expect_is(pkn_create(n, "fill", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "fill", 0, usage_of(n).blocks_free - 2, 0), 0);
	create_all(n, "f");
	expect_is(usage_of(n).nodes_free, 0);
	expect_is(usage_of(n).blocks_free, 0);
}

/* ENOSPC comes exactly when statfs says so, changes nothing, and what must work does. */
static void test_nodes_exact(void)
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

static void test_blocks_exact(void)
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

static void test_extents_merge(void)
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

/* Every second block of a file: as many extents as blocks. */
static void fragment(struct pkn *n, const char *path, u32 count)
{
	u32 i;

	expect_is(pkn_create(n, path, FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, path, 0, 2 * count, 0), 0);
	for (i = 0; i < count; i++)
		expect_is(pkn_punch(n, path, 2 * i + 1, 1), 0);
	expect_is(extents_of(n, path), count);
}

static void test_extent_pages(void)
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
static void test_reserve_with_pages(void)
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
static void test_punch_splits_when_full(void)
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

static void test_metadata_comes_and_goes(void)
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
static void test_metadata_from_the_middle(void)
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

static void test_growth_is_zero(void)
{
	struct pkn *n = fresh(16, 0);
	u8 byte = 0xff, *at;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_write(n, "a", 100, "hello", 5), 0);
	at = pkn_memory(n) + block_of(n, "a", 0) * BLOCK;
	/* A mapping lets anyone write to the whole of the last page, and more. */
	memset(at + 105, byte, 5000);
	pkn_poke(n, 0, pkn_memory(n), 8);
	pkn_poke(n, at + 105 - pkn_memory(n), at + 105, 5000);
	expect_is(pkn_resize(n, "a", 200), 0);
	expect(!memchr_inv(at + 105, 0, 95));
	expect_is(at[200], byte);
	expect_is(pkn_write(n, "a", 300, "x", 1), 0);
	expect(!memchr_inv(at + 200, 0, 100));
	/* A shrink clears the rest of the page that stays mapped. */
	pkn_poke(n, at + 301 - pkn_memory(n), at + 305, 1);
	expect_is(pkn_resize(n, "a", 102), 0);
	expect(!memcmp(at + 100, "he", 2));
	expect(!memchr_inv(at + 102, 0, 4096 - 102));
	expect_is(at[4096], byte);
	expect_is(pkn_allocate(n, "a", 1, 1, 2 * BLOCK), 0);
	expect(!memchr_inv(at + 102, 0, BLOCK - 102));
	finish(n);
}

static void test_blocks_come_zeroed(void)
{
	struct pkn *n = fresh(4, 0);
	static u8 data[BLOCK], back[BLOCK];

	memset(data, 0x55, sizeof(data));
	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	expect_is(pkn_write(n, "a", 0, data, sizeof(data)), 0);
	expect_is(pkn_unlink(n, "a", false, NULL), 0);
	expect_is(pkn_allocate(n, "b", 0, 3, 3 * BLOCK), 0);
	expect_is(pkn_read(n, "b", 0, back, sizeof(back)), 0);
	expect(!memchr_inv(back, 0, sizeof(back)));
	finish(n);
}

static void test_orphan(void)
{
	struct pkn *n = fresh(8, 0);
	struct pkernfs_node *node;
	u64 ino, size;
	struct pkn_entry entry;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "a", 0, 2, 2 * BLOCK), 0);
	size = pkn_log_size(n);
	expect_is(pkn_unlink(n, "a", true, &ino), 0);
	node = pkernfs_node_find(pkn_store(n), ino);
	expect(node->orphan && !node->parent && !pkn_node(n, "a"));
	expect_is(usage_of(n).blocks_free, 5);
	/* It can still be used, but never has a commit word again. */
	expect_is(pkernfs_node_allocate(pkn_store(n), node, 3, 2, 5 * BLOCK, 0), 0);
	expect_is(pkernfs_node_resize(pkn_store(n), node, 4 * BLOCK, 0), 0);
	expect_is(pkernfs_node_punch(pkn_store(n), node, 0, 1, 0), 0);
	expect_is(le64_to_cpu(node->inode->size), 4 * BLOCK);
	for (; size < pkn_log_size(n); size++) {
		pkn_log_entry(n, size, &entry);
		expect(entry.kind != PKN_WORD || entry.offset % 4096 ||
		       !memcmp(entry.new, "\0\0\0\0\0\0\0", 8));
	}
	expect_is(usage_of(n).blocks_free, 5);
	pkn_close(n);
	expect_is(pkn_open(n), 0);
	expect_is(usage_of(n).blocks_free, 7);
	expect_is(usage_of(n).nodes, 1);
	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_unlink(n, "a", true, &ino), 0);
	expect_is(pkn_release(n, ino), 0);
	expect_is(usage_of(n).nodes, 1);
	reopen(n);
	finish(n);
}

static void test_limbo(void)
{
	struct pkn *n = fresh(8, 0);
	u32 block;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "a", 0, 3, 0), 0);
	block = block_of(n, "a", 1);
	pkn_set_busy(n, block, true);
	expect_is(pkn_resize(n, "a", 0), 0);
	expect_is(usage_of(n).blocks_free, 6);
	expect_is(pkn_allocate(n, "a", 0, 7, 0), -ENOSPC);
	pkn_set_busy(n, block, false);
	expect_is(pkn_allocate(n, "a", 0, 7, 0), 0);
	finish(n);
}

/* File and memory are congruent modulo 1 GiB, wherever the range begins. */
static void expect_congruent(struct pkn *n, const char *path, u64 base, u32 file_block)
{
	const u64 address = base + block_of(n, path, file_block) * BLOCK;

	expect(block_of(n, path, file_block));
	expect_is((address - file_block * BLOCK) % GIB, 0);
}

static void test_large_files(u64 base)
{
	struct pkn *n = fresh(10 * 512, base);
	u32 i;

	for (i = 0; i < 20; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
		expect_is(pkn_allocate(n, name, 0, 1, 1), 0);
		expect(block_of(n, name, 0) < 32);
	}
	expect_is(pkn_create(n, "ram", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "ram", 0, 3 * 512, 3 * GIB), 0);
	expect_is(extents_of(n, "ram"), 1);
	expect_congruent(n, "ram", base, 0);
	/* Sparse: faults come in any order. */
	expect_is(pkn_create(n, "sparse", FILE_MODE, NULL), 0);
	expect_is(pkn_resize(n, "sparse", 4 * GIB), 0);
	for (i = 0; i < 2048; i++) {
		u32 file_block = i * 1021 % 2048;

		expect_is(pkn_allocate(n, "sparse", file_block, 1, 0), 0);
		expect_congruent(n, "sparse", base, file_block);
	}
	expect_is(extents_of(n, "sparse"), 1);
	expect_is(extents_of(n, "ram"), 1);
	reopen(n);
	/* What is left is not in one piece, but all of it can be had. */
	expect_is(pkn_create(n, "rest", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "rest", 0, usage_of(n).blocks_free, 0), 0);
	expect(extents_of(n, "rest") <= 4);
	reopen(n);
	finish(n);
}

/* The largest range there can be. */
static void test_16_tib(void)
{
	struct pkn *n = fresh(PKERNFS_MAX_BLOCKS, GIB);
	char name[16];
	u32 i;

	for (i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
		expect_is(pkn_allocate(n, name, 0, 1 + i % 3, 0), 0);
	}
	expect_is(pkn_create(n, "sparse", FILE_MODE, NULL), 0);
	expect_is(pkn_resize(n, "sparse", 8192 * GIB), 0);
	for (i = 0; i < 300; i++)
		expect_is(pkn_allocate(n, "sparse", i * 13777, 1, 0), 0);
	expect_congruent(n, "sparse", GIB, 13777);
	reopen(n);
	expect_is(pkn_create(n, "big", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "big", 0, usage_of(n).blocks_free, 0), 0);
	expect_is(usage_of(n).blocks_free, 0);
	reopen(n);
	expect_is(pkn_unlink(n, "big", false, NULL), 0);
	reopen(n);
	finish(n);
}

/* Every allocation of every operation fails once: nothing has changed then. */
static int (*const failing[])(struct pkn *n);

static int fail_create(struct pkn *n) { return pkn_create(n, "d/new", FILE_MODE, NULL); }
static int fail_grow(struct pkn *n) { return pkn_create(n, "x507", FILE_MODE, NULL); }
static int fail_unlink(struct pkn *n) { return pkn_unlink(n, "a", false, NULL); }
static int fail_rename(struct pkn *n) { return pkn_rename(n, "a", "d/a"); }
static int fail_over(struct pkn *n) { return pkn_rename(n, "a", "b"); }
static int fail_chmod(struct pkn *n) { return pkn_chmod(n, "a", 0); }
static int fail_allocate(struct pkn *n) { return pkn_allocate(n, "a", 0, 20, 30 * BLOCK); }
static int fail_pages(struct pkn *n) { return pkn_allocate(n, "frag", 1, 1, 0); }
static int fail_resize(struct pkn *n) { return pkn_resize(n, "a", 3); }
static int fail_punch(struct pkn *n) { return pkn_punch(n, "frag", 7, 300); }

static int (*const failing[])(struct pkn *n) = {
	fail_create, fail_grow, fail_unlink, fail_rename, fail_over, fail_chmod, fail_allocate,
	fail_pages, fail_resize, fail_punch,
};

static struct pkn *prepared(bool full_block)
{
	struct pkn *n = fresh(2048, 0);
	char name[16];
	u32 i;

	expect_is(pkn_create(n, "d", DIR_MODE, NULL), 0);
	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "a", 3, 4, 10 * BLOCK), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	if (full_block) {
		for (i = 0; usage_of(n).blocks == 2047 && i < 498; i++) {
			snprintf(name, sizeof(name), "x%u", i);
			expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
		}
		while (usage_of(n).nodes < 509 - 5)
			expect_is(pkn_create(n, (snprintf(name, sizeof(name), "x%u", i++), name),
					     FILE_MODE, NULL), 0);
	} else {
		fragment(n, "frag", 312);
	}
	return n;
}

static void test_no_memory(void)
{
	u32 op;

	for (op = 0; op < ARRAY_SIZE(failing); op++) {
		struct pkn *n = prepared(failing[op] == fail_grow);
		struct pkernfs_usage was = usage_of(n), is;
		char *before = dump(n), *after;
		long live = shim_live, nth;
		int err = -ENOMEM;

		for (nth = 1; err; nth++) {
			shim_fail_at = nth;
			err = failing[op](n);
			shim_fail_at = 0;
			if (!err)
				break;
			expect_is(err, -ENOMEM);
			expect_is(shim_live, live);
			after = dump(n);
			expect(!strcmp(before, after));
			free(after);
			is = usage_of(n);
			expect(!memcmp(&was, &is, sizeof(was)));
		}
		if (failing[op] == fail_grow)
			expect(usage_of(n).blocks == was.blocks - 1 && nth == 4);
		if (failing[op] != fail_unlink && failing[op] != fail_rename &&
		    failing[op] != fail_over && failing[op] != fail_chmod)
			expect(nth > 1);
		free(before);
		reopen(n);
		finish(n);
	}
}

static void test_no_memory_at_open(void)
{
	struct pkn *n = prepared(false);
	long nth;
	int err = -ENOMEM;

	pkn_close(n);
	for (nth = 1; err; nth++) {
		expect_is(shim_live, 0);
		shim_fail_at = nth;
		err = pkn_open(n);
		shim_fail_at = 0;
		if (err) {
			expect_is(err, -ENOMEM);
			expect(strstr(pkn_said(n), "memory"));
		}
	}
	expect(nth > 8);
	finish(n);
}

/* Anything in any order; the next kernel always finds what this one has in memory. */
static u64 random_state = 88172645463325252ULL;

static u32 random_below(u32 limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

static const char *random_path(char *path)
{
	static const char *const dirs[] = { "", "d/", "e/", "d/g/" };

	sprintf(path, "%s%c", dirs[random_below(4)], 'a' + (char)random_below(8));
	return path;
}

static int random_op(struct pkn *n)
{
	char path[16], other[16];
	const u32 at = random_below(40), count = 1 + random_below(6);

	random_path(path);
	random_path(other);
	switch (random_below(11)) {
	case 0:
		return pkn_create(n, path, FILE_MODE, NULL);
	case 1:
		return pkn_create(n, path, DIR_MODE, NULL);
	case 2:
		return pkn_create(n, path, LINK_MODE, other);
	case 3:
		return pkn_unlink(n, path, false, NULL);
	case 4:
		return pkn_rename(n, path, other);
	case 5:
		return pkn_chmod(n, path, random_below(07777));
	case 6:
		return pkn_resize(n, path, random_below(40 * BLOCK));
	case 7:
		return pkn_punch(n, path, at, count);
	case 8:
		return pkn_write(n, path, random_below(20 * BLOCK), "data", 4);
	default:
		return pkn_allocate(n, path, at, count, 0);
	}
}

static void expect_expected(int err)
{
	static const int known[] = {
		0, -ENOENT, -EEXIST, -ENOSPC, -ENOTDIR, -EISDIR, -ENOTEMPTY, -EINVAL, -EBUSY,
	};
	u32 i;

	for (i = 0; i < ARRAY_SIZE(known) && known[i] != err; i++)
		;
	if (i == ARRAY_SIZE(known))
		fprintf(stderr, "error %d\n", err);
	expect(i < ARRAY_SIZE(known));
}

static void test_random(u32 nr_blocks, u32 count)
{
	struct pkn *n = fresh(nr_blocks, 0);
	char *before, *after;
	u32 i;

	for (i = 0; i < count; i++) {
		int err;

		before = dump(n);
		err = random_op(n);
		expect_expected(err);
		if (err) {
			after = dump(n);
			expect(!strcmp(before, after));
			free(after);
		}
		free(before);
		reopen(n);
	}
	finish(n);
}

#define run(call) do { \
	clock_t start = clock(); \
	call; \
	printf("%-40s %6.2f s\n", #call, (double)(clock() - start) / CLOCKS_PER_SEC); \
} while (0)

int main(void)
{
	setbuf(stdout, NULL);
	run(test_make());
	run(test_other_range());
	run(test_tree());
	run(test_leftovers());
	run(test_nodes_exact());
	run(test_blocks_exact());
	run(test_extents_merge());
	run(test_extent_pages());
	run(test_reserve_with_pages());
	run(test_punch_splits_when_full());
	run(test_metadata_comes_and_goes());
	run(test_metadata_from_the_middle());
	run(test_growth_is_zero());
	run(test_blocks_come_zeroed());
	run(test_orphan());
	run(test_limbo());
	run(test_large_files(4 * GIB));
	run(test_large_files(5 * GIB + 38 * MIB));
	run(test_16_tib());
	run(test_no_memory());
	run(test_no_memory_at_open());
	run(test_random(12, 3000));
	run(test_random(64, 3000));
	puts("kernel/fs: all unit tests passed");
	return 0;
}
