// SPDX-License-Identifier: GPL-2.0-only
/*
 * tables.c in user space, over an arena that stands for physical memory.
 *
 * Built as a shared library by tests/unit/dma and bench/dma_tables.py, which fill the
 * arena and hold the results against a model.
 */
#include "arena.h"

/* Leaves that translate into [start, end) come along or are allowed. */
struct window {
	u64 start, end;
	struct arena *tables;
};

struct translation {
	u64 iova, phys, size, rights;
};

struct translations {
	struct translation *list;
	u64 room, count;
};

const u64 *arena_table(void *context, unsigned int level, u64 phys)
{
	struct arena *arena = context;
	u64 page = (phys - arena->base) >> DMA_PAGE_SHIFT;

	if (phys < arena->base || page >= arena->nr_pages)
		return NULL;
	return arena->memory + page * DMA_ENTRIES;
}

static u64 *arena_page(void *context, u64 *phys)
{
	struct arena *arena = context;

	if (arena->used == arena->nr_pages)
		return NULL;
	*phys = arena->base + (arena->used << DMA_PAGE_SHIFT);
	return arena->memory + arena->used++ * DMA_ENTRIES;
}

static struct dma_tables tables_of(struct arena *arena, u64 root, unsigned int levels)
{
	return (struct dma_tables){
		.root = root, .levels = levels, .table = arena_table, .context = arena,
	};
}

static bool inside(const struct window *window, const struct dma_leaf *leaf)
{
	return leaf->phys >= window->start && leaf->phys < window->end &&
	       leaf->size <= window->end - leaf->phys;
}

static int note_leaf(void *argument, const struct dma_leaf *leaf)
{
	struct translations *translations = argument;

	if (translations->count == translations->room)
		return -ENOSPC;
	translations->list[translations->count++] = (struct translation){
		leaf->iova, leaf->phys, leaf->size, leaf->rights,
	};
	return 0;
}

int harness_walk(struct arena *arena, u64 root, unsigned int levels,
		 struct translations *translations)
{
	struct dma_tables tables = tables_of(arena, root, levels);
	struct dma_visitor visitor = { .leaf = note_leaf, .argument = translations };

	return dma_tables_walk(&tables, &visitor);
}

int harness_count(struct arena *arena, u64 root, unsigned int levels, struct dma_counts *counts)
{
	struct dma_tables tables = tables_of(arena, root, levels);

	return dma_tables_count(&tables, counts);
}

struct page_supply {
	struct arena *arena;
	const struct window *window;
};

static u64 *supply_page(void *context, u64 *phys)
{
	return arena_page(((struct page_supply *)context)->arena, phys);
}

static bool supply_keep(void *context, const struct dma_leaf *leaf)
{
	return inside(((struct page_supply *)context)->window, leaf);
}

int harness_copy(struct arena *from, u64 root, unsigned int levels, struct arena *to,
		 const struct window *window, u64 *new_root, u64 *dropped,
		 struct dma_counts *counts)
{
	struct dma_tables tables = tables_of(from, root, levels);
	struct page_supply supply = { .arena = to, .window = window };
	struct dma_copy copy = {
		.page = supply_page, .keep = window ? supply_keep : NULL, .context = &supply,
	};
	int ret = dma_tables_copy(&tables, &copy);

	*new_root = copy.root;
	*dropped = copy.dropped;
	*counts = copy.counts;
	return ret;
}

int harness_find(struct arena *arena, u64 root, unsigned int levels, const u64 *iovas,
		 u64 count, struct translation *found, int *results)
{
	struct dma_tables tables = tables_of(arena, root, levels);
	struct dma_cursor cursor;
	u64 i;

	dma_cursor_init(&cursor, &tables);
	for (i = 0; i < count; i++) {
		struct dma_leaf leaf = { 0 };

		results[i] = dma_cursor_find(&cursor, iovas[i], &leaf);
		found[i] = (struct translation){ leaf.iova, leaf.phys, leaf.size, leaf.rights };
	}
	return 0;
}

int harness_compare(struct arena *old_arena, u64 old_root, unsigned int old_levels,
		    struct arena *new_arena, u64 new_root, unsigned int new_levels,
		    struct dma_difference *difference)
{
	struct dma_tables old = tables_of(old_arena, old_root, old_levels);
	struct dma_tables new = tables_of(new_arena, new_root, new_levels);

	return dma_tables_compare(&old, &new, difference);
}

static bool window_table(void *context, u64 phys)
{
	struct arena *arena = ((struct window *)context)->tables;

	return phys >= arena->base && (phys - arena->base) >> DMA_PAGE_SHIFT < arena->nr_pages;
}

static bool window_leaf(void *context, const struct dma_leaf *leaf)
{
	return inside(context, leaf);
}

int harness_validate(struct arena *arena, u64 root, unsigned int levels, struct window *window,
		     u64 max_pages, struct translation *bad)
{
	struct dma_tables tables = tables_of(arena, root, levels);
	struct dma_bounds bounds = {
		.table_allowed = window_table, .leaf_allowed = window_leaf,
		.context = window, .max_pages = max_pages,
	};
	int ret;

	window->tables = arena;
	ret = dma_tables_validate(&tables, &bounds);
	*bad = (struct translation){
		bounds.bad_leaf.iova, bounds.bad_leaf.phys, bounds.bad_leaf.size,
		bounds.bad_leaf.rights,
	};
	return ret;
}
