// SPDX-License-Identifier: GPL-2.0-only
/*
 * What pkernfs offers to pkernfs_dma. See export.h.
 *
 * Files for the kernel alone are ordinary nodes of the store below iommu/; only the
 * inode operations that user space gets differ.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mm.h>

#include "export.h"
#include "pkernfs.h"

#define KERNEL_DIR	"iommu"

static DECLARE_RWSEM(guard_lock);	/* innermost but for the guard's own */
static const struct pkernfs_guard *guard;

/*
 * Regions.
 */

struct pkernfs_region *pkernfs_region_at(u64 phys)
{
	struct pkernfs_region *region;
	unsigned int i;

	for (i = 0; (region = pkernfs_region_nth(i)); i++)
		if (phys >= region->base && phys - region->base < region->size)
			return region;
	return NULL;
}
EXPORT_SYMBOL_GPL(pkernfs_region_at);

void pkernfs_region_describe(struct pkernfs_region *region, struct pkernfs_region_info *info)
{
	down_read(&region->lock);
	*info = (struct pkernfs_region_info){
		.name		= region->name,
		.base		= region->base,
		.size		= region->size,
		.mounted	= region->store,
	};
	up_read(&region->lock);
}
EXPORT_SYMBOL_GPL(pkernfs_region_describe);

int pkernfs_store_get(struct pkernfs_region *region)
{
	int err = -ENODEV;

	down_read(&region->lock);
	if (region->store && atomic_inc_not_zero(&region->sb->s_active))
		err = 0;
	up_read(&region->lock);
	return err;
}
EXPORT_SYMBOL_GPL(pkernfs_store_get);

void pkernfs_store_put(struct pkernfs_region *region)
{
	deactivate_super(region->sb);
}
EXPORT_SYMBOL_GPL(pkernfs_store_put);

/*
 * Files for the kernel alone.
 */

bool pkernfs_is_kernel_dir(struct pkernfs_region *region, const struct pkernfs_node *node)
{
	struct pkernfs_node *root = pkernfs_store_root(region->store);
	const char *name;
	u32 len;

	lockdep_assert_held(&region->lock);
	if (node == root || node->orphan || node->parent != root)
		return false;
	name = pkernfs_node_name(region->store, node, &len);
	return len == strlen(KERNEL_DIR) && !memcmp(name, KERNEL_DIR, len);
}

bool pkernfs_inode_is_kernel_dir(struct inode *dir)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	bool is;

	down_read(&region->lock);
	is = S_ISDIR(dir->i_mode) && pkernfs_is_kernel_dir(region, pkernfs_node(dir));
	up_read(&region->lock);
	return is;
}

/* The name that pkernfs_is_kernel_dir() goes by: only make_child() gives it. */
bool pkernfs_name_is_kernels(const struct inode *dir, const struct qstr *name)
{
	return dir == d_inode(dir->i_sb->s_root) && name->len == strlen(KERNEL_DIR) &&
	       !memcmp(name->name, KERNEL_DIR, name->len);
}

static int refuse_open(struct inode *inode, struct file *file)
{
	return -EPERM;
}

static int refuse_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			       struct iattr *attr)
{
	return -EPERM;
}

const struct inode_operations pkernfs_kernel_iops = {
	.setattr	= refuse_setattr,
	.getattr	= pkernfs_getattr,
};

const struct file_operations pkernfs_kernel_fops = {
	.open		= refuse_open,
};

/* The inode of a child, its directory locked by the caller; NULL: there is none. */
static struct inode *child_inode(struct inode *dir, const char *name)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	struct pkernfs_node *node;

	down_read(&region->lock);
	node = pkernfs_node_lookup(pkernfs_node(dir), name, strlen(name));
	up_read(&region->lock);
	return node ? pkernfs_iget(dir->i_sb, node) : NULL;
}

static struct inode *make_child(struct inode *dir, const char *name, umode_t mode)
{
	const struct pkernfs_attr attr = { .mode = mode, .now_ns = pkernfs_now() };
	struct pkernfs_region *region = pkernfs_region(dir);
	struct pkernfs_node *node;
	int err;

	pkernfs_lock(region);
	err = pkernfs_node_create(region->store, pkernfs_node(dir), name, strlen(name), &attr,
				  NULL, 0, &node);
	if (!err)
		pkernfs_inode_sync(dir);
	pkernfs_unlock(region);
	if (err)
		return ERR_PTR(err);
	/* Somebody may have looked for this name before: that it is not there is cached. */
	shrink_dcache_sb(dir->i_sb);
	return pkernfs_iget(dir->i_sb, node);
}

static struct inode *kernel_dir(struct super_block *sb, bool make)
{
	struct inode *root = d_inode(sb->s_root), *dir;

	inode_lock(root);
	dir = child_inode(root, KERNEL_DIR);
	if (!dir && make)
		dir = make_child(root, KERNEL_DIR, S_IFDIR | 0755);
	inode_unlock(root);
	if (!dir)
		return ERR_PTR(-ENOENT);
	if (!IS_ERR(dir) && !S_ISDIR(dir->i_mode)) {
		iput(dir);
		return ERR_PTR(-ENOTDIR);
	}
	return dir;
}

/* The directory is locked. The content goes with the last reference. */
static int remove_child(struct inode *dir, struct inode *inode)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	int err;

	pkernfs_lock(region);
	err = pkernfs_node_unlink(region->store, pkernfs_node(inode), pkernfs_now());
	if (!err) {
		pkernfs_inode_sync(inode);
		pkernfs_inode_sync(dir);
	}
	pkernfs_unlock(region);
	if (!err)
		d_prune_aliases(inode);
	return err;
}

static int remove_named(struct inode *dir, const char *name)
{
	struct inode *inode = child_inode(dir, name);
	int err;

	if (IS_ERR_OR_NULL(inode))
		return inode ? PTR_ERR(inode) : -ENOENT;
	err = remove_child(dir, inode);
	iput(inode);
	return err;
}

/* Blocks of a file in its order. */
static int list_blocks(struct pkernfs_region *region, struct pkernfs_node *node, u32 nr_blocks,
		       u64 *phys)
{
	u32 at = 0, block, count, i;

	lockdep_assert_held(&region->lock);
	while (at < nr_blocks) {
		if (!pkernfs_node_map(region->store, node, at, &block, &count))
			return -EIO;
		for (i = 0; i < count && at < nr_blocks; i++, at++)
			phys[at] = region->base + ((u64)(block + i) << PKERNFS_BLOCK_SHIFT);
	}
	return 0;
}

static int fill_file(struct inode *inode, u32 nr_blocks, u64 *phys)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	int err;

	pkernfs_lock(region);
	err = pkernfs_node_allocate(region->store, pkernfs_node(inode), 0, nr_blocks,
				    (u64)nr_blocks << PKERNFS_BLOCK_SHIFT, pkernfs_now());
	if (!err) {
		pkernfs_inode_sync(inode);
		err = list_blocks(region, pkernfs_node(inode), nr_blocks, phys);
	}
	pkernfs_unlock(region);
	return err;
}

int pkernfs_kernel_file_make(struct pkernfs_region *region, const char *name, u32 nr_blocks,
			     u64 *phys)
{
	struct inode *dir, *inode;
	int err;

	if (sb_rdonly(region->sb))
		return -EROFS;
	dir = kernel_dir(region->sb, true);
	if (IS_ERR(dir))
		return PTR_ERR(dir);
	inode_lock(dir);
	err = remove_named(dir, name);
	if (err && err != -ENOENT)
		goto unlock_dir;
	inode = make_child(dir, name, S_IFREG | 0400);
	if (IS_ERR(inode)) {
		err = PTR_ERR(inode);
		goto unlock_dir;
	}
	err = fill_file(inode, nr_blocks, phys);
	if (err)
		remove_child(dir, inode);
	iput(inode);
unlock_dir:
	inode_unlock(dir);
	iput(dir);
	return err;
}
EXPORT_SYMBOL_GPL(pkernfs_kernel_file_make);

int pkernfs_kernel_file_remove(struct pkernfs_region *region, const char *name)
{
	struct inode *dir;
	int err;

	if (sb_rdonly(region->sb))
		return -EROFS;
	dir = kernel_dir(region->sb, false);
	if (IS_ERR(dir))
		return PTR_ERR(dir);
	inode_lock(dir);
	err = remove_named(dir, name);
	inode_unlock(dir);
	iput(dir);
	return err;
}
EXPORT_SYMBOL_GPL(pkernfs_kernel_file_remove);

/*
 * Which blocks are whose.
 */

static void mark_blocks(struct pkernfs_region *region, struct pkernfs_node *node,
			unsigned long *blocks)
{
	u32 at = 0, block, count;

	while (at < U32_MAX) {
		if (pkernfs_node_map(region->store, node, at, &block, &count))
			bitmap_set(blocks, block, count);
		if (!count)
			break;
		at += count;
	}
}

/* Depth first, without a stack: a child knows its parent, and order is by inode number. */
static void mark_tree(struct pkernfs_region *region, unsigned long *blocks)
{
	struct pkernfs_node *root = pkernfs_store_root(region->store), *node = root;
	u64 from = 0;

	for (;;) {
		struct pkernfs_node *child = NULL;

		if (!pkernfs_is_kernel_dir(region, node))
			child = pkernfs_node_next(node, from);
		if (child) {
			const struct pkernfs_inode *raw = pkernfs_node_inode(region->store, child);
			umode_t mode = le32_to_cpu(raw->mode);

			from = child->ino + 1;
			if (S_ISREG(mode)) {
				mark_blocks(region, child, blocks);
			} else if (S_ISDIR(mode)) {
				node = child;
				from = 0;
			}
			continue;
		}
		if (node == root)
			return;
		from = node->ino + 1;
		node = node->parent;
	}
}

unsigned long *pkernfs_data_blocks(struct pkernfs_region *region)
{
	unsigned long *blocks;

	blocks = kvcalloc(BITS_TO_LONGS(region->backing.nr_blocks), sizeof(long), GFP_KERNEL);
	if (!blocks)
		return NULL;
	down_read(&region->lock);
	if (region->store)
		mark_tree(region, blocks);
	up_read(&region->lock);
	return blocks;
}
EXPORT_SYMBOL_GPL(pkernfs_data_blocks);

/*
 * The guard.
 */

int pkernfs_guard_set(const struct pkernfs_guard *new)
{
	int err = 0;

	down_write(&guard_lock);
	if (new && guard)
		err = -EBUSY;
	else
		guard = new;
	up_write(&guard_lock);
	return err;
}
EXPORT_SYMBOL_GPL(pkernfs_guard_set);

void pkernfs_guard_mounted(struct pkernfs_region *region)
{
	down_read(&guard_lock);
	if (guard)
		guard->mounted(region);
	up_read(&guard_lock);
}

/*
 * May a device reach blocks of this file, from file_block on, count of them? The caller
 * sees to it that they stay while we ask (i_rwsem, or nobody else knows the inode).
 */
bool pkernfs_blocks_busy(struct inode *inode, u32 file_block, u32 count)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	u64 end = min_t(u64, (u64)file_block + count, U32_MAX), at = file_block;
	bool busy = false;

	down_read(&guard_lock);
	while (guard && !busy && at < end) {
		u32 block, run;
		bool mapped;

		down_read(&region->lock);
		mapped = pkernfs_node_map(region->store, pkernfs_node(inode), at, &block, &run);
		up_read(&region->lock);
		if (!run)
			break;
		run = min_t(u64, run, end - at);
		if (mapped)
			busy = guard->busy(region->base + ((u64)block << PKERNFS_BLOCK_SHIFT),
					   (u64)run << PKERNFS_BLOCK_SHIFT);
		at += run;
	}
	up_read(&guard_lock);
	return busy;
}
