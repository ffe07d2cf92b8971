// SPDX-License-Identifier: GPL-2.0-only
/* Loading and unloading: everything is resolved and checked, or nothing is changed. */
#include "dma.h"

#include <linux/module.h>

static int __init pkernfs_dma_init(void)
{
	int err;

	/* Even if all else fails, this kernel is not one after a crash. */
	err = dma_end_disguise();
	if (err)
		return err;
	err = dma_area_init();
	if (err)
		goto fail_closed;
	err = hooks_install();
	dma_hide_record();
	if (err)
		goto exit_area;
	err = vtd_find_units();
	if (err)
		goto remove_hooks;
	err = dma_handover_init();
	if (err)
		goto forget_units;
	err = dma_device_init();
	if (err)
		goto exit_handover;
	err = dma_guard_init();
	if (err)
		goto exit_device;
	err = control_init();
	if (err)
		goto exit_guard;
	dma_inherit();
	return 0;

exit_guard:
	dma_guard_exit();
exit_device:
	dma_device_exit();
exit_handover:
	dma_handover_exit();
forget_units:
	vtd_forget_units();
remove_hooks:
	hooks_remove();
exit_area:
	dma_area_exit();
fail_closed:
	dma_fail_closed();
	return err;
}

/* A slot in use holds a reference to the module: there is none here. */
static void __exit pkernfs_dma_exit(void)
{
	control_exit();
	dma_guard_exit();
	dma_device_exit();
	dma_handover_exit();
	hooks_remove();
	vtd_forget_units();
	dma_area_exit();
}

module_init(pkernfs_dma_init);
module_exit(pkernfs_dma_exit);
MODULE_DESCRIPTION("Devices that keep working while the host's kernel is replaced");
MODULE_LICENSE("GPL");
