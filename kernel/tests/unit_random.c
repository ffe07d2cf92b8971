// SPDX-License-Identifier: GPL-2.0-only
/* Anything in any order; the next kernel always finds what this one has in memory. */
#include "unit.h"

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

void test_random(u32 nr_blocks, u32 count)
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
