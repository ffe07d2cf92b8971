// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tree: names in directories, and symlinks.
 *
 * What is not here is refused by the VFS with the proper errno: hard links, device
 * nodes, fifos and sockets (EPERM), unnamed files and extended attributes
 * (EOPNOTSUPP).
 */
#include <linux/fs.h>
#include <linux/namei.h>
#include <linux/slab.h>

#include "pkernfs.h"

static struct dentry *pkernfs_lookup(struct inode *dir, struct dentry *dentry, unsigned int flags)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	struct pkernfs_node *node;

	if (dentry->d_name.len > PKERNFS_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);

	down_read(&region->lock);
	node = pkernfs_node_lookup(pkernfs_node(dir), dentry->d_name.name, dentry->d_name.len);
	up_read(&region->lock);

	return d_splice_alias(node ? pkernfs_iget(dir->i_sb, node) : NULL, dentry);
}

/* A file, a directory, or (with a target) a symlink. On failure nothing has changed. */
static int add_name(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry,
		    umode_t mode, const char *target)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	const struct qstr *name = &dentry->d_name;
	struct pkernfs_node *node;
	struct pkernfs_attr attr;
	struct inode *inode;
	int err;

	if (pkernfs_inode_is_kernel_dir(dir) || pkernfs_name_is_kernels(dir, name))
		return -EPERM;

	inode = new_inode(dir->i_sb);
	if (!inode)
		return -ENOMEM;

	inode_init_owner(idmap, inode, dir, mode);
	attr = (struct pkernfs_attr) {
		.mode	= inode->i_mode,
		.uid	= i_uid_read(inode),
		.gid	= i_gid_read(inode),
		.now_ns	= pkernfs_now(),
	};

	pkernfs_lock(region);
	err = pkernfs_node_create(region->store, pkernfs_node(dir), name->name, name->len, &attr,
				  target, target ? strlen(target) : 0, &node);
	if (!err) {
		pkernfs_inode_setup(inode, node);
		pkernfs_inode_sync(dir);
	}
	pkernfs_unlock(region);
	if (err)
		goto put_inode;

	err = insert_inode_locked(inode);
	if (err)
		goto unlink_node;

	d_instantiate_new(dentry, inode);
	return 0;

unlink_node:
	pkernfs_lock(region);
	pkernfs_node_unlink(region->store, node, attr.now_ns);
	pkernfs_inode_sync(inode);
	pkernfs_inode_sync(dir);
	pkernfs_unlock(region);
put_inode:
	iput(inode);
	return err;
}

static int pkernfs_create(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry,
			  pkernfs_create_mode(mode))
{
	return add_name(idmap, dir, dentry, mode | S_IFREG, NULL);
}

static pkernfs_mkdir_t pkernfs_mkdir(struct mnt_idmap *idmap, struct inode *dir,
				     struct dentry *dentry, umode_t mode)
{
	int err = add_name(idmap, dir, dentry, mode | S_IFDIR, NULL);

	return pkernfs_mkdir_result(err);
}

static int pkernfs_symlink(struct mnt_idmap *idmap, struct inode *dir, struct dentry *dentry,
			   const char *target)
{
	if (strlen(target) > PKERNFS_SYMLINK_MAX)
		return -ENAMETOOLONG;
	return add_name(idmap, dir, dentry, S_IFLNK | 0777, target);
}

/* The content goes when the last user is gone, in pkernfs_evict_inode(). */
static int remove_name(struct inode *dir, struct dentry *dentry)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	struct inode *inode = d_inode(dentry);
	int err;

	if (S_ISREG(inode->i_mode) && pkernfs_blocks_busy(inode, 0, U32_MAX))
		return -EBUSY;

	pkernfs_lock(region);
	err = pkernfs_node_unlink(region->store, pkernfs_node(inode), pkernfs_now());
	if (!err) {
		pkernfs_inode_sync(inode);
		pkernfs_inode_sync(dir);
	}
	pkernfs_unlock(region);
	return err;
}

static int pkernfs_rename(struct mnt_idmap *idmap, struct inode *old_dir, struct dentry *old_dentry,
			  struct inode *new_dir, struct dentry *new_dentry, unsigned int flags)
{
	struct pkernfs_region *region = pkernfs_region(old_dir);
	const struct qstr *name = &new_dentry->d_name;
	struct inode *inode = d_inode(old_dentry);
	struct inode *victim = d_inode(new_dentry);
	int err;

	/* The VFS itself looks after NOREPLACE; exchanging two names is not one atomic step. */
	if (flags & ~RENAME_NOREPLACE)
		return -EINVAL;
	/* Files for the kernel alone stay where it finds them, and no others come there. */
	if (pkernfs_inode_is_kernel_dir(old_dir) || pkernfs_inode_is_kernel_dir(new_dir) ||
	    pkernfs_inode_is_kernel_dir(inode) || pkernfs_name_is_kernels(new_dir, name))
		return -EPERM;
	if (victim && S_ISREG(victim->i_mode) && pkernfs_blocks_busy(victim, 0, U32_MAX))
		return -EBUSY;

	pkernfs_lock(region);
	err = pkernfs_node_rename(region->store, pkernfs_node(inode), pkernfs_node(new_dir),
				  name->name, name->len, victim ? pkernfs_node(victim) : NULL,
				  pkernfs_now());
	if (!err) {
		pkernfs_inode_sync(inode);
		pkernfs_inode_sync(old_dir);
		pkernfs_inode_sync(new_dir);
		if (victim)
			pkernfs_inode_sync(victim);
	}
	pkernfs_unlock(region);
	return err;
}

struct entry {
	u64 ino;
	unsigned int type;
	u32 len;
	char name[PKERNFS_NAME_MAX];
};

/* The entry with the lowest inode number from "from" on: position and order of readdir. */
static bool next_entry(struct inode *dir, u64 from, struct entry *entry)
{
	struct pkernfs_region *region = pkernfs_region(dir);
	struct pkernfs_node *node;

	down_read(&region->lock);
	node = pkernfs_node_next(pkernfs_node(dir), from);
	if (node) {
		const struct pkernfs_inode *raw = pkernfs_node_inode(region->store, node);
		const char *name = pkernfs_node_name(region->store, node, &entry->len);

		entry->ino = node->ino;
		entry->type = fs_umode_to_dtype(le32_to_cpu(raw->mode));
		memcpy(entry->name, name, entry->len);
	}
	up_read(&region->lock);
	return node;
}

/* Positions 0 and 1 are "." and ".."; inode number 1 is the root's, nobody's child. */
static int pkernfs_iterate(struct file *file, struct dir_context *ctx)
{
	struct inode *dir = file_inode(file);
	struct entry entry;

	if (!dir_emit_dots(file, ctx))
		return 0;

	/* Emitting touches user memory: the store is not locked then. */
	while (next_entry(dir, ctx->pos, &entry)) {
		ctx->pos = entry.ino;
		if (!dir_emit(ctx, entry.name, entry.len, entry.ino, entry.type))
			return 0;
		ctx->pos = entry.ino + 1;
	}
	return 0;
}

static const char *pkernfs_get_link(struct dentry *dentry, struct inode *inode,
				    struct delayed_call *done)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	const struct pkernfs_inode *raw;
	char *target;
	size_t len;

	if (!dentry)
		return ERR_PTR(-ECHILD);
	target = kmalloc(PKERNFS_SYMLINK_MAX + 1, GFP_KERNEL);
	if (!target)
		return ERR_PTR(-ENOMEM);

	down_read(&region->lock);
	raw = pkernfs_node_inode(region->store, pkernfs_node(inode));
	len = min_t(u64, le64_to_cpu(raw->size), PKERNFS_SYMLINK_MAX);
	memcpy(target, raw->payload, len);
	up_read(&region->lock);
	target[len] = '\0';

	set_delayed_call(done, kfree_link, target);
	return target;
}

const struct inode_operations pkernfs_dir_iops = {
	.lookup		= pkernfs_lookup,
	.create		= pkernfs_create,
	.mkdir		= pkernfs_mkdir,
	.symlink	= pkernfs_symlink,
	.unlink		= remove_name,
	.rmdir		= remove_name,
	.rename		= pkernfs_rename,
	.setattr	= pkernfs_setattr,
	.getattr	= pkernfs_getattr,
	.update_time	= pkernfs_update_time,
};

const struct inode_operations pkernfs_symlink_iops = {
	.get_link	= pkernfs_get_link,
	.setattr	= pkernfs_setattr,
	.getattr	= pkernfs_getattr,
	.update_time	= pkernfs_update_time,
};

const struct file_operations pkernfs_dir_fops = {
	.llseek		= generic_file_llseek,
	.read		= generic_read_dir,
	.iterate_shared	= pkernfs_iterate,
	.fsync		= pkernfs_fsync,
};
