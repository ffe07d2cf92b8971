/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Second-stage page tables of VT-d: walk, copy, compare.
 *
 * Plain code: it touches memory only through the callback of its caller, never
 * sleeps, never allocates, and also compiles in user space (kernel/dma/tests), where
 * property tests hold it against a model. The format is that of the Intel VT-d
 * specification, section 9 ("Second-Stage Paging Entries"); Linux writes the same
 * from 6.12 (struct dma_pte) to 7.3 (generic_pt, format vtdss).
 */
#ifndef PKERNFS_DMA_TABLES_H
#define PKERNFS_DMA_TABLES_H

#include <linux/errno.h>
#include <linux/types.h>

#define DMA_PAGE_SHIFT		12
#define DMA_PAGE_SIZE		(1ULL << DMA_PAGE_SHIFT)
#define DMA_LEVEL_SHIFT		9
#define DMA_ENTRIES		512
#define DMA_MAX_LEVELS		5
#define DMA_MAX_LEAF_LEVEL	3	/* 1 GiB */

#define DMA_ENTRY_READ		(1ULL << 0)
#define DMA_ENTRY_WRITE		(1ULL << 1)
#define DMA_ENTRY_RIGHTS	(DMA_ENTRY_READ | DMA_ENTRY_WRITE)
#define DMA_ENTRY_LARGE		(1ULL << 7)
#define DMA_ENTRY_ADDRESS	0x000ffffffffff000ULL

/* One set of tables. Levels count from 1 (the entries of 4 KiB pages) up to the root. */
struct dma_tables {
	u64 root;		/* physical address of the top table */
	unsigned int levels;	/* 3: 39 bits of IOVA, 4: 48, 5: 57 */
	/*
	 * The table page at phys, or NULL if it can't be read. What it returned for
	 * a level stays valid until it is called again for that level.
	 */
	const u64 *(*table)(void *context, unsigned int level, u64 phys);
	void *context;
};

/* A translation: [iova, iova + size) to [phys, phys + size). */
struct dma_leaf {
	u64 iova;
	u64 phys;
	u64 size;
	u64 rights;		/* DMA_ENTRY_READ, DMA_ENTRY_WRITE: of the whole path */
};

struct dma_visitor {
	/* Either may be NULL; anything but 0 stops the walk and is its result. */
	int (*page)(void *argument, unsigned int level, u64 phys);
	int (*leaf)(void *argument, const struct dma_leaf *leaf);
	void *argument;
};

/*
 * Every table page before its entries, every leaf in the order of IOVA.
 * -EINVAL: levels not 3..5, or a large leaf where none can be; -EFAULT: a table can't be
 * read.
 */
int dma_tables_walk(const struct dma_tables *tables, const struct dma_visitor *visitor);

struct dma_counts {
	u64 pages;		/* of tables */
	u64 leaves;
	u64 bytes;		/* that leaves translate to */
};

int dma_tables_count(const struct dma_tables *tables, struct dma_counts *counts);

struct dma_copy {
	/* A fresh page, its physical address in *phys; NULL: none left. Need not be zero. */
	u64 *(*page)(void *context, u64 *phys);
	/* Does this leaf go along? NULL: all do. */
	bool (*keep)(void *context, const struct dma_leaf *leaf);
	void *context;
	/* Results. */
	u64 root;
	struct dma_counts counts;
	u64 dropped;		/* leaves */
	struct dma_leaf first_dropped;
};

/*
 * A deep copy: same translations and rights, other table pages. Only entries whose
 * table or leaf came along are present. -ENOSPC: pages ran out; else as for the walk.
 */
int dma_tables_copy(const struct dma_tables *from, struct dma_copy *copy);

/* A path into one set of tables: lookups in ascending order read each page once. */
struct dma_cursor {
	const struct dma_tables *tables;
	u64 phys[DMA_MAX_LEVELS + 1];		/* of the page read last, ~0: none */
	const u64 *page[DMA_MAX_LEVELS + 1];
};

void dma_cursor_init(struct dma_cursor *cursor, const struct dma_tables *tables);
/* The leaf that holds iova: 0, or -ENOENT, or as for the walk. */
int dma_cursor_find(struct dma_cursor *cursor, u64 iova, struct dma_leaf *leaf);

struct dma_difference {
	u64 iova;		/* the first one that differs */
	u64 old_phys;
	u64 old_rights;
	u64 new_phys;		/* meaningless if new_rights is 0: nothing is mapped */
	u64 new_rights;
};

/*
 * Does every translation of old exist in new, with the same physical address and
 * at least the same rights? Page sizes may differ, new may hold more.
 * 0; -EXDEV: no, *difference says where; else as for the walk.
 */
int dma_tables_compare(const struct dma_tables *old, const struct dma_tables *new,
		       struct dma_difference *difference);

struct dma_bounds {
	/* May a table page lie here? May a leaf translate to here? */
	bool (*table_allowed)(void *context, u64 phys);
	bool (*leaf_allowed)(void *context, const struct dma_leaf *leaf);
	void *context;
	u64 max_pages;		/* more than this: -E2BIG (shared pages, damage) */
	/* Results. */
	struct dma_counts counts;
	struct dma_leaf bad_leaf;	/* with -ERANGE */
	u64 bad_page;			/* with -EACCES */
};

/*
 * Tables that another kernel left are trusted only after this: -EACCES: a table
 * page lies elsewhere; -ERANGE: a leaf does; -E2BIG; else as for the walk.
 */
int dma_tables_validate(const struct dma_tables *tables, struct dma_bounds *bounds);

#endif /* PKERNFS_DMA_TABLES_H */
