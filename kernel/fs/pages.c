// SPDX-License-Identifier: GPL-2.0-only
/*
 * struct pages on request (parameter pages=1), for what can't do without: O_DIRECT
 * and vmsplice to and from mapped files, zero-copy networking, nested guests' own
 * needs. They are kept in the range itself, in the blocks after block 0 that the
 * store has set aside for them, so that no memory of the host's is spent.
 *
 * The kernel then has the range in its linear mapping as long as it is mounted, as it
 * has all memory with struct pages: the price of this mode.
 *
 * The pages are of the kind that device DAX uses (MEMORY_DEVICE_GENERIC), as compound
 * pages of one block each. At rest such a page has a reference count of one. Whatever
 * is more belongs to somebody who has the memory mapped (from 6.15 on) or pinned. A
 * freed block may still be the target of a device's transfer, so it is neither cleared
 * nor handed out before the count is one again, and umount waits for all blocks.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "pkernfs.h"

static bool pages;
module_param(pages, bool, 0444);
MODULE_PARM_DESC(pages, "give mapped files struct pages, so that O_DIRECT into them works");

bool pkernfs_pages_wanted(void)
{
	return pages;
}

/* Blocks that the struct pages of a region take. */
u32 pkernfs_pages_blocks(const struct pkernfs_region *region)
{
	u64 bytes = (region->size >> PAGE_SHIFT) * sizeof(struct page);

	return DIV_ROUND_UP_ULL(bytes, PKERNFS_BLOCK_SIZE);
}

static struct page *block_page(const struct pkernfs_region *region, u32 block)
{
	return pfn_to_page(PHYS_PFN(region->base) +
			   ((unsigned long)block << (PKERNFS_BLOCK_SHIFT - PAGE_SHIFT)));
}

/* Has nobody a reference to any page of this block? */
bool pkernfs_pages_idle(const struct pkernfs_region *region, u32 block)
{
	return !region->pagemap || page_ref_count(block_page(region, block)) == 1;
}

static struct dev_pagemap *new_pagemap(const struct pkernfs_region *region, u32 page_blocks)
{
	const unsigned long per_block = PKERNFS_BLOCK_SIZE >> PAGE_SHIFT;
	const struct dev_pagemap template = {
		.type		= MEMORY_DEVICE_GENERIC,
		.flags		= PGMAP_ALTMAP_VALID,
		.vmemmap_shift	= PKERNFS_BLOCK_SHIFT - PAGE_SHIFT,
		.nr_range	= 1,
		.range		= { region->base, region->base + region->size - 1 },
		.altmap		= {
			.base_pfn	= PHYS_PFN(region->base),
			.end_pfn	= PHYS_PFN(region->base + region->size) - 1,
			.reserve	= per_block,
			.free		= page_blocks * per_block,
		},
	};

	return kmemdup(&template, sizeof(template), GFP_KERNEL);
}

/* The store is open, and nobody else knows it yet. */
int pkernfs_pages_start(struct pkernfs_region *region)
{
	u32 page_blocks = le32_to_cpu(pkernfs_store_super(region->store)->page_blocks);
	struct dev_pagemap *pagemap;
	void *addr;

	if (!pages)
		return 0;
	if (page_blocks < pkernfs_pages_blocks(region)) {
		pr_err("region %s: this store has %u blocks for struct pages and needs %u: load pkernfs without pages=1, or make the store anew with it (mount -o init on an empty range)\n",
		       region->name, page_blocks, pkernfs_pages_blocks(region));
		return -EINVAL;
	}

	pagemap = new_pagemap(region, page_blocks);
	if (!pagemap)
		return -ENOMEM;
	addr = memremap_pages(pagemap, NUMA_NO_NODE);
	if (IS_ERR(addr)) {
		pr_err("region %s: no struct pages for it (%ld): load pkernfs without pages=1\n",
		       region->name, PTR_ERR(addr));
		kfree(pagemap);
		return PTR_ERR(addr);
	}
	region->pagemap = pagemap;
	return 0;
}

/*
 * All mappings are gone, but a transfer may still be on its way. The pagemap itself
 * does not count such users.
 */
static void wait_idle(struct pkernfs_region *region, u32 page_blocks)
{
	bool said = false;

	for (u32 block = 1 + page_blocks; block < region->backing.nr_blocks; block++) {
		while (!pkernfs_pages_idle(region, block)) {
			if (!said)
				pr_warn("region %s: memory is still in use by a device, waiting\n",
					region->name);
			said = true;
			msleep(20);
		}
		cond_resched();
	}
}

void pkernfs_pages_stop(struct pkernfs_region *region)
{
	if (!region->pagemap)
		return;
	wait_idle(region, le32_to_cpu(pkernfs_store_super(region->store)->page_blocks));
	memunmap_pages(region->pagemap);
	kfree(region->pagemap);
	region->pagemap = NULL;
}
