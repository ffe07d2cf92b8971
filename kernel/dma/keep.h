/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is kept at a kexec: making the record and the section of each IOMMU, and
 * whether the next kernel can trust them.
 *
 * Plain code, as tables.h: it also compiles in user space (kernel/dma/tests), where two
 * IOMMUs can be had.
 */
#ifndef PKERNFS_DMA_KEEP_H
#define PKERNFS_DMA_KEEP_H

#include <linux/types.h>

#include "../format.h"
#include "record.h"
#include "roots.h"

#define DMA_BLOCK_BYTES		(1ULL << PKERNFS_BLOCK_SHIFT)

/* An IOMMU, and the block of iommu/root-pgtables that is its section. */
struct keep_unit {
	u64 registers;		/* base, which tells IOMMUs apart */
	u16 segment;
	bool remaps_interrupts;
	void *section;
	u64 section_phys;
};

/* Everything of a section but its interrupt table, which is filled when it is made. */
#define KEEP_CLEARED_START	PKERNFS_DMA_SECTION_ROOT
#define KEEP_CLEARED_BYTES	(DMA_BLOCK_BYTES - PKERNFS_DMA_SECTION_ROOT)

/* In this order: start, every IOMMU, every device, seal. */
void keep_start(struct pkernfs_dma_record *record, u64 base, u64 size, u64 now_ns,
		const char *release);
/* Empties its section: nobody behind it can reach memory. -ENOSPC: too many. */
int keep_add_unit(struct pkernfs_dma_record *record, const struct keep_unit *unit);
/*
 * Gives a device its entry in the section of its IOMMU, whose index device->unit is.
 * device has domain, levels and root of that entry. -ENOSPC: no more devices, or
 * no more context tables.
 */
int keep_add_device(struct pkernfs_dma_record *record, const struct keep_unit *unit,
		    const struct pkernfs_dma_device *device);
void keep_seal(struct pkernfs_dma_record *record);
void keep_seal_header(struct pkernfs_dma_tables *header);

/* Why something is not trusted, in words for the log; NULL: it is. */
const char *keep_record_fault(const struct pkernfs_dma_record *record, u64 base, u64 size);
/* The IOMMU that a device of the record was behind; NULL: the record has no such. */
const struct pkernfs_dma_unit *keep_unit_of(const struct pkernfs_dma_record *record,
					    const struct pkernfs_dma_device *device);
const char *keep_header_fault(const struct pkernfs_dma_tables *header, u64 base, u64 size);
/* Does hardware do for a device what the record says? entry may be NULL. */
const char *keep_entry_fault(const struct pkernfs_dma_device *device,
			     const struct vtd_context *entry);

#endif /* PKERNFS_DMA_KEEP_H */
