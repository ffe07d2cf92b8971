/* SPDX-License-Identifier: GPL-2.0-only */
/* What the unit tests of the metadata code share. */
#ifndef _PKERNFS_TESTS_UNIT_H
#define _PKERNFS_TESTS_UNIT_H

#include <stdio.h>

#include <linux/minmax.h>
#include <linux/slab.h>

#include "native.h"

#define MIB		(1UL << 20)
#define GIB		(1UL << 30)
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

struct pkn *fresh(u32 nr_blocks, u64 base);
struct pkernfs_usage usage_of(struct pkn *n);
char *dump(struct pkn *n);
void reopen(struct pkn *n);
void finish(struct pkn *n);
u64 size_of(struct pkn *n, const char *path);
u32 extents_of(struct pkn *n, const char *path);
u32 block_of(struct pkn *n, const char *path, u32 file_block);
u64 create_all(struct pkn *n, const char *prefix);
void fill(struct pkn *n);
void fragment(struct pkn *n, const char *path, u32 count);

/* unit_tree.c */
void test_make(void);
void test_other_range(void);
void test_tree(void);
void test_leftovers(void);
void test_read_only(void);
void test_orphan(void);
void test_limbo(void);
void test_limbo_after_opening(void);

/* unit_space.c */
void test_nodes_exact(void);
void test_blocks_exact(void);
void test_allocation_in_steps(void);
void test_extents_merge(void);
void test_extent_pages(void);
void test_reserve_with_pages(void);
void test_punch_splits_when_full(void);
void test_metadata_comes_and_goes(void);
void test_metadata_from_the_middle(void);

/* unit_data.c */
void test_growth_is_zero(void);
void test_blocks_come_zeroed(void);
void test_large_files(u64 base);
void test_16_tib(void);

/* unit_memory.c */
void test_no_memory(void);
void test_no_memory_at_open(void);

/* unit_damage.c */
void test_damaged_file(void);
void test_damaged_directory(void);
void test_damaged_extent_page(void);
void test_damaged_root(void);
void test_much_damage(void);
void test_shared_block(void);
void test_no_memory_when_damaged(void);

/* unit_random.c */
void test_random(u32 nr_blocks, u32 count);

#endif
