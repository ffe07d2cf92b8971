// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/fs/pkernfs_dma: what `pkernfs device` and `pkernfs update` talk to.
 *
 *   preserve, release, adopt	(write) a device, as 0000:01:00.0
 *   arm			(write) 1 or 0: ready to hand over at a kexec by this process;
 *				(read) which
 *   record			(read) where the next kernel finds the record: its boot
 *				line needs elfcorehdr=RECORD
 *   devices			(read) a line per device, key=value, reason="..." last
 *   candidates		(read) a line per device that VFIO drives, reason="..." if it
 *				can't be preserved
 *   message			(read) why the last order was refused
 *   hooks			(read) the touch points with the kernel
 *
 * Addresses of memory are for root only.
 */
#include "dma.h"

#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#ifdef PKERNFS_BIN_ATTR_IS_CONST
#define DMA_BIN_ATTR	const struct bin_attribute
#else
#define DMA_BIN_ATTR	struct bin_attribute
#endif

static struct kobject *control;

static ssize_t order_device(const char *buf, size_t count, int (*order)(const char *name))
{
	char name[24];
	int err;

	if (count >= sizeof(name))
		return -EINVAL;
	strscpy(name, buf, sizeof(name));
	mutex_lock(&dma_control_lock);
	dma_message[0] = '\0';
	err = order(strim(name));
	mutex_unlock(&dma_control_lock);
	return err ?: count;
}

static ssize_t preserve_store(struct kobject *kobj, struct kobj_attribute *attr,
			      const char *buf, size_t count)
{
	return order_device(buf, count, dma_preserve);
}

static ssize_t release_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	return order_device(buf, count, dma_release);
}

static ssize_t adopt_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf,
			   size_t count)
{
	return order_device(buf, count, dma_adopt_by_name);
}

static ssize_t arm_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf,
			 size_t count)
{
	bool arm;
	int err;

	err = kstrtobool(buf, &arm);
	if (err)
		return err;
	mutex_lock(&dma_control_lock);
	dma_message[0] = '\0';
	err = arm ? dma_arm() : dma_disarm();
	mutex_unlock(&dma_control_lock);
	return err ?: count;
}

static ssize_t arm_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", dma_armed());
}

static ssize_t record_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	ssize_t used;

	mutex_lock(&dma_control_lock);
	used = sysfs_emit(buf, "%#llx\n", dma_record_phys());
	mutex_unlock(&dma_control_lock);
	return used;
}

static ssize_t message_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", dma_message);
}

#define CANDIDATE_LINE_MAX	192

static bool is_candidate(struct pci_dev *pdev)
{
	bool is;

	/* A driver comes or goes just now. */
	if (!device_trylock(&pdev->dev))
		return false;
	is = pdev->driver && pdev->driver->driver_managed_dma &&
	     pdev->hdr_type == PCI_HEADER_TYPE_NORMAL;
	device_unlock(&pdev->dev);
	return is;
}

static ssize_t candidates_read(struct file *file, struct kobject *kobj,
			       DMA_BIN_ATTR *attr, char *buf, loff_t off, size_t count)
{
	const size_t room = PKERNFS_DMA_MAX_DEVICES * 4 * CANDIDATE_LINE_MAX;
	char *text = kvmalloc(room, GFP_KERNEL);
	struct pci_dev *pdev = NULL;
	size_t used = 0;
	ssize_t done;

	if (!text)
		return -ENOMEM;
	for_each_pci_dev(pdev)
		if (is_candidate(pdev))
			used += scnprintf(text + used, room - used, "%s reason=\"%s\"\n",
					  pci_name(pdev), dma_objection(pdev) ?: "");
	done = memory_read_from_buffer(buf, count, &off, text, used);
	kvfree(text);
	return done;
}

#define DEVICE_LINE_MAX	512

static size_t describe(const struct dma_slot *slot, char *buf, size_t room)
{
	bool inherited = slot->state == DMA_INHERITED;

	return scnprintf(buf, room,
			 "%s state=%s vendor=%04x device=%04x held=%d open=%d checked=%d leaves=%llu bytes=%llu pages=%llu dropped=%llu adopted=%llu switch_ns=%llu adopt_ns=%llu reason=\"%s\"\n",
			 pci_name(slot->pdev), dma_state_name(slot->state),
			 slot->pdev->vendor, slot->pdev->device, !!slot->held, slot->open,
			 slot->checked,
			 inherited ? le64_to_cpu(slot->record.leaves) : slot->counts.leaves,
			 inherited ? le64_to_cpu(slot->record.bytes) : slot->counts.bytes,
			 inherited ? le64_to_cpu(slot->record.pages) : slot->counts.pages,
			 slot->dropped, slot->adopted, slot->switch_ns, slot->adopt_ns,
			 slot->reason);
}

/* More than a page if there are many devices: no ordinary attribute. */
static ssize_t devices_read(struct file *file, struct kobject *kobj,
			    DMA_BIN_ATTR *attr, char *buf, loff_t off, size_t count)
{
	const size_t room = PKERNFS_DMA_MAX_DEVICES * DEVICE_LINE_MAX;
	char *text = kvmalloc(room, GFP_KERNEL);
	struct dma_slot *slot;
	size_t used = 0;
	ssize_t done;

	if (!text)
		return -ENOMEM;
	mutex_lock(&dma_lock);
	for_each_dma_slot(slot)
		if (slot->state != DMA_FREE)
			used += describe(slot, text + used, room - used);
	mutex_unlock(&dma_lock);
	done = memory_read_from_buffer(buf, count, &off, text, used);
	kvfree(text);
	return done;
}

static ssize_t hooks_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return hooks_describe(buf, PAGE_SIZE);
}

#define ORDER(name)	struct kobj_attribute name##_attr = __ATTR(name, 0200, NULL, name##_store)
static ORDER(preserve);
static ORDER(release);
static ORDER(adopt);
static struct kobj_attribute arm_attr = __ATTR(arm, 0600, arm_show, arm_store);
static struct kobj_attribute record_attr = __ATTR(record, 0400, record_show, NULL);
static const struct bin_attribute devices_attr = {
	.attr = { .name = "devices", .mode = 0400 },
	.read = devices_read,
};
static const struct bin_attribute candidates_attr = {
	.attr = { .name = "candidates", .mode = 0400 },
	.read = candidates_read,
};
static struct kobj_attribute message_attr = __ATTR(message, 0400, message_show, NULL);
static struct kobj_attribute hooks_attr = __ATTR(hooks, 0444, hooks_show, NULL);

static const struct attribute *attributes[] = {
	&preserve_attr.attr, &release_attr.attr, &adopt_attr.attr, &arm_attr.attr,
	&record_attr.attr, &message_attr.attr, &hooks_attr.attr, NULL,
};

int control_init(void)
{
	int err;

	control = kobject_create_and_add("pkernfs_dma", fs_kobj);
	if (!control)
		return -ENOMEM;
	err = sysfs_create_files(control, attributes);
	if (!err)
		err = sysfs_create_bin_file(control, &devices_attr);
	if (!err)
		err = sysfs_create_bin_file(control, &candidates_attr);
	if (err)
		control_exit();
	return err;
}

void control_exit(void)
{
	kobject_put(control);
}
