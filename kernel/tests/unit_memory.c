// SPDX-License-Identifier: GPL-2.0-only
/* Every allocation of every operation fails once: nothing has changed then. */
#include "unit.h"

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

void test_no_memory(void)
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

void test_no_memory_at_open(void)
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
