/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What pkernfs.ko offers to pkernfs_dma.ko: files for the kernel alone, and a say in
 * whether blocks may leave a file. pkernfs works the same without its being used.
 *
 * Files for the kernel alone lie in the directory iommu/ at the root of a store. User
 * space lists them, and removes them unless the guard says that they are in use;
 * it can't read, write, map, rename or make them (EPERM).
 */
#ifndef PKERNFS_EXPORT_H
#define PKERNFS_EXPORT_H

#include <linux/types.h>

struct pkernfs_region;

struct pkernfs_region_info {
	const char *name;
	u64 base;
	u64 size;
	bool mounted;
};

/* Regions stay as long as the module does. The nth one, or NULL. */
struct pkernfs_region *pkernfs_region_nth(unsigned int n);
struct pkernfs_region *pkernfs_region_at(u64 phys);
void pkernfs_region_describe(struct pkernfs_region *region, struct pkernfs_region_info *info);

/* Keeps a mounted store open until the put. -ENODEV: it is not mounted. */
int pkernfs_store_get(struct pkernfs_region *region);
void pkernfs_store_put(struct pkernfs_region *region);

/*
 * With the store held: makes iommu/NAME of nr_blocks blocks, in place of what has this
 * name, and tells the physical address of each in phys[]. The content is zero.
 * -EROFS: it is mounted read-only; also to remove.
 */
int pkernfs_kernel_file_make(struct pkernfs_region *region, const char *name, u32 nr_blocks,
			     u64 *phys);
/* -ENOENT: there is none. */
int pkernfs_kernel_file_remove(struct pkernfs_region *region, const char *name);

/* A bit per block: belongs to a file that user space can have. kvfree() it. NULL: no memory. */
unsigned long *pkernfs_data_blocks(struct pkernfs_region *region);

struct pkernfs_guard {
	/* Blocks are about to leave their file. May a device reach [phys, phys + size)? */
	bool (*busy)(u64 phys, u64 size);
	/* A store was mounted. No lock is held. */
	void (*mounted)(struct pkernfs_region *region);
};

/* One guard at a time; NULL takes it away and waits until it is not being asked. */
int pkernfs_guard_set(const struct pkernfs_guard *guard);

#endif /* PKERNFS_EXPORT_H */
