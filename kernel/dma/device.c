// SPDX-License-Identifier: GPL-2.0-only
/* Which devices are preserved, and in what state. */
#include "dma.h"

#include <linux/module.h>

struct dma_slot dma_slots[PKERNFS_DMA_MAX_DEVICES];
DEFINE_MUTEX(dma_control_lock);
DEFINE_MUTEX(dma_lock);
DEFINE_MUTEX(dma_tables_lock);
char dma_message[256];

const char *dma_state_name(enum dma_state state)
{
	static const char * const names[] = {
		[DMA_FREE] = "free", [DMA_PRESERVED] = "preserved",
		[DMA_INHERITED] = "inherited", [DMA_CUT_OFF] = "cut-off",
	};

	return names[state];
}

void dma_refuse(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vscnprintf(dma_message, sizeof(dma_message), fmt, args);
	va_end(args);
	pr_err("%s\n", dma_message);
}

struct dma_slot *dma_slot_of(const struct device *dev)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot) {
		struct pci_dev *pdev = READ_ONCE(slot->pdev);

		if (pdev && &pdev->dev == dev)
			return slot;
	}
	return NULL;
}

bool dma_above_preserved(const struct pci_dev *bridge)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot) {
		struct pci_dev *above;

		if (slot->state != DMA_PRESERVED)
			continue;
		for (above = pci_upstream_bridge(slot->pdev); above;
		     above = pci_upstream_bridge(above))
			if (above == bridge)
				return true;
	}
	return false;
}

/* The module stays as long as a device depends on it. Takes over a reference to pdev. */
struct dma_slot *dma_slot_take(struct pci_dev *pdev, enum dma_state state)
{
	struct dma_slot *slot;

	lockdep_assert_held(&dma_lock);
	for_each_dma_slot(slot) {
		if (slot->state != DMA_FREE)
			continue;
		__module_get(THIS_MODULE);
		mutex_lock(&dma_tables_lock);
		slot->state = state;
		WRITE_ONCE(slot->pdev, pdev);
		mutex_unlock(&dma_tables_lock);
		return slot;
	}
	return NULL;
}

void dma_slot_free(struct dma_slot *slot)
{
	struct pci_dev *pdev = slot->pdev;

	lockdep_assert_held(&dma_lock);
	mutex_lock(&dma_tables_lock);
	WRITE_ONCE(slot->pdev, NULL);
	dma_area_unmap(&slot->area);
	dma_area_unmap(&slot->inherited);
	*slot = (struct dma_slot){ 0 };
	mutex_unlock(&dma_tables_lock);
	pci_dev_put(pdev);
	module_put(THIS_MODULE);
}

struct pci_dev *dma_parse_bdf(const char *name)
{
	unsigned int segment, bus, device, function;
	struct pci_dev *pdev;
	char end;

	if (sscanf(name, "%4x:%2x:%2x.%1x%c", &segment, &bus, &device, &function, &end) != 4 ||
	    device > 31 || function > 7) {
		dma_refuse("%.20s is no PCI device, write it as 0000:01:00.0", name);
		return ERR_PTR(-EINVAL);
	}
	pdev = pci_get_domain_bus_and_slot(segment, bus, PCI_DEVFN(device, function));
	if (!pdev) {
		dma_refuse("there is no PCI device %.20s", name);
		return ERR_PTR(-ENODEV);
	}
	return pdev;
}

int dma_preserve(const char *name)
{
	struct pci_dev *pdev = dma_parse_bdf(name);
	struct dma_slot *slot;
	const char *no;
	int err = 0;

	lockdep_assert_held(&dma_control_lock);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	/* Not below dma_lock: the IOMMU core comes from the other side. */
	no = dma_objection(pdev);
	if (no) {
		dma_refuse("%s can't be preserved: it %s", pci_name(pdev), no);
		err = -EOPNOTSUPP;
		goto put_device;
	}

	mutex_lock(&dma_lock);
	slot = dma_slot_of(&pdev->dev);
	if (slot) {
		/* It is already; one that was cut off gets another chance. */
		if (slot->state == DMA_CUT_OFF)
			slot->state = DMA_PRESERVED;
	} else if (dma_armed()) {
		dma_refuse("%s: a hand-over is armed", pci_name(pdev));
		err = -EBUSY;
	} else {
		slot = dma_slot_take(pci_dev_get(pdev), DMA_PRESERVED);
		if (!slot) {
			pci_dev_put(pdev);
			dma_refuse("more than %d devices", PKERNFS_DMA_MAX_DEVICES);
			err = -ENOSPC;
		}
	}
	mutex_unlock(&dma_lock);
put_device:
	pci_dev_put(pdev);
	return err;
}

int dma_release(const char *name)
{
	struct pci_dev *pdev = dma_parse_bdf(name);
	struct dma_slot *slot;
	bool untold = false;
	int err = 0;

	lockdep_assert_held(&dma_control_lock);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	mutex_lock(&dma_lock);
	slot = dma_slot_of(&pdev->dev);
	if (!slot) {
		dma_refuse("%s is not preserved", pci_name(pdev));
		err = -ENOENT;
	} else if (dma_armed()) {
		dma_refuse("%s: a hand-over is armed", pci_name(pdev));
		err = -EBUSY;
	} else {
		if (slot->state == DMA_INHERITED)
			dma_cut_off(slot, "released before it was adopted");
		/* Adopted, and not opened since: our references are still there. */
		dma_let_go(slot);
		untold = slot->untold;
		dma_slot_free(slot);
	}
	mutex_unlock(&dma_lock);
	if (!err)
		dma_attach_released(&pdev->dev, untold);
	pci_dev_put(pdev);
	return err;
}

/* A device that is taken away is nobody's any more. */
static void device_gone(struct device *dev)
{
	struct dma_slot *slot;

	if (!dma_slot_of(dev))
		return;
	mutex_lock(&dma_lock);
	slot = dma_slot_of(dev);
	if (slot) {
		pr_err("%s was removed, it is not preserved any more\n", pci_name(slot->pdev));
		if (slot->state == DMA_INHERITED)
			dma_cut_off(slot, "removed before it was adopted");
		dma_let_go(slot);
		if (slot->area.nr_blocks)
			dma_area_remove_later(slot->area.region, slot->area.name);
		dma_slot_free(slot);
	}
	mutex_unlock(&dma_lock);
}

static int device_changes(struct notifier_block *block, unsigned long event, void *data)
{
	if (event == BUS_NOTIFY_DEL_DEVICE)
		device_gone(data);
	else if (event == BUS_NOTIFY_BIND_DRIVER)
		dma_attach(data);
	return NOTIFY_DONE;
}

static struct notifier_block device_notifier = { .notifier_call = device_changes };

int dma_device_init(void)
{
	return bus_register_notifier(&pci_bus_type, &device_notifier);
}

void dma_device_exit(void)
{
	bus_unregister_notifier(&pci_bus_type, &device_notifier);
}
