/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the fuzzer share. */
#ifndef _PKERNFS_TESTS_FUZZ_H
#define _PKERNFS_TESTS_FUZZ_H

#include <stdio.h>

#include <linux/minmax.h>
#include <linux/slab.h>

#include "../fs/store_private.h"
#include "native.h"

#define SLOT		(1UL << PKERNFS_SLOT_SHIFT)
#define NR_BLOCKS	8
#define MAX_SLOTS	64

#define check(cond) do { \
	if (!(cond)) { \
		fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #cond); \
		abort(); \
	} \
} while (0)

/* A valid store to begin with, and where something is in it. */
struct base {
	struct pkn *n;
	u32 inodes[MAX_SLOTS], pages[MAX_SLOTS], headers[NR_BLOCKS];
	u32 nr_inodes, nr_pages, nr_headers;
};

/* Where choices come from: a generator, or bytes that somebody else made up. */
struct source {
	u64 state;
	const u8 *data;
	size_t left;
};

extern struct source source;

/* What a damaged store was before somebody used it. */
struct kept {
	u8 *image;		/* block 0 and what is linked from it */
	u32 nr_damaged;
	u64 owned;		/* bit per block: of a good inode, or metadata */
	u64 metadata;
};

/* fuzz_kept.c */
void keep_image(struct base *base, struct kept *kept);
void keep_owned(struct base *base, struct kept *kept);
void check_untouched(struct base *base, struct kept *kept);
void check_kept(struct base *base, struct kept *kept);

/* fuzz_base.c */
struct base *make_base(u32 kind);

/* fuzz_damage.c */
u32 choose(u32 limit);
u64 interesting(void);
u8 *slot_at(struct base *base, u32 slot);
struct pkernfs_super *super_of(struct base *base);
void set_slot(struct base *base, u32 slot, u8 content[SLOT], bool fix);
void mutate(struct base *base);

#endif
