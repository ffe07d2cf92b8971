// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loading and unloading: the regions are claimed as long as the module is loaded.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cc_platform.h>
#include <linux/module.h>

#include "pkernfs.h"

static char *region;
module_param(region, charp, 0444);
MODULE_PARM_DESC(region, "[NAME:]SIZE!START[,...]: ranges that memmap=SIZE$START keeps away from the kernel");

static int __init pkernfs_init(void)
{
	int err;

	/* The kernel would map the range without the bit that user space's mappings have. */
	if (cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT)) {
		pr_err("memory encryption (SME) is on, and reads and mappings of a file would differ: boot with mem_encrypt=off\n");
		return -EOPNOTSUPP;
	}

	err = pkernfs_sysfs_init();
	if (err)
		return err;

	err = pkernfs_regions_claim(region);
	if (err)
		goto exit_sysfs;

	err = pkernfs_type1_init();
	if (err)
		goto release_regions;

	err = pkernfs_power_init();
	if (err)
		goto exit_type1;

	err = register_filesystem(&pkernfs_fs_type);
	if (err)
		goto exit_power;

	return 0;

exit_power:
	pkernfs_power_exit();
exit_type1:
	pkernfs_type1_exit();
	pkernfs_reach_exit();
release_regions:
	pkernfs_regions_release();
exit_sysfs:
	pkernfs_sysfs_exit();
	return err;
}

static void __exit pkernfs_exit(void)
{
	unregister_filesystem(&pkernfs_fs_type);
	/* Inodes are freed after a grace period. */
	rcu_barrier();
	pkernfs_power_exit();
	pkernfs_type1_exit();
	pkernfs_reach_exit();
	pkernfs_regions_release();
	pkernfs_sysfs_exit();
}

module_init(pkernfs_init);
module_exit(pkernfs_exit);

MODULE_DESCRIPTION("Filesystem in memory that survives kexec");
MODULE_ALIAS_FS("pkernfs");
MODULE_LICENSE("GPL");
