// SPDX-License-Identifier: GPL-2.0-only
/* One damaged inode costs that inode: everything else is there, and nothing is overwritten. */
#include "unit.h"

#include "../fs/store_private.h"

#define GUESTS	50

static u64 inode_at(struct pkn *n, const char *path)
{
	return (u64)pkn_node(n, path)->slot << PKERNFS_SLOT_SHIFT;
}

/* A bit of a word, from the beginning of a slot on. */
static void flip(struct pkn *n, u64 slot, u32 offset)
{
	u8 byte = pkn_memory(n)[slot + offset] ^ 4;

	pkn_poke(n, slot + offset, &byte, 1);
}

static struct pkn *with_guests(void)
{
	struct pkn *n = fresh(128, 0);
	char path[32];
	u32 i;

	for (i = 0; i < GUESTS; i++) {
		snprintf(path, sizeof(path), "g%u", i);
		expect_is(pkn_create(n, path, DIR_MODE, NULL), 0);
		snprintf(path, sizeof(path), "g%u/ram", i);
		expect_is(pkn_create(n, path, FILE_MODE, NULL), 0);
		expect_is(pkn_write(n, path, BLOCK, path, strlen(path)), 0);
	}
	return n;
}

static void expect_guests(struct pkn *n, u32 but)
{
	char path[32], content[32];
	u32 i;

	for (i = 0; i < GUESTS; i++) {
		snprintf(path, sizeof(path), "g%u/ram", i);
		if (i == but)
			continue;
		expect_is(pkn_read(n, path, BLOCK, content, strlen(path)), 0);
		expect(!memcmp(content, path, strlen(path)));
	}
}

static const char *damage(struct pkn *n)
{
	u32 length;
	const char *text = pkernfs_store_damage(pkn_store(n), &length);

	expect_is(strlen(text), length);
	return text;
}

/* A file of a guest: its blocks stay untouched, whatever is asked for. */
void test_damaged_file(void)
{
	struct pkn *n = with_guests();
	const u64 slot = inode_at(n, "g7/ram");
	const u32 block = block_of(n, "g7/ram", 1);
	u64 free_blocks = usage_of(n).blocks_free;
	u8 bytes[4096];

	expect_is(damage(n)[0], 0);
	pkn_close(n);
	flip(n, slot, 200);
	memcpy(bytes, pkn_memory(n) + slot, sizeof(bytes));
	expect_is(pkn_open(n), 0);
	expect(strstr(pkn_said(n), "left out, perhaps inode 17 'ram': wrong checksum"));
	expect(strstr(damage(n), "left out, perhaps inode 17 'ram': wrong checksum"));
	expect(strstr(damage(n), "1 slots left out, 0 inodes in lost+found"));
	expect(!pkn_node(n, "g7/ram") && pkn_node(n, "g7"));
	expect_guests(n, 7);
	expect(free_blocks > 10);
	expect_is(usage_of(n).blocks_free, 0);

	/* In the place that is there everything works; no block can be had, which is said once. */
	expect_is(pkn_write(n, "g8/ram", BLOCK + 7, "x", 1), 0);
	expect_is(pkn_write(n, "g8/ram", 0, "x", 1), -ENOSPC);
	expect(strstr(pkn_said(n), "check --repair"));
	expect_is(pkn_write(n, "g8/ram", 0, "x", 1), -ENOSPC);
	expect(!*pkn_said(n));
	expect_is(pkn_create(n, "g7/ram", FILE_MODE, NULL), 0);
	expect(pkn_node(n, "g7/ram")->ino > 2 * GUESTS + 1);
	/* But for blocks that a good file gave back. */
	expect_is(pkn_unlink(n, "g9/ram", false, NULL), 0);
	expect_is(usage_of(n).blocks_free, 1);
	expect_is(pkn_write(n, "g7/ram", 0, "new", 3), 0);
	expect(block_of(n, "g7/ram", 0) != block);
	expect_is(pkn_write(n, "g7/ram", 3 * BLOCK, "x", 1), -ENOSPC);
	expect(!memcmp(bytes, pkn_memory(n) + slot, sizeof(bytes)));
	expect(!memcmp(pkn_memory(n) + block * BLOCK, "g7/ram", 6));

	/* Given up: what nobody owns is free again. */
	pkn_close(n);
	memset(bytes, 0, 8);
	pkn_poke(n, slot, bytes, 8);
	pkn_said(n);
	expect_is(pkn_open(n), 0);
	expect(!*pkn_said(n) && !*damage(n));
	expect_is(usage_of(n).blocks_free, free_blocks + 1);
	finish(n);
}

/* The directory of a guest: what is in it is found, and can be moved to a new one. */
void test_damaged_directory(void)
{
	struct pkn *n = with_guests();
	const u64 slot = inode_at(n, "g7"), ino = pkn_node(n, "g7")->ino;
	const u64 child = pkn_node(n, "g7/ram")->ino;
	char name[64], content[8];

	expect_is(pkn_create(n, "lost+found", DIR_MODE, NULL), 0);
	pkn_close(n);
	flip(n, slot, 2048);
	expect_is(pkn_open(n), 0);
	expect(strstr(damage(n), "perhaps inode 16 'g7': wrong checksum"));
	snprintf(name, sizeof(name), "its directory, inode %llu, is missing", ino);
	expect(strstr(damage(n), name));
	expect_guests(n, 7);
	snprintf(name, sizeof(name), "lost+found.1/%llu-ram", child);
	expect_is(pkn_read(n, name, BLOCK, content, 6), 0);
	expect(!memcmp(content, "g7/ram", 6));
	expect_is(pkn_chmod(n, name, 0600), 0);
	pkn_said(n);

	expect_is(pkn_create(n, "lost+found.1/x", FILE_MODE, NULL), -EPERM);
	expect_is(pkn_rename(n, "g1/ram", "lost+found.1/x"), -EPERM);
	expect_is(pkn_rename(n, name, "lost+found.1/x"), -EPERM);
	expect_is(pkn_rename(n, "lost+found.1", "x"), -EBUSY);
	expect_is(pkn_unlink(n, "lost+found.1", false, NULL), -EBUSY);
	expect_is(pkn_chmod(n, "lost+found.1", 0), -EPERM);
	expect_is(pkn_create(n, "g7", DIR_MODE, NULL), 0);
	expect(pkn_node(n, "g7")->ino != ino);
	expect_is(pkn_rename(n, name, "g7/ram"), 0);
	pkn_close(n);
	expect_is(pkn_open(n), 0);
	expect(!strstr(damage(n), "is missing"));
	expect(!pkn_node(n, "lost+found.1"));
	expect_guests(n, GUESTS);
	expect_is(le32_to_cpu(pkn_node(n, "g7/ram")->inode->mode), S_IFREG | 0600);
	finish(n);
}

/* Pages of extents of a damaged file are kept too: they say where its content lies. */
void test_damaged_extent_page(void)
{
	struct pkn *n = fresh(2048, 0);
	const struct pkernfs_page_ref *refs;
	u8 bytes[2][4096];
	u64 slots[2];
	u32 i;

	fragment(n, "a", 500);
	fragment(n, "b", 5);
	expect_is(pkn_allocate(n, "b", 100, 9, 0), 0);
	refs = (const void *)pkn_node(n, "a")->inode->payload;
	for (i = 0; i < 2; i++)
		slots[i] = (u64)le32_to_cpu(refs[i].slot) << PKERNFS_SLOT_SHIFT;
	pkn_close(n);
	flip(n, slots[1], 8);
	for (i = 0; i < 2; i++)
		memcpy(bytes[i], pkn_memory(n) + slots[i], sizeof(bytes[i]));
	expect_is(pkn_open(n), 0);
	expect(strstr(damage(n), "inode 2 'a': wrong checksum of its extent page"));
	expect(!pkn_node(n, "a"));
	expect_is(extents_of(n, "b"), 6);
	create_all(n, "f");
	for (i = 0; i < 2; i++)
		expect(!memcmp(bytes[i], pkn_memory(n) + slots[i], sizeof(bytes[i])));
	finish(n);
}

/* Of the root, and of what tells where slots are, there must be no damage. */
void test_damaged_root(void)
{
	struct pkn *n = with_guests();
	const u64 slot = inode_at(n, "/");

	pkn_close(n);
	flip(n, slot, 200);
	expect_is(pkn_open(n), -EUCLEAN);
	expect(strstr(pkn_said(n), "no root directory"));
	expect_is(pkn_make(n, "test", 0, false), -EEXIST);
	flip(n, slot, 200);
	flip(n, PKERNFS_HEADER_SLOT << PKERNFS_SLOT_SHIFT, 100);
	expect_is(pkn_open(n), -EUCLEAN);
	finish(n);
}

/* The log has an end, whatever is damaged; so has the text. */
void test_much_damage(void)
{
	struct pkn *n = fresh(64, 0);
	char name[32];
	u64 slots[3000];
	u32 i, lines = 0;
	const char *at;

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		snprintf(name, sizeof(name), "file-%u", i);
		expect_is(pkn_create(n, name, FILE_MODE, NULL), 0);
		slots[i] = inode_at(n, name);
	}
	pkn_close(n);
	for (i = 0; i < ARRAY_SIZE(slots); i++)
		flip(n, slots[i], 99);
	expect_is(pkn_open(n), 0);
	for (at = pkn_said(n); (at = strchr(at, '\n')); at++)
		lines++;
	expect_is(lines, 17);
	expect(strstr(damage(n), "3000 slots left out"));
	finish(n);
}

/* Has a file say that the first block of another one is its own, with the right checksum. */
static void share_block(struct pkn *n, const char *path, const char *other)
{
	const u64 slot = inode_at(n, path);
	struct pkernfs_inode inode = *pkn_node(n, path)->inode;
	struct pkernfs_extent *extent = (void *)inode.payload;

	extent->block = cpu_to_le32(block_of(n, other, 1));
	inode.checksum = cpu_to_le32(pkernfs_inode_checksum(pkernfs_store_super(pkn_store(n)),
							    &inode));
	pkn_close(n);
	pkn_poke(n, slot, &inode, sizeof(inode));
}

/* Which of two owners is right nobody can tell: both are left out. */
void test_shared_block(void)
{
	struct pkn *n = with_guests();
	u32 block = block_of(n, "g4/ram", 1);

	share_block(n, "g3/ram", "g4/ram");
	expect_is(pkn_open(n), 0);
	expect(strstr(damage(n), "inode 9 'ram': a block of extent"));
	expect(strstr(damage(n), "inode 11 'ram': a block of extent"));
	expect(strstr(damage(n), "2 slots left out"));
	expect(!pkn_node(n, "g3/ram") && !pkn_node(n, "g4/ram"));
	expect(!memcmp(pkn_memory(n) + block * BLOCK, "g4/ram", 6));
	expect_is(pkn_read(n, "g5/ram", BLOCK, &block, 1), 0);
	finish(n);
}

/* Every allocation of a mount that leaves something out fails once. */
void test_no_memory_when_damaged(void)
{
	struct pkn *n = with_guests();
	const u64 slot = inode_at(n, "g7");
	int err = -ENOMEM;
	long nth;

	share_block(n, "g3/ram", "g4/ram");
	flip(n, slot, 200);
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
	expect(strstr(damage(n), "3 slots left out, 1 inodes in lost+found"));
	finish(n);
}
