// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tables of a driver that runs: a page may go while we look, and the memory behind it
 * may even leave the direct map. So each is copied, and a fault ends the walk.
 */
#include "dma.h"

#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

static const u64 *live_table(void *context, unsigned int level, u64 phys)
{
	struct dma_live *live = context;
	u64 *page = live->pages[level - 1];

	if (!pfn_valid(phys >> PAGE_SHIFT) ||
	    copy_from_kernel_nofault(page, phys_to_virt(phys), PAGE_SIZE))
		return NULL;
	return page;
}

int dma_live_init(struct dma_live *live, const struct vtd_context *context)
{
	live->pages = kvcalloc(DMA_MAX_LEVELS, PAGE_SIZE, GFP_KERNEL);
	if (!live->pages)
		return -ENOMEM;
	live->tables = (struct dma_tables){
		.root = vtd_context_root(context),
		.levels = vtd_context_levels(context),
		.table = live_table,
		.context = live,
	};
	return 0;
}

void dma_live_exit(struct dma_live *live)
{
	kvfree(live->pages);
}

struct vtd_context *dma_live_context(const struct pci_dev *pdev, struct vtd_unit **unit)
{
	unsigned int i;

	for (i = 0; i < vtd_nr_units; i++) {
		struct vtd_roots roots = vtd_unit_roots(&vtd_units[i]);
		struct vtd_context *context;

		context = vtd_roots_owned(&roots, pci_domain_nr(pdev->bus), pdev->bus->number,
					  pdev->devfn);
		if (!context)
			continue;
		*unit = &vtd_units[i];
		return context;
	}
	return NULL;
}
