/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the VFS half share. The metadata is behind store.h.
 *
 * Locks, outermost first:
 *
 *   inode->i_rwsem			read and write, everything that changes a
 *					tree or a size
 *   mm->mmap_lock (or a VMA's)		of whoever faults, also within read and write
 *   mapping->invalidate_lock		shared: a fault, from lookup to entry;
 *					exclusive: taking blocks from a file
 *   region->lock			the store: shared to look, exclusive to change
 *   page table locks
 *
 * Nothing may touch user memory, wait for an inode or reclaim memory from
 * filesystems while it holds region->lock: each can end up here again. The blocks
 * of a file can go only with both i_rwsem and invalidate_lock held exclusively, so
 * holding either is enough to use what a lookup returned.
 */
#ifndef PKERNFS_H
#define PKERNFS_H

#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/sysfs.h>

#include "compat.h"
#include "store.h"

#define PKERNFS_BLOCK_SIZE	(1UL << PKERNFS_BLOCK_SHIFT)
/* f_type of statfs; the low half of the store's magic, "PKER". */
#define PKERNFS_SUPER_MAGIC	0x52454b50

/* A range of memory that this module has claimed. */
struct pkernfs_region {
	struct list_head list;
	char name[PKERNFS_LABEL_MAX + 1];
	u64 base;
	u64 size;
	struct resource *res;
	bool memtype;				/* write-back is reserved */
	struct kobject kobj;			/* /sys/fs/pkernfs/NAME */
	struct bin_attribute metadata;
	struct bin_attribute damaged;

	struct rw_semaphore lock;
	unsigned int nofs;			/* of who holds the lock exclusively */
	u64 sequence;				/* goes up with every change */
	struct pkernfs_backing backing;
	struct pkernfs_store *store;		/* while it is mounted, else NULL */
	struct super_block *sb;			/* of that mount */
	struct dev_pagemap *pagemap;		/* of a mounted region with struct pages */
};

static inline void pkernfs_lock(struct pkernfs_region *region)
{
	down_write(&region->lock);
	region->nofs = memalloc_nofs_save();
}

static inline void pkernfs_unlock(struct pkernfs_region *region)
{
	region->sequence++;
	memalloc_nofs_restore(region->nofs);
	up_write(&region->lock);
}

static inline struct pkernfs_region *pkernfs_sb_region(const struct super_block *sb)
{
	return sb->s_fs_info;
}

static inline struct pkernfs_region *pkernfs_region(const struct inode *inode)
{
	return inode->i_sb->s_fs_info;
}

static inline struct pkernfs_node *pkernfs_node(const struct inode *inode)
{
	return inode->i_private;
}

/* Bits of struct pkernfs_node.user. */
#define PKERNFS_ZEROS_MAPPED	0	/* the zero page may be mapped where the file has holes */

static inline s64 pkernfs_now(void)
{
	return ktime_get_coarse_real_ns();
}

/* bootline.c */
int pkernfs_parse_region(struct pkernfs_region *region, char *text);
int pkernfs_bootline_protects(u64 base, u64 size);

/* region.c */
int pkernfs_regions_claim(char *param);
void pkernfs_regions_release(void);
struct pkernfs_region *pkernfs_region_find(const char *name);
struct pkernfs_region *pkernfs_region_nth(unsigned int n);
void *pkernfs_map(struct pkernfs_region *region, u64 phys, size_t bytes);
void pkernfs_unmap(void *addr);
void pkernfs_region_free(struct pkernfs_region *region);

/* sysfs.c */
int pkernfs_sysfs_init(void);
void pkernfs_sysfs_exit(void);
int pkernfs_sysfs_add(struct pkernfs_region *region);

/* super.c */
extern struct file_system_type pkernfs_fs_type;
void pkernfs_region_usage(struct pkernfs_region *region, struct pkernfs_usage *usage);

/* inode.c */
struct inode *pkernfs_iget(struct super_block *sb, struct pkernfs_node *node);
void pkernfs_inode_setup(struct inode *inode, struct pkernfs_node *node);
void pkernfs_inode_sync(struct inode *inode);
void pkernfs_evict_inode(struct inode *inode);
int pkernfs_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr);
int pkernfs_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat,
		    u32 mask, unsigned int flags);
#ifdef PKERNFS_UPDATE_TIME_HAS_TYPE
int pkernfs_update_time(struct inode *inode, enum fs_update_time type, unsigned int flags);
#else
int pkernfs_update_time(struct inode *inode, int flags);
#endif

/* dir.c */
extern const struct inode_operations pkernfs_dir_iops;
extern const struct inode_operations pkernfs_symlink_iops;
extern const struct file_operations pkernfs_dir_fops;

/* file.c */
extern const struct inode_operations pkernfs_file_iops;
extern const struct file_operations pkernfs_file_fops;
int pkernfs_set_size(struct inode *inode, loff_t size);
int pkernfs_fsync(struct file *file, loff_t start, loff_t end, int datasync);

/* fill.c */
int pkernfs_fill_locked(struct inode *inode, u32 first, u32 count, loff_t new_size);
int pkernfs_fill(struct inode *inode, loff_t pos, loff_t end, loff_t new_size);

/* export.c */
extern const struct inode_operations pkernfs_kernel_iops;
extern const struct file_operations pkernfs_kernel_fops;
bool pkernfs_is_kernel_dir(struct pkernfs_region *region, const struct pkernfs_node *node);
bool pkernfs_inode_is_kernel_dir(struct inode *dir);
bool pkernfs_name_is_kernels(const struct inode *dir, const struct qstr *name);
bool pkernfs_blocks_busy(struct inode *inode, u32 file_block, u32 count);
void pkernfs_guard_mounted(struct pkernfs_region *region);

/* mmap.c */
int pkernfs_mmap(struct file *file, struct vm_area_struct *vma);
void pkernfs_drop_zeros(struct inode *inode, loff_t pos, loff_t bytes);
unsigned long pkernfs_file_area(struct file *file, unsigned long addr, unsigned long len,
				unsigned long pgoff, unsigned long flags);

/* reach.c */
struct pkernfs_mapper;

void pkernfs_reach_exit(void);
void pkernfs_reach_called(void *container, struct mm_struct *mm);
void pkernfs_reach_released(const void *container);
void pkernfs_reach_blind(const char *why);
struct pkernfs_mapper *pkernfs_reach_mapper(struct pkernfs_region *region, struct mm_struct *mm);
struct pkernfs_mapper *pkernfs_reach_fork(struct pkernfs_mapper *parent, struct mm_struct *mm);
void pkernfs_reach_mark(struct pkernfs_mapper *mapper, u64 phys, u64 bytes);
bool pkernfs_reached(const struct pkernfs_region *region, u32 block);
bool pkernfs_reached_any(const struct pkernfs_region *region);

/* type1.c */
int pkernfs_type1_init(void);
void pkernfs_type1_exit(void);

/* power.c */
int pkernfs_power_init(void);
void pkernfs_power_exit(void);

/* pages.c */
bool pkernfs_pages_wanted(void);
bool pkernfs_pages_idle(const struct pkernfs_region *region, u32 block);
u32 pkernfs_pages_blocks(const struct pkernfs_region *region);
int pkernfs_pages_start(struct pkernfs_region *region);
void pkernfs_pages_stop(struct pkernfs_region *region);

#endif /* PKERNFS_H */
