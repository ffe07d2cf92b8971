// SPDX-License-Identifier: GPL-2.0-only
/* What files read as, and where large ones lie. */
#include "unit.h"

void test_growth_is_zero(void)
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

void test_blocks_come_zeroed(void)
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

/* File and memory are congruent modulo 1 GiB, wherever the range begins. */
static void expect_congruent(struct pkn *n, const char *path, u64 base, u32 file_block)
{
	const u64 address = base + block_of(n, path, file_block) * BLOCK;

	expect(block_of(n, path, file_block));
	expect_is((address - file_block * BLOCK) % GIB, 0);
}

void test_large_files(u64 base)
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
void test_16_tib(void)
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
