// SPDX-License-Identifier: GPL-2.0-only
/* Names: making a store, directories, renames that were stopped, files without a name. */
#include "unit.h"

/* Memory that was in use before is not zero: that alone is no store, and no reason to refuse. */
static void test_used_memory(void)
{
	const u32 first = PKERNFS_SUPER_A_SLOT << PKERNFS_SLOT_SHIFT;
	const u32 second = PKERNFS_SUPER_B_SLOT << PKERNFS_SLOT_SHIFT;
	struct pkn *n = pkn_new(8, GIB);
	u8 junk[4096], zero[4096] = {};
	u32 at;

	for (at = 0; at < sizeof(junk); at++)
		junk[at] = (u8)(at * 167 + (at >> 8) + 1);
	for (at = 0; at < 2 * MIB; at += sizeof(junk))
		pkn_poke(n, at, junk, sizeof(junk));
	expect_is(pkn_open(n), -EINVAL);
	expect(strstr(pkn_said(n), "no store"));
	expect_is(pkn_make(n, "test", 0, false), 0);
	expect_is(pkn_open(n), 0);
	expect(!pkn_create(n, "file", FILE_MODE, NULL));
	pkn_close(n);

	/* What was a store is never overwritten: both copies are lost in part, then wholly. */
	pkn_poke(n, first, junk, 8);
	pkn_poke(n, second, junk, 8);
	expect_is(pkn_open(n), -EUCLEAN);
	expect_is(pkn_make(n, "test", 0, false), -EEXIST);
	pkn_poke(n, first, junk, sizeof(junk));
	pkn_poke(n, second, junk, sizeof(junk));
	expect_is(pkn_open(n), -EUCLEAN);
	expect_is(pkn_make(n, "test", 0, false), -EEXIST);
	pkn_poke(n, first, zero, sizeof(zero));
	pkn_poke(n, second, zero, sizeof(zero));
	expect_is(pkn_open(n), -EUCLEAN);
	expect_is(pkn_make(n, "test", 0, false), -EEXIST);
	expect_is(pkn_make(n, "test", 0, true), 0);
	finish(n);
}

void test_make(void)
{
	struct pkn *n = pkn_new(8, GIB);
	const u64 zero = 0;

	test_used_memory();
	expect_is(pkn_open(n), -EINVAL);
	expect(strstr(pkn_said(n), "no store"));
	expect_is(pkn_make(n, "a-label-that-is-far-too-long-for-it", 0, false), -EINVAL);
	expect_is(pkn_make(n, "test", 7, false), -EINVAL);
	pkn_said(n);
	expect_is(pkn_make(n, "test", 3, false), 0);
	expect_is(pkn_make(n, "test", 3, false), -EEXIST);
	expect(strstr(pkn_said(n), "what is left of one"));
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

void test_other_range(void)
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

void test_tree(void)
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
void test_leftovers(void)
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

/* A reader changes nothing; what a crash left is cleared before the first change. */
void test_read_only(void)
{
	struct pkn *n = fresh(8, 0);
	struct pkernfs_super *super = (void *)pkn_memory(n);
	struct pkn_entry entry = { .kind = PKN_BODY };
	u64 size;
	u8 right, wrong;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "b", 0, 6, 0), 0);
	size = pkn_log_size(n);
	expect_is(pkn_rename(n, "a", "b"), 0);
	pkn_close(n);
	/* Stopped when the rename counts, and what it replaced still has its commit word. */
	while (entry.kind != PKN_WORD)
		pkn_log_entry(n, size++, &entry);
	pkn_rollback(n, size);
	pkn_said(n);
	expect_is(pkn_open_read_only(n), 0);
	expect_is(pkn_log_size(n), size);
	expect(!*pkn_said(n));
	expect_is(pkn_node(n, "b")->ino, 2);
	pkernfs_store_repair(pkn_store(n));
	expect(strstr(pkn_said(n), "cleared 2 slots"));
	expect_is(pkn_allocate(n, "b", 0, 7, 0), 0);
	reopen(n);
	pkn_close(n);

	right = super->label[0];
	wrong = right ^ 1;
	pkn_poke(n, offsetof(struct pkernfs_super, label), &wrong, 1);
	expect_is(pkn_open_read_only(n), 0);
	expect_is(super->label[0], wrong);
	pkernfs_store_repair(pkn_store(n));
	expect_is(super->label[0], right);
	finish(n);
}

void test_orphan(void)
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

void test_limbo(void)
{
	struct pkn *n = fresh(8, 0);
	u32 block;

	expect_is(usage_of(n).blocks_limbo, 0);
	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "a", 0, 3, 0), 0);
	block = block_of(n, "a", 1);
	pkn_set_busy(n, block, true);
	expect_is(pkn_resize(n, "a", 0), 0);
	expect_is(usage_of(n).blocks_free, 6);
	expect_is(usage_of(n).blocks_limbo, 1);
	pkn_said(n);
	expect_is(pkn_allocate(n, "a", 0, 7, 0), -ENOSPC);
	expect(strstr(pkn_said(n), "no space: 1 blocks that were freed"));
	expect_is(pkn_allocate(n, "a", 0, 7, 0), -ENOSPC);
	expect(!*pkn_said(n));
	pkn_set_busy(n, block, false);
	pkernfs_store_collect(pkn_store(n));
	expect_is(usage_of(n).blocks_free, 7);
	expect_is(usage_of(n).blocks_limbo, 0);
	expect_is(pkn_allocate(n, "a", 0, 7, 0), 0);
	finish(n);
}

/* The store was closed and opened again while a device still reached freed blocks. */
void test_limbo_after_opening(void)
{
	struct pkn *n = fresh(8, 0);
	u32 first;

	expect_is(pkn_create(n, "a", FILE_MODE, NULL), 0);
	expect_is(pkn_create(n, "b", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "a", 0, 2, 0), 0);
	expect_is(pkn_allocate(n, "b", 0, 1, 0), 0);
	first = block_of(n, "a", 0);
	pkn_set_busy(n, first, true);
	pkn_set_busy(n, first + 1, true);
	pkn_set_busy(n, block_of(n, "b", 0), true);
	expect_is(pkn_resize(n, "a", 0), 0);
	pkn_close(n);
	expect_is(pkn_open(n), 0);
	expect_is(usage_of(n).blocks_free, 6);
	pkernfs_store_recheck(pkn_store(n));
	expect_is(usage_of(n).blocks_free, 4);
	expect_is(usage_of(n).blocks_limbo, 2);
	expect_is(pkn_allocate(n, "b", 0, 6, 0), -ENOSPC);
	expect_is(pkn_allocate(n, "b", 0, 5, 0), 0);
	pkn_set_busy(n, first, false);
	expect_is(pkn_allocate(n, "b", 0, 6, 0), 0);
	expect_is(block_of(n, "b", 5), first);
	expect_is(usage_of(n).blocks_limbo, 1);
	finish(n);
}
