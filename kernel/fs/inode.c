// SPDX-License-Identifier: GPL-2.0-only
/*
 * Inodes: what the VFS sees of a node of the store. The store has the truth;
 * an inode is brought up to date after each change, with the store locked.
 */
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/stat.h>

#include "pkernfs.h"

static struct timespec64 stored_time(__le64 ns)
{
	return ns_to_timespec64(le64_to_cpu(ns));
}

/*
 * Times are stored in place, in memory that is there anyway: no write-back. The store
 * is locked since before they were set, or a fault's pkernfs_inode_sync() could have
 * put the old ones back.
 */
static void store_times(struct inode *inode)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct timespec64 atime = inode_get_atime(inode);
	struct timespec64 mtime = inode_get_mtime(inode);
	struct timespec64 ctime = inode_get_ctime(inode);
	s64 atime_ns = timespec64_to_ns(&atime);
	s64 mtime_ns = timespec64_to_ns(&mtime);
	s64 ctime_ns = timespec64_to_ns(&ctime);

	lockdep_assert_held_write(&region->lock);
	pkernfs_node_set_times(region->store, pkernfs_node(inode),
			       &atime_ns, &mtime_ns, &ctime_ns);
}

/* Takes over what the store says; the store is locked. */
void pkernfs_inode_sync(struct inode *inode)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct pkernfs_node *node = pkernfs_node(inode);
	const struct pkernfs_inode *raw = pkernfs_node_inode(region->store, node);

	lockdep_assert_held(&region->lock);
	inode->i_mode = le32_to_cpu(raw->mode);
	i_uid_write(inode, le32_to_cpu(raw->uid));
	i_gid_write(inode, le32_to_cpu(raw->gid));
	i_size_write(inode, le64_to_cpu(raw->size));
	inode_set_atime_to_ts(inode, stored_time(raw->atime_ns));
	inode_set_mtime_to_ts(inode, stored_time(raw->mtime_ns));
	inode_set_ctime_to_ts(inode, stored_time(raw->ctime_ns));
	if (node->orphan)
		clear_nlink(inode);
	else
		set_nlink(inode, S_ISDIR(inode->i_mode) ? 2 + node->nr_subdirs : 1);
}

/*
 * Connects an inode with its node; the store is locked.
 *
 * This is the place where kinds of files part: one whose content belongs to the
 * kernel alone (nothing may be read, written or mapped) gets operations of its
 * own here. What may be shrunk, punched or unlinked is decided in pkernfs_set_size(),
 * punch_hole(), remove_name() and pkernfs_rename(): not what a device reaches.
 */
void pkernfs_inode_setup(struct inode *inode, struct pkernfs_node *node)
{
	inode->i_ino = node->ino;
	inode->i_private = node;
	pkernfs_inode_sync(inode);

	switch (inode->i_mode & S_IFMT) {
	case S_IFREG:
		if (pkernfs_is_kernel_dir(pkernfs_region(inode), node->parent)) {
			inode->i_op = &pkernfs_kernel_iops;
			inode->i_fop = &pkernfs_kernel_fops;
			break;
		}
		inode->i_op = &pkernfs_file_iops;
		inode->i_fop = &pkernfs_file_fops;
		break;
	case S_IFDIR:
		inode->i_op = &pkernfs_dir_iops;
		inode->i_fop = &pkernfs_dir_fops;
		break;
	case S_IFLNK:
		inode->i_op = &pkernfs_symlink_iops;
		break;
	}
}

/* The caller sees to it that the node stays: by i_rwsem of its directory, or at mount. */
struct inode *pkernfs_iget(struct super_block *sb, struct pkernfs_node *node)
{
	struct pkernfs_region *region = pkernfs_sb_region(sb);
	struct inode *inode;

	inode = iget_locked(sb, node->ino);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	if (!pkernfs_inode_is_new(inode))
		return inode;

	down_read(&region->lock);
	pkernfs_inode_setup(inode, node);
	up_read(&region->lock);
	unlock_new_inode(inode);
	return inode;
}

void pkernfs_evict_inode(struct inode *inode)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct pkernfs_node *node = pkernfs_node(inode);

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (!node || inode->i_nlink)
		return;
	/* A device got at it after it was unlinked: the next mount clears it away. */
	if (S_ISREG(inode->i_mode) && pkernfs_blocks_busy(inode, 0, U32_MAX))
		return;

	/* Unlinked, and this was its last user. */
	pkernfs_lock(region);
	pkernfs_node_release(region->store, node);
	pkernfs_unlock(region);
}

/*
 * chmod and chown: a new slot. On failure the inode is as it was. The store is locked
 * throughout: a fault takes the inode over from the store at any time.
 */
static int store_attr(struct mnt_idmap *idmap, struct inode *inode, struct iattr *attr)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	int err = 0;

	pkernfs_lock(region);
	setattr_copy(idmap, inode, attr);
	if (attr->ia_valid & (ATTR_MODE | ATTR_UID | ATTR_GID)) {
		const struct pkernfs_attr new = {
			.mode	= inode->i_mode,
			.uid	= i_uid_read(inode),
			.gid	= i_gid_read(inode),
			.now_ns	= pkernfs_now(),
		};

		err = pkernfs_node_set_attr(region->store, pkernfs_node(inode), &new);
	}
	if (!err)
		store_times(inode);
	pkernfs_inode_sync(inode);
	pkernfs_unlock(region);
	return err;
}

int pkernfs_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;

	if (attr->ia_valid & ATTR_SIZE) {
		err = pkernfs_set_size(inode, attr->ia_size);
		if (err)
			return err;
	}
	return store_attr(idmap, inode, attr);
}

/* Blocks of a file, by walking its runs: a handful for all but fragmented files. */
static u64 count_blocks(struct pkernfs_region *region, const struct pkernfs_node *node)
{
	u64 blocks = 0;
	u32 at = 0;

	lockdep_assert_held(&region->lock);
	while (at < U32_MAX) {
		u32 block, count;

		if (pkernfs_node_map(region->store, node, at, &block, &count))
			blocks += count;
		if (!count)
			break;
		at += count;
	}
	return blocks;
}

int pkernfs_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat,
		    u32 mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct pkernfs_region *region = pkernfs_region(inode);
	struct pkernfs_node *node = pkernfs_node(inode);

	generic_fillattr(idmap, mask, inode, stat);

	down_read(&region->lock);
	stat->btime = stored_time(pkernfs_node_inode(region->store, node)->btime_ns);
	stat->result_mask |= STATX_BTIME;
	if (S_ISREG(inode->i_mode))
		stat->blocks = count_blocks(region, node) << (PKERNFS_BLOCK_SHIFT - 9);
	up_read(&region->lock);

	/* Every access is direct, and none needs alignment. */
	if (S_ISREG(inode->i_mode) && (mask & STATX_DIOALIGN)) {
		stat->result_mask |= STATX_DIOALIGN;
		stat->dio_mem_align = 1;
		stat->dio_offset_align = 1;
	}
	return 0;
}

#ifdef PKERNFS_UPDATE_TIME_HAS_TYPE
int pkernfs_update_time(struct inode *inode, enum fs_update_time type, unsigned int flags)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	int dirty;

	if (flags & IOCB_NOWAIT)
		return -EAGAIN;
	pkernfs_lock(region);
	dirty = inode_update_time(inode, type, flags);
	if (dirty > 0)
		store_times(inode);
	pkernfs_unlock(region);
	return min(dirty, 0);
}
#else
int pkernfs_update_time(struct inode *inode, int flags)
{
	struct pkernfs_region *region = pkernfs_region(inode);

	pkernfs_lock(region);
	if (inode_update_timestamps(inode, flags))
		store_times(inode);
	pkernfs_unlock(region);
	return 0;
}
#endif
