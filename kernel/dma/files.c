// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which memory may go along: that of files. A VMM also maps what is its own (the
 * firmware of its guest, say). That memory is gone with this kernel, so such
 * translations stay behind.
 */
#include "dma.h"

#include <linux/bitmap.h>
#include <linux/slab.h>

int dma_data_init(struct dma_data *data, struct pkernfs_region *region)
{
	struct pkernfs_region_info info;

	pkernfs_region_describe(region, &info);
	data->base = info.base;
	data->nr_blocks = info.size >> PKERNFS_BLOCK_SHIFT;
	data->blocks = pkernfs_data_blocks(region);
	return data->blocks ? 0 : -ENOMEM;
}

void dma_data_exit(struct dma_data *data)
{
	kvfree(data->blocks);
	data->blocks = NULL;
}

bool dma_data_holds(const struct dma_data *data, const struct dma_leaf *leaf)
{
	u64 first, last;

	if (leaf->phys < data->base)
		return false;
	first = (leaf->phys - data->base) >> PKERNFS_BLOCK_SHIFT;
	last = (leaf->phys - data->base + leaf->size - 1) >> PKERNFS_BLOCK_SHIFT;
	if (last >= data->nr_blocks)
		return false;
	return find_next_zero_bit(data->blocks, last + 1, first) > last;
}
