// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mounting. A region has one super block, however often it is mounted.
 */
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/uuid.h>

#include "pkernfs.h"

struct pkernfs_options {
	bool init;
};

enum { PKERNFS_OPT_INIT };

static const struct fs_parameter_spec pkernfs_params[] = {
	fsparam_flag("init", PKERNFS_OPT_INIT),
	{}
};

/* Of the mounted store; asks again for what is in limbo. All zero: none is mounted. */
void pkernfs_region_usage(struct pkernfs_region *region, struct pkernfs_usage *usage)
{
	*usage = (struct pkernfs_usage){ };
	down_read(&region->lock);
	if (region->store)
		pkernfs_store_usage(region->store, usage);
	up_read(&region->lock);
	if (!usage->blocks_limbo)
		return;
	pkernfs_lock(region);
	if (region->store) {
		pkernfs_store_collect(region->store);
		pkernfs_store_usage(region->store, usage);
	}
	pkernfs_unlock(region);
}

static int pkernfs_statfs(struct dentry *dentry, struct kstatfs *stat)
{
	struct pkernfs_region *region = pkernfs_sb_region(dentry->d_sb);
	struct pkernfs_usage usage;

	pkernfs_region_usage(region, &usage);
	stat->f_type = PKERNFS_SUPER_MAGIC;
	stat->f_bsize = PKERNFS_BLOCK_SIZE;
	stat->f_frsize = PKERNFS_BLOCK_SIZE;
	/* All of the range: what is neither free nor in a file is metadata. */
	stat->f_blocks = region->backing.nr_blocks;
	/* What a device may still reach is in no file, but nobody can have it. */
	stat->f_bfree = usage.blocks_free + usage.blocks_limbo;
	stat->f_bavail = usage.blocks_free;
	stat->f_files = usage.nodes + usage.nodes_free;
	stat->f_ffree = usage.nodes_free;
	stat->f_namelen = PKERNFS_NAME_MAX;
	stat->f_fsid = uuid_to_fsid(dentry->d_sb->s_uuid.b);
	return 0;
}

/* "none" in the mount command, but which region it is here. */
static int pkernfs_show_devname(struct seq_file *seq, struct dentry *root)
{
	seq_puts(seq, pkernfs_sb_region(root->d_sb)->name);
	return 0;
}

/* Runs after the last inode is gone; never for a mount that failed. */
static void pkernfs_put_super(struct super_block *sb)
{
	struct pkernfs_region *region = pkernfs_sb_region(sb);

	pkernfs_pages_stop(region);
	pkernfs_lock(region);
	pkernfs_store_close(region->store);
	region->store = NULL;
	pkernfs_unlock(region);
}

static const struct super_operations pkernfs_super_ops = {
	.statfs		= pkernfs_statfs,
	.evict_inode	= pkernfs_evict_inode,
	.put_super	= pkernfs_put_super,
	.show_devname	= pkernfs_show_devname,
};

/* Only where nothing of ours lies; what there is otherwise, opening it will tell. */
static int make_store(struct pkernfs_region *region)
{
	const struct pkernfs_attr root = { .mode = S_IFDIR | 0755, .now_ns = pkernfs_now() };
	u32 page_blocks = 0;
	uuid_t uuid;
	int remains;

	remains = pkernfs_store_remains(&region->backing, NULL);
	if (remains)
		return remains < 0 ? remains : 0;
	if (pkernfs_pages_wanted())
		page_blocks = pkernfs_pages_blocks(region);

	uuid_gen(&uuid);
	/* That nothing is lost was asked above, of the whole range. */
	return pkernfs_store_make(&region->backing, uuid.b, region->name, page_blocks, &root,
				  true);
}

static int open_store(struct super_block *sb, bool init)
{
	struct pkernfs_region *region = pkernfs_sb_region(sb);
	int err = 0;

	pkernfs_lock(region);
	if (init)
		err = make_store(region);
	if (!err)
		err = pkernfs_store_open(&region->backing, sb_rdonly(sb), &region->store);
	if (!err && pkernfs_reached_any(region))
		pkernfs_store_recheck(region->store);
	region->sb = sb;
	pkernfs_unlock(region);
	return err;
}

static void set_limits(struct super_block *sb)
{
	sb->s_magic = PKERNFS_SUPER_MAGIC;
	sb->s_blocksize_bits = PKERNFS_BLOCK_SHIFT;
	sb->s_blocksize = PKERNFS_BLOCK_SIZE;
	sb->s_maxbytes = min_t(u64, MAX_LFS_FILESIZE, PKERNFS_FILE_MAX);
	sb->s_time_gran = 1;
	/* Whole seconds whose nanoseconds all fit into a word. */
	sb->s_time_min = div_s64(S64_MIN, NSEC_PER_SEC) + 1;
	sb->s_time_max = div_s64(S64_MAX, NSEC_PER_SEC) - 1;
}

static int pkernfs_fill_super(struct super_block *sb, const struct pkernfs_options *options)
{
	struct pkernfs_region *region = pkernfs_sb_region(sb);
	const struct pkernfs_super *super;
	struct inode *root;
	int err;

	err = open_store(sb, options->init);
	if (err)
		return err;

	err = pkernfs_pages_start(region);
	if (err)
		goto close_store;

	set_limits(sb);
	sb->s_op = &pkernfs_super_ops;
	/* There are no device nodes, and private writable mappings can't be had. */
	sb->s_iflags |= SB_I_NODEV | SB_I_NOEXEC;
	super = pkernfs_store_super(region->store);
	super_set_uuid(sb, super->uuid, sizeof(super->uuid));

	root = pkernfs_iget(sb, pkernfs_store_root(region->store));
	if (IS_ERR(root)) {
		err = PTR_ERR(root);
		goto close_store;
	}
	sb->s_root = d_make_root(root);
	if (!sb->s_root) {
		err = -ENOMEM;
		goto close_store;
	}
	sb->s_flags |= SB_ACTIVE;
	pkernfs_guard_mounted(region);
	return 0;

close_store:
	pkernfs_put_super(sb);
	return err;
}

static int same_region(struct super_block *sb, struct fs_context *fc)
{
	return sb->s_fs_info == fc->s_fs_info;
}

static int pkernfs_get_tree(struct fs_context *fc)
{
	struct pkernfs_region *region = pkernfs_region_find(fc->source);
	struct super_block *sb;
	int err;

	if (!region) {
		errorf(fc, "no region is named '%s': see /sys/fs/pkernfs", fc->source);
		return -ENODEV;
	}

	fc->s_fs_info = region;
	sb = sget_fc(fc, same_region, set_anon_super_fc);
	if (IS_ERR(sb))
		return PTR_ERR(sb);

	if (!sb->s_root) {
		err = pkernfs_fill_super(sb, fc->fs_private);
		if (err)
			goto deactivate_super;
	} else if ((fc->sb_flags ^ sb->s_flags) & SB_RDONLY) {
		errorf(fc, "region %s is already mounted %s", region->name,
		       sb_rdonly(sb) ? "read-only" : "read-write");
		err = -EBUSY;
		goto deactivate_super;
	}
	fc->root = dget(sb->s_root);
	return 0;

deactivate_super:
	deactivate_locked_super(sb);
	return err;
}

static int pkernfs_parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct pkernfs_options *options = fc->fs_private;
	struct fs_parse_result result;
	int opt;

	opt = fs_parse(fc, pkernfs_params, param, &result);
	if (opt < 0)
		return opt;

	switch (opt) {
	case PKERNFS_OPT_INIT:
		if (fc->purpose == FS_CONTEXT_FOR_RECONFIGURE)
			return invalf(fc, "init: not on a remount");
		options->init = true;
		break;
	}
	return 0;
}

static void pkernfs_free_fc(struct fs_context *fc)
{
	kfree(fc->fs_private);
}

/* From here on it may be written: first what a crash left over is put right. */
static int pkernfs_reconfigure(struct fs_context *fc)
{
	struct super_block *sb = fc->root->d_sb;
	struct pkernfs_region *region = pkernfs_sb_region(sb);

	if (!sb_rdonly(sb) || (fc->sb_flags & SB_RDONLY))
		return 0;
	pkernfs_lock(region);
	pkernfs_store_repair(region->store);
	pkernfs_unlock(region);
	return 0;
}

static const struct fs_context_operations pkernfs_context_ops = {
	.parse_param	= pkernfs_parse_param,
	.get_tree	= pkernfs_get_tree,
	.reconfigure	= pkernfs_reconfigure,
	.free		= pkernfs_free_fc,
};

static int pkernfs_init_fs_context(struct fs_context *fc)
{
	fc->fs_private = kzalloc(sizeof(struct pkernfs_options), GFP_KERNEL);
	if (!fc->fs_private)
		return -ENOMEM;
	fc->ops = &pkernfs_context_ops;
	return 0;
}

/* No FS_USERNS_MOUNT: what is in the range belongs to the host. */
struct file_system_type pkernfs_fs_type = {
	.owner			= THIS_MODULE,
	.name			= KBUILD_MODNAME,
	.init_fs_context	= pkernfs_init_fs_context,
	.parameters		= pkernfs_params,
	.kill_sb		= kill_anon_super,
};
