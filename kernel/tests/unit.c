// SPDX-License-Identifier: GPL-2.0-only
/* Unit tests of the metadata code. Exits at the first expectation that fails. */
#include <time.h>

#include "unit.h"

struct pkn *fresh(u32 nr_blocks, u64 base)
{
	struct pkn *n = pkn_new(nr_blocks, base);

	expect_is(pkn_make(n, "test", 0, true), 0);
	expect_is(pkn_open(n), 0);
	return n;
}

struct pkernfs_usage usage_of(struct pkn *n)
{
	struct pkernfs_usage usage;

	pkn_usage(n, &usage);
	return usage;
}

char *dump(struct pkn *n)
{
	u64 size = pkn_dump(n, NULL, 0);
	char *text = calloc(1, size + 1);

	pkn_dump(n, text, size);
	return text;
}

/* What is in memory is what the next kernel would find. */
void reopen(struct pkn *n)
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

void finish(struct pkn *n)
{
	pkn_free(n);
	expect_is(shim_live, 0);
}

u64 size_of(struct pkn *n, const char *path)
{
	return le64_to_cpu(pkernfs_node_inode(pkn_store(n), pkn_node(n, path))->size);
}

u32 extents_of(struct pkn *n, const char *path)
{
	return le32_to_cpu(pkernfs_node_inode(pkn_store(n), pkn_node(n, path))->nr_extents);
}

u32 block_of(struct pkn *n, const char *path, u32 file_block)
{
	u32 block, count;

	return pkernfs_node_map(pkn_store(n), pkn_node(n, path), file_block, &block, &count) ?
		block : 0;
}

u64 create_all(struct pkn *n, const char *prefix)
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
void fill(struct pkn *n)
{
	expect_is(pkn_create(n, "fill", FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, "fill", 0, usage_of(n).blocks_free - 2, 0), 0);
	create_all(n, "f");
	expect_is(usage_of(n).nodes_free, 0);
	expect_is(usage_of(n).blocks_free, 0);
}

/* Every second block of a file: as many extents as blocks. */
void fragment(struct pkn *n, const char *path, u32 count)
{
	u32 i;

	expect_is(pkn_create(n, path, FILE_MODE, NULL), 0);
	expect_is(pkn_allocate(n, path, 0, 2 * count, 0), 0);
	for (i = 0; i < count; i++)
		expect_is(pkn_punch(n, path, 2 * i + 1, 1), 0);
	expect_is(extents_of(n, path), count);
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
	run(test_read_only());
	run(test_nodes_exact());
	run(test_blocks_exact());
	run(test_allocation_in_steps());
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
	run(test_limbo_after_opening());
	run(test_large_files(4 * GIB));
	run(test_large_files(5 * GIB + 38 * MIB));
	run(test_16_tib());
	run(test_damaged_file());
	run(test_damaged_directory());
	run(test_damaged_extent_page());
	run(test_damaged_root());
	run(test_much_damage());
	run(test_shared_block());
	run(test_no_memory_when_damaged());
	run(test_no_memory());
	run(test_no_memory_at_open());
	run(test_random(12, 3000));
	run(test_random(64, 3000));
	puts("kernel/fs: all unit tests passed");
	return 0;
}
