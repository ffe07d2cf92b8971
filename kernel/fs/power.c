// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hibernation saves the kernel's own memory and switches the machine off: what is in a
 * store would be lost, while the image that is resumed has it mounted. So it is refused,
 * as is resuming from an image, as long as a store is mounted. Suspend to RAM keeps memory.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/notifier.h>
#include <linux/suspend.h>

#include "pkernfs.h"

static const char *mounted_region(void)
{
	struct pkernfs_region *region;
	unsigned int i;

	for (i = 0; (region = pkernfs_region_nth(i)); i++) {
		bool mounted;

		down_read(&region->lock);
		mounted = region->store;
		up_read(&region->lock);
		if (mounted)
			return region->name;
	}
	return NULL;
}

static int power_changes(struct notifier_block *block, unsigned long event, void *data)
{
	const char *name;

	if (event != PM_HIBERNATION_PREPARE && event != PM_RESTORE_PREPARE)
		return NOTIFY_OK;
	name = mounted_region();
	if (!name)
		return NOTIFY_OK;
	pr_err("region %s is mounted: hibernation would lose what is in it, so it is refused\n",
	       name);
	return notifier_from_errno(-EBUSY);
}

static struct notifier_block power_notifier = { .notifier_call = power_changes };

int pkernfs_power_init(void)
{
	return register_pm_notifier(&power_notifier);
}

void pkernfs_power_exit(void)
{
	unregister_pm_notifier(&power_notifier);
}
