/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Root tables and context entries of VT-d in legacy mode: find, read, make.
 *
 * Plain code, as tables.h: memory is reached through the caller's callback, and it also
 * compiles in user space (kernel/dma/tests). The format is that of the Intel VT-d
 * specification, sections 9.1 (root entry) and 9.3 (context entry).
 */
#ifndef PKERNFS_DMA_ROOTS_H
#define PKERNFS_DMA_ROOTS_H

#include <linux/types.h>

/* RTADDR_REG, section 11.4.5: address of the root table, and the mode. */
#define VTD_RTADDR_ADDRESS	0xfffffffffffff000ULL
#define VTD_RTADDR_MODE		0xc00ULL	/* 0: legacy */

#define VTD_ROOT_PRESENT	1ULL
#define VTD_BUSES		256		/* entries of a root table, 16 bytes each */
#define VTD_DEVFNS		256		/* entries of a context table, 16 bytes each */

struct vtd_context {
	u64 lo;
	u64 hi;
};

/* The tables of one IOMMU. */
struct vtd_roots {
	u16 segment;	/* PCI segment that it stands in */
	u64 rtaddr;	/* RTADDR_REG, as read */
	/* The page at phys, or NULL if it can't be reached. */
	void *(*page)(void *context, u64 phys);
	void *context;
};

/* The entry of a device; NULL: there is no table for its bus, or not in legacy mode. */
struct vtd_context *vtd_roots_entry(const struct vtd_roots *roots, u8 bus, u8 devfn);
/*
 * Its entry if that is present: then the device is behind this IOMMU, of several. A driver
 * makes entries for a device behind the device's own only.
 */
struct vtd_context *vtd_roots_owned(const struct vtd_roots *roots, u16 segment, u8 bus,
				    u8 devfn);
/*
 * From the device *id (bus << 8 | devfn) on, the next entry that is present; *id is its.
 * NULL: no more. Buses without a table are passed over.
 */
struct vtd_context *vtd_roots_next(const struct vtd_roots *roots, unsigned int *id);

bool vtd_context_present(const struct vtd_context *context);
/* By second-stage tables, without a device TLB. */
bool vtd_context_translates(const struct vtd_context *context);
u64 vtd_context_root(const struct vtd_context *context);
unsigned int vtd_context_levels(const struct vtd_context *context);
u16 vtd_context_domain(const struct vtd_context *context);
struct vtd_context vtd_context_make(u64 root, unsigned int levels, u16 domain);

#endif /* PKERNFS_DMA_ROOTS_H */
