// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which memory may go along: that of files. A VMM also maps what is its own (the
 * firmware of its guest, say). That memory is gone with this kernel, so such
 * translations stay behind.
 */
#include "dma.h"

#include <linux/bitmap.h>
#include <linux/slab.h>

static int add_store(struct dma_data *data, struct pkernfs_region *region)
{
	struct dma_store *store = &data->stores[data->nr_stores];
	struct pkernfs_region_info info;

	/* Not mounted: none of its memory belongs to a file that anybody has. */
	if (pkernfs_store_get(region))
		return 0;
	pkernfs_region_describe(region, &info);
	store->base = info.base;
	store->nr_blocks = info.size >> PKERNFS_BLOCK_SHIFT;
	store->blocks = pkernfs_data_blocks(region);
	pkernfs_store_put(region);
	if (!store->blocks)
		return -ENOMEM;
	data->nr_stores++;
	return 0;
}

int dma_data_init(struct dma_data *data)
{
	struct pkernfs_region *region;
	unsigned int i;
	int err = 0;

	data->nr_stores = 0;
	for (i = 0; !err && (region = pkernfs_region_nth(i)); i++)
		err = data->nr_stores == DMA_MAX_STORES ? -E2BIG : add_store(data, region);
	if (err)
		dma_data_exit(data);
	return err;
}

void dma_data_exit(struct dma_data *data)
{
	while (data->nr_stores)
		kvfree(data->stores[--data->nr_stores].blocks);
}

static const struct dma_store *store_of(const struct dma_data *data, u64 phys)
{
	unsigned int i;

	for (i = 0; i < data->nr_stores; i++) {
		const struct dma_store *store = &data->stores[i];

		if (phys >= store->base &&
		    (phys - store->base) >> PKERNFS_BLOCK_SHIFT < store->nr_blocks)
			return store;
	}
	return NULL;
}

bool dma_data_knows(const struct dma_data *data, u64 phys)
{
	return store_of(data, phys);
}

bool dma_data_holds(const struct dma_data *data, const struct dma_leaf *leaf)
{
	const struct dma_store *store = store_of(data, leaf->phys);
	u64 first, last;

	if (!store)
		return false;
	first = (leaf->phys - store->base) >> PKERNFS_BLOCK_SHIFT;
	last = (leaf->phys - store->base + leaf->size - 1) >> PKERNFS_BLOCK_SHIFT;
	if (last >= store->nr_blocks)
		return false;
	return find_next_zero_bit(store->blocks, last + 1, first) > last;
}
