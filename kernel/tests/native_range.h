/* SPDX-License-Identifier: GPL-2.0-only */
/* A range in user space, for the files that implement native.h. */
#ifndef _PKERNFS_TESTS_NATIVE_RANGE_H
#define _PKERNFS_TESTS_NATIVE_RANGE_H

#include "native.h"

#define PAGE	(1UL << PKERNFS_SLOT_SHIFT)

struct logged {
	u64 offset;
	u32 bytes;
	u32 kind;
	u64 old;	/* in the arena; the new bytes follow */
};

struct pkn {
	struct pkernfs_backing backing;
	struct pkernfs_store *store;
	u64 size;
	u8 *memory;
	u8 *shadow;		/* memory before the store that is being looked at */
	unsigned long *written;	/* pages that may not be zero */
	unsigned long *busy;	/* blocks */
	void **mapped;		/* per block: stands for the memory that a mapping takes */

	bool recording;
	struct logged *log;
	u64 log_size, log_max;
	u8 *arena;
	u64 arena_size, arena_max;
	u64 *touched;		/* pages, when not recording */
	u64 nr_touched;
	unsigned long *is_touched;

	s64 now_ns;
	u64 zeroed;		/* bytes */
	char *said;
	size_t said_size;
	char *said_before;
};

/* The range that stores go to: the code under test does not say. */
extern struct pkn *pkn_current;

static inline struct pkernfs_attr attr_of(struct pkn *n, u32 mode)
{
	return (struct pkernfs_attr){ .mode = mode, .uid = 0, .gid = 0, .now_ns = ++n->now_ns };
}

#endif
