// SPDX-License-Identifier: GPL-2.0-only
/*
 * Filling the holes of a file with blocks, and making it longer: what takes long of it, the
 * zeroing, is done with the store unlocked, so that nobody else's page faults wait.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>

#include "pkernfs.h"

static bool killed(void)
{
	return fatal_signal_pending(current);
}

/*
 * Fills the holes of [first, first + count) and raises the size to new_size if that is
 * higher: all of it or nothing. The caller holds i_rwsem and invalidate_lock: no fault may
 * add a block before it is certain which ones the file has.
 */
int pkernfs_fill_locked(struct inode *inode, u32 first, u32 count, loff_t new_size)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct pkernfs_node *node = pkernfs_node(inode);
	struct pkernfs_filling *fill;
	int err;

	pkernfs_lock(region);
	err = pkernfs_node_reserve(region->store, node, first, count, new_size, &fill);
	pkernfs_unlock(region);
	if (err)
		return err;

	err = pkernfs_filling_zero(&region->backing, fill, killed);

	pkernfs_lock(region);
	err = pkernfs_node_commit(region->store, node, fill, err, pkernfs_now());
	if (!err) {
		pkernfs_drop_zeros(inode, (loff_t)first << PKERNFS_BLOCK_SHIFT,
				   (loff_t)count << PKERNFS_BLOCK_SHIFT);
		pkernfs_inode_sync(inode);
	}
	pkernfs_unlock(region);
	return err;
}

/* The same for the holes in [pos, end). The caller holds i_rwsem. */
int pkernfs_fill(struct inode *inode, loff_t pos, loff_t end, loff_t new_size)
{
	u32 first = pos >> PKERNFS_BLOCK_SHIFT;
	u32 last = (end - 1) >> PKERNFS_BLOCK_SHIFT;
	int err;

	filemap_invalidate_lock(inode->i_mapping);
	err = pkernfs_fill_locked(inode, first, last - first + 1, new_size);
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}
