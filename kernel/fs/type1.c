// SPDX-License-Identifier: GPL-2.0-only
/*
 * Probes on VFIO's type1, as long as it is loaded: who calls a container, and when one is
 * gone. They sit at entries of functions, so they run in what calls these. See reach.c.
 *
 * A release that finds no free instance leaves its links behind: memory waits longer than
 * it has to.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "pkernfs.h"

#define TYPE1	"vfio_iommu_type1"
#define MAX_RELEASES	64

static int container_called(struct kprobe *probe, struct pt_regs *regs)
{
	void *container = (void *)regs_get_kernel_argument(regs, 0);

	/* What type1 can do is asked of no container at all. */
	if (container && current->mm)
		pkernfs_reach_called(container, current->mm);
	return 0;
}
NOKPROBE_SYMBOL(container_called);

static int release_begins(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	*(void **)instance->data = (void *)regs_get_kernel_argument(regs, 0);
	return 0;
}
NOKPROBE_SYMBOL(release_begins);

static int container_released(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	pkernfs_reach_released(*(void **)instance->data);
	return 0;
}
NOKPROBE_SYMBOL(container_released);

static const char * const entries[] = { TYPE1 "_ioctl", TYPE1 "_attach_group" };
static struct kprobe calls[ARRAY_SIZE(entries)];
static struct kretprobe release;
static bool probing;
static DEFINE_MUTEX(probes_lock);

static void remove_probes(void)
{
	if (!probing)
		return;
	for (int i = 0; i < ARRAY_SIZE(entries); i++)
		unregister_kprobe(&calls[i]);
	unregister_kretprobe(&release);
	probing = false;
}

/* -ENOENT: type1 is not loaded. All or none. */
static int set_probes(void)
{
	int err, i;

	if (probing)
		return 0;
	release = (struct kretprobe) {
		.kp.symbol_name	= TYPE1 "_release",
		.handler	= container_released,
		.entry_handler	= release_begins,
		.data_size	= sizeof(void *),
		.maxactive	= MAX_RELEASES,
	};
	err = register_kretprobe(&release);
	if (err)
		return err;
	for (i = 0; i < ARRAY_SIZE(entries) && !err; i++) {
		calls[i] = (struct kprobe) {
			.symbol_name	= entries[i],
			.pre_handler	= container_called,
		};
		err = register_kprobe(&calls[i]);
	}
	if (!err) {
		probing = true;
		return 0;
	}
	for (i--; i > 0; i--)
		unregister_kprobe(&calls[i - 1]);
	unregister_kretprobe(&release);
	/* The release is there: what is missing is no reason to think that type1 is. */
	return -EOPNOTSUPP;
}

static int module_changes(struct notifier_block *block, unsigned long event, void *data)
{
	const struct module *module = data;
	int err = 0;

	if (strcmp(module->name, TYPE1))
		return NOTIFY_OK;
	mutex_lock(&probes_lock);
	if (event == MODULE_STATE_COMING)
		err = set_probes();
	else if (event == MODULE_STATE_GOING)
		remove_probes();
	mutex_unlock(&probes_lock);
	if (err)
		pkernfs_reach_blind("can't watch VFIO's type1");
	return NOTIFY_OK;
}

static struct notifier_block module_notifier = { .notifier_call = module_changes };

int pkernfs_type1_init(void)
{
	int err;

	err = register_module_notifier(&module_notifier);
	if (err)
		return err;
	mutex_lock(&probes_lock);
	err = set_probes();
	mutex_unlock(&probes_lock);
	/* Without probes in this kernel there is nothing to wait for, should type1 come. */
	if (err && err != -ENOENT)
		pkernfs_reach_blind("can't watch VFIO's type1");
	return 0;
}

void pkernfs_type1_exit(void)
{
	unregister_module_notifier(&module_notifier);
	mutex_lock(&probes_lock);
	remove_probes();
	mutex_unlock(&probes_lock);
}
