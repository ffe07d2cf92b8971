/* SPDX-License-Identifier: GPL-2.0-only */
/* An arena stands for physical memory: pages from base on. */
#pragma once

#include "../tables.h"

struct arena {
	u64 base;	/* physical address of the first page */
	u64 nr_pages;
	u64 used;	/* pages handed out by arena_page() */
	u64 *memory;
};

/* The page at phys, or NULL if it is outside. */
const u64 *arena_table(void *context, unsigned int level, u64 phys);
