// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of the store that tables are kept in: blocks of a file for the kernel alone,
 * mapped as long as they are used.
 */
#include "dma.h"

#include <linux/crc32.h>
#include <linux/io.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#define PAGES_PER_BLOCK	(DMA_BLOCK_BYTES / PAGE_SIZE)

int dma_area_map(struct dma_area *area, struct pkernfs_region *region, const char *name,
		 const u64 *phys, u32 nr_blocks)
{
	u32 i;

	area->region = region;
	strscpy(area->name, name, sizeof(area->name));
	area->phys = kvmemdup(phys, nr_blocks * sizeof(*phys), GFP_KERNEL);
	area->addr = kvcalloc(nr_blocks, sizeof(*area->addr), GFP_KERNEL);
	if (!area->phys || !area->addr)
		goto unmap;
	for (i = 0; i < nr_blocks; i++) {
		area->addr[i] = memremap(phys[i], DMA_BLOCK_BYTES, MEMREMAP_WB);
		if (!area->addr[i])
			goto unmap;
		area->nr_blocks = i + 1;
	}
	return 0;
unmap:
	dma_area_unmap(area);
	return -ENOMEM;
}

int dma_area_make(struct dma_area *area, struct pkernfs_region *region, const char *name,
		  u32 nr_blocks)
{
	u64 *phys = kvcalloc(nr_blocks, sizeof(*phys), GFP_KERNEL);
	int err;

	if (!phys)
		return -ENOMEM;
	err = pkernfs_kernel_file_make(region, name, nr_blocks, phys);
	if (!err) {
		err = dma_area_map(area, region, name, phys, nr_blocks);
		if (err)
			pkernfs_kernel_file_remove(region, name);
	}
	kvfree(phys);
	return err;
}

void dma_area_unmap(struct dma_area *area)
{
	u32 i;

	for (i = 0; i < area->nr_blocks; i++)
		memunmap(area->addr[i]);
	kvfree(area->addr);
	kvfree(area->phys);
	*area = (struct dma_area){ 0 };
}

u64 dma_area_pages(const struct dma_area *area)
{
	return (u64)area->nr_blocks * PAGES_PER_BLOCK;
}

void *dma_area_page(const struct dma_area *area, u64 index)
{
	return area->addr[index / PAGES_PER_BLOCK] + (index % PAGES_PER_BLOCK) * PAGE_SIZE;
}

u64 dma_area_phys(const struct dma_area *area, u64 index)
{
	return area->phys[index / PAGES_PER_BLOCK] + (index % PAGES_PER_BLOCK) * PAGE_SIZE;
}

/* The block of an area that holds phys, or -1. Neighbours in memory are the rule. */
static s64 block_of(const struct dma_area *area, u64 phys)
{
	u32 i;

	for (i = 0; i < area->nr_blocks; i++)
		if (phys >= area->phys[i] && phys - area->phys[i] < DMA_BLOCK_BYTES)
			return i;
	return -1;
}

bool dma_area_holds(const struct dma_area *area, u64 phys)
{
	return block_of(area, phys) >= 0;
}

u32 dma_area_checksum(const struct dma_area *area, u64 first, u64 pages)
{
	u32 crc = ~0;
	u64 i;

	for (i = first; i < first + pages; i++)
		crc = crc32_le(crc, dma_area_page(area, i), PAGE_SIZE);
	return ~crc;
}

static const u64 *area_table(void *context, unsigned int level, u64 phys)
{
	struct dma_area *area = context;
	s64 block = block_of(area, phys);

	return block < 0 ? NULL : area->addr[block] + (phys - area->phys[block]);
}

struct dma_tables dma_area_tables(struct dma_area *area, u64 root, unsigned int levels)
{
	return (struct dma_tables){
		.root = root, .levels = levels, .table = area_table, .context = area,
	};
}

/*
 * Removing a file takes locks of the filesystem, below which it may be asking us.
 */

struct removal {
	struct work_struct work;
	struct pkernfs_region *region;
	char name[32];
};

static struct workqueue_struct *removals;

static void check_stores(struct work_struct *work)
{
	dma_check_stores();
}

static DECLARE_WORK(check_work, check_stores);

void dma_area_check_later(void)
{
	queue_work(removals, &check_work);
}

static void remove_file(struct work_struct *work)
{
	struct removal *removal = container_of(work, struct removal, work);

	/* Not mounted: it stays until somebody removes it, or the next one replaces it. */
	if (!pkernfs_store_get(removal->region)) {
		pkernfs_kernel_file_remove(removal->region, removal->name);
		pkernfs_store_put(removal->region);
	}
	kfree(removal);
}

void dma_area_remove_later(struct pkernfs_region *region, const char *name)
{
	struct removal *removal = kzalloc(sizeof(*removal), GFP_KERNEL);

	if (!removal)
		return;
	INIT_WORK(&removal->work, remove_file);
	removal->region = region;
	strscpy(removal->name, name, sizeof(removal->name));
	queue_work(removals, &removal->work);
}

/* A file that is to go must be gone before another takes its name. */
void dma_area_flush(void)
{
	flush_workqueue(removals);
}

int dma_area_init(void)
{
	removals = alloc_ordered_workqueue("pkernfs_dma", 0);
	return removals ? 0 : -ENOMEM;
}

void dma_area_exit(void)
{
	destroy_workqueue(removals);
}
