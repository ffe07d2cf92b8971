/* SPDX-License-Identifier: GPL-2.0-only */
/* Between getting ready (arm.c) and the last moment (handover.c). */
#ifndef PKERNFS_DMA_HANDOVER_H
#define PKERNFS_DMA_HANDOVER_H

#include "dma.h"

struct dma_handover {
	bool armed;
	struct pid *by;			/* the process that armed: no other hands over */
	struct pkernfs_region *region;	/* whose store has the files below */
	u64 base, size;			/* of that region */
	struct dma_area root;		/* record, then a section per IOMMU */
	struct dma_data data;		/* memory that may go along */
};

extern struct dma_handover handover;

/* Copies what leads to files into the slot's area; *root is the copy's top table. */
int handover_copy_tables(struct dma_slot *slot, const struct dma_tables *tables, u64 *root);

#endif /* PKERNFS_DMA_HANDOVER_H */
