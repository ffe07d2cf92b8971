// SPDX-License-Identifier: GPL-2.0-only
/* Second-stage page tables of VT-d: walk, copy, compare. See tables.h. */
#include "tables.h"

#define NOT_READ	(~0ULL)

static u64 span(unsigned int level)
{
	return 1ULL << (DMA_PAGE_SHIFT + DMA_LEVEL_SHIFT * (level - 1));
}

static unsigned int index_of(u64 iova, unsigned int level)
{
	return (iova / span(level)) % DMA_ENTRIES;
}

/* In second-stage tables an entry that grants nothing is not present. */
static bool is_present(u64 entry)
{
	return entry & DMA_ENTRY_RIGHTS;
}

static bool is_leaf(u64 entry, unsigned int level)
{
	return level == 1 || (entry & DMA_ENTRY_LARGE);
}

/* Address bits below the size of a large leaf are reserved: hardware faults on them. */
static bool is_sound_leaf(u64 entry, unsigned int level)
{
	return level <= DMA_MAX_LEAF_LEVEL &&
	       !(entry & DMA_ENTRY_ADDRESS & (span(level) - 1));
}

static bool levels_valid(unsigned int levels)
{
	return levels >= 3 && levels <= DMA_MAX_LEVELS;
}

static void leaf_of(u64 entry, unsigned int level, u64 iova, u64 rights, struct dma_leaf *leaf)
{
	leaf->iova = iova;
	leaf->size = span(level);
	leaf->phys = entry & DMA_ENTRY_ADDRESS;
	leaf->rights = rights;
}

static int walk_table(const struct dma_tables *tables, const struct dma_visitor *visitor,
		      unsigned int level, u64 phys, u64 iova, u64 rights)
{
	const u64 *page;
	unsigned int i;
	int ret;

	if (visitor->page) {
		ret = visitor->page(visitor->argument, level, phys);
		if (ret)
			return ret;
	}
	page = tables->table(tables->context, level, phys);
	if (!page)
		return -EFAULT;

	for (i = 0; i < DMA_ENTRIES; i++, iova += span(level)) {
		u64 entry = page[i];
		struct dma_leaf leaf;

		if (!is_present(entry))
			continue;
		if (!is_leaf(entry, level)) {
			ret = walk_table(tables, visitor, level - 1, entry & DMA_ENTRY_ADDRESS,
					 iova, rights & entry);
			if (ret)
				return ret;
			continue;
		}
		if (!is_sound_leaf(entry, level))
			return -EINVAL;
		/* Rights of a path are those that every entry on it grants. */
		if (!visitor->leaf || !(rights & entry))
			continue;
		leaf_of(entry, level, iova, rights & entry, &leaf);
		ret = visitor->leaf(visitor->argument, &leaf);
		if (ret)
			return ret;
	}
	return 0;
}

int dma_tables_walk(const struct dma_tables *tables, const struct dma_visitor *visitor)
{
	if (!levels_valid(tables->levels))
		return -EINVAL;
	return walk_table(tables, visitor, tables->levels, tables->root, 0, DMA_ENTRY_RIGHTS);
}

static int count_page(void *argument, unsigned int level, u64 phys)
{
	struct dma_counts *counts = argument;

	(void)level;
	(void)phys;
	counts->pages++;
	return 0;
}

static int count_leaf(void *argument, const struct dma_leaf *leaf)
{
	struct dma_counts *counts = argument;

	counts->leaves++;
	counts->bytes += leaf->size;
	return 0;
}

int dma_tables_count(const struct dma_tables *tables, struct dma_counts *counts)
{
	struct dma_visitor visitor = {
		.page = count_page, .leaf = count_leaf, .argument = counts,
	};

	*counts = (struct dma_counts){ 0 };
	return dma_tables_walk(tables, &visitor);
}

static u64 *fresh_page(struct dma_copy *copy, u64 *phys)
{
	u64 *page = copy->page(copy->context, phys);
	unsigned int i;

	if (!page)
		return NULL;
	copy->counts.pages++;
	for (i = 0; i < DMA_ENTRIES; i++)
		page[i] = 0;
	return page;
}

static bool keep_leaf(struct dma_copy *copy, const struct dma_leaf *leaf)
{
	if (!leaf->rights)
		return false;
	if (!copy->keep || copy->keep(copy->context, leaf)) {
		count_leaf(&copy->counts, leaf);
		return true;
	}
	if (!copy->dropped++)
		copy->first_dropped = *leaf;
	return false;
}

static int copy_table(const struct dma_tables *from, struct dma_copy *copy,
		      unsigned int level, u64 phys, u64 iova, u64 rights, u64 *target)
{
	const u64 *page = from->table(from->context, level, phys);
	unsigned int i;

	if (!page)
		return -EFAULT;

	for (i = 0; i < DMA_ENTRIES; i++, iova += span(level)) {
		u64 entry = page[i], child_phys;
		struct dma_leaf leaf;
		u64 *child;
		int ret;

		if (!is_present(entry))
			continue;
		if (is_leaf(entry, level)) {
			if (!is_sound_leaf(entry, level))
				return -EINVAL;
			leaf_of(entry, level, iova, rights & entry, &leaf);
			if (keep_leaf(copy, &leaf))
				target[i] = entry;
			continue;
		}
		child = fresh_page(copy, &child_phys);
		if (!child)
			return -ENOSPC;
		ret = copy_table(from, copy, level - 1, entry & DMA_ENTRY_ADDRESS, iova,
				 rights & entry, child);
		if (ret)
			return ret;
		target[i] = (entry & ~DMA_ENTRY_ADDRESS) | child_phys;
	}
	return 0;
}

int dma_tables_copy(const struct dma_tables *from, struct dma_copy *copy)
{
	u64 *root;

	copy->counts = (struct dma_counts){ 0 };
	copy->dropped = 0;
	if (!levels_valid(from->levels))
		return -EINVAL;
	root = fresh_page(copy, &copy->root);
	if (!root)
		return -ENOSPC;
	return copy_table(from, copy, from->levels, from->root, 0, DMA_ENTRY_RIGHTS, root);
}

void dma_cursor_init(struct dma_cursor *cursor, const struct dma_tables *tables)
{
	unsigned int level;

	cursor->tables = tables;
	for (level = 0; level <= DMA_MAX_LEVELS; level++)
		cursor->phys[level] = NOT_READ;
}

static const u64 *cursor_page(struct dma_cursor *cursor, unsigned int level, u64 phys)
{
	const struct dma_tables *tables = cursor->tables;

	if (cursor->phys[level] != phys) {
		cursor->phys[level] = NOT_READ;
		cursor->page[level] = tables->table(tables->context, level, phys);
		if (!cursor->page[level])
			return NULL;
		cursor->phys[level] = phys;
	}
	return cursor->page[level];
}

int dma_cursor_find(struct dma_cursor *cursor, u64 iova, struct dma_leaf *leaf)
{
	const struct dma_tables *tables = cursor->tables;
	u64 phys = tables->root, rights = DMA_ENTRY_RIGHTS;
	unsigned int level;

	if (!levels_valid(tables->levels))
		return -EINVAL;
	if (iova / span(tables->levels) >= DMA_ENTRIES)
		return -ENOENT;

	for (level = tables->levels; level; level--) {
		const u64 *page = cursor_page(cursor, level, phys);
		u64 entry;

		if (!page)
			return -EFAULT;
		entry = page[index_of(iova, level)];
		rights &= entry;
		if (!rights)
			return -ENOENT;
		if (is_leaf(entry, level)) {
			if (!is_sound_leaf(entry, level))
				return -EINVAL;
			leaf_of(entry, level, iova & ~(span(level) - 1), rights, leaf);
			return 0;
		}
		phys = entry & DMA_ENTRY_ADDRESS;
	}
	return -EINVAL;
}

struct comparison {
	struct dma_cursor cursor;
	struct dma_difference *difference;
};

static int compare_leaf(void *argument, const struct dma_leaf *old)
{
	struct comparison *comparison = argument;
	struct dma_difference *difference = comparison->difference;
	u64 offset = 0;

	while (offset < old->size) {
		u64 iova = old->iova + offset, phys = 0;
		struct dma_leaf new = { 0 };
		int ret = dma_cursor_find(&comparison->cursor, iova, &new);

		if (ret && ret != -ENOENT)
			return ret;
		if (!ret)
			phys = new.phys + (iova - new.iova);
		if (ret || phys != old->phys + offset || (old->rights & ~new.rights)) {
			*difference = (struct dma_difference){
				.iova = iova,
				.old_phys = old->phys + offset,
				.old_rights = old->rights,
				.new_phys = phys,
				.new_rights = new.rights,
			};
			return -EXDEV;
		}
		offset = new.iova + new.size - old->iova;
	}
	return 0;
}

int dma_tables_compare(const struct dma_tables *old, const struct dma_tables *new,
		       struct dma_difference *difference)
{
	struct comparison comparison = { .difference = difference };
	struct dma_visitor visitor = { .leaf = compare_leaf, .argument = &comparison };

	dma_cursor_init(&comparison.cursor, new);
	return dma_tables_walk(old, &visitor);
}

static int validate_page(void *argument, unsigned int level, u64 phys)
{
	struct dma_bounds *bounds = argument;

	if (!bounds->table_allowed(bounds->context, phys)) {
		bounds->bad_page = phys;
		return -EACCES;
	}
	if (bounds->counts.pages >= bounds->max_pages)
		return -E2BIG;
	return count_page(&bounds->counts, level, phys);
}

static int validate_leaf(void *argument, const struct dma_leaf *leaf)
{
	struct dma_bounds *bounds = argument;

	if (!bounds->leaf_allowed(bounds->context, leaf)) {
		bounds->bad_leaf = *leaf;
		return -ERANGE;
	}
	return count_leaf(&bounds->counts, leaf);
}

int dma_tables_validate(const struct dma_tables *tables, struct dma_bounds *bounds)
{
	struct dma_visitor visitor = {
		.page = validate_page, .leaf = validate_leaf, .argument = bounds,
	};

	bounds->counts = (struct dma_counts){ 0 };
	return dma_tables_walk(tables, &visitor);
}
