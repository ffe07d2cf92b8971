// SPDX-License-Identifier: GPL-2.0-only
/* The guard: memory that a device can reach stays in its file. */
#include "dma.h"

struct reach {
	u64 phys, size;
};

static int touches(void *argument, const struct dma_leaf *leaf)
{
	struct reach *reach = argument;

	return leaf->phys < reach->phys + reach->size && reach->phys < leaf->phys + leaf->size;
}

/* Tables that can't be read now may lead anywhere. */
static bool tables_reach(const struct dma_tables *tables, struct reach *reach)
{
	struct dma_visitor visitor = { .leaf = touches, .argument = reach };

	return dma_tables_walk(tables, &visitor) != 0;
}

/* What hardware uses for a device now, whoever made it. */
static bool live_reaches(struct dma_slot *slot, struct reach *reach)
{
	struct vtd_context *context;
	struct vtd_unit *unit;
	struct dma_live live;
	bool reaches;

	context = dma_live_context(slot->pdev, &unit);
	if (!context || !vtd_context_translates(context))
		return false;
	if (dma_live_init(&live, context))
		return true;
	reaches = tables_reach(&live.tables, reach);
	dma_live_exit(&live);
	return reaches;
}

static bool inherited_reaches(struct dma_slot *slot, struct reach *reach)
{
	struct dma_tables tables = dma_area_tables(&slot->inherited,
						   le64_to_cpu(slot->record.root),
						   slot->record.levels);
	u32 i;

	for (i = 0; i < slot->inherited.nr_blocks; i++) {
		struct dma_leaf block = {
			.phys = slot->inherited.phys[i], .size = DMA_BLOCK_BYTES,
		};

		if (touches(reach, &block))
			return true;
	}
	return tables_reach(&tables, reach);
}

static bool slot_reaches(struct dma_slot *slot, struct reach *reach)
{
	if (slot->state == DMA_PRESERVED)
		return live_reaches(slot, reach);
	return slot->state == DMA_INHERITED && inherited_reaches(slot, reach);
}

static bool busy(u64 phys, u64 size)
{
	struct reach reach = { .phys = phys, .size = size };
	struct dma_slot *slot;
	bool found = false;

	mutex_lock(&dma_tables_lock);
	for_each_dma_slot(slot) {
		if (slot->state == DMA_FREE || !slot_reaches(slot, &reach))
			continue;
		pr_info_ratelimited("%s reaches %#llx-%#llx: it stays in its file\n",
				    pci_name(slot->pdev), phys, phys + size - 1);
		found = true;
		break;
	}
	if (!found && dma_handover_reaches(phys, size)) {
		pr_info_ratelimited("%#llx-%#llx is part of an armed hand-over\n", phys,
				    phys + size - 1);
		found = true;
	}
	mutex_unlock(&dma_tables_lock);
	return found;
}

/* Who mounts holds locks of the filesystem. */
static void mounted(struct pkernfs_region *region)
{
	dma_area_check_later();
}

static const struct pkernfs_guard guard = { .busy = busy, .mounted = mounted };

int dma_guard_init(void)
{
	return pkernfs_guard_set(&guard);
}

void dma_guard_exit(void)
{
	pkernfs_guard_set(NULL);
}
