// SPDX-License-Identifier: GPL-2.0-only
/*
 * The switch from inherited tables to those of the new owner.
 *
 * The attach that was held back is now made for real, but on a context entry aside
 * (hooks_redirect()): the driver does all of its bookkeeping, and hardware still uses
 * the inherited entry. The tables that the driver put into the entry aside are compared
 * with the inherited ones. If they say the same, one 16-byte store makes them count;
 * if not, the attach is taken back, again aside.
 */
#include "dma.h"

#include <linux/iommu.h>
#include <linux/ktime.h>

static struct vtd_context *live_context(const struct dma_slot *slot)
{
	return vtd_live_context(slot->unit, slot->record.bus, slot->record.devfn);
}

static void redirect_to(const struct dma_slot *slot, struct vtd_context *aside)
{
	hooks_redirect(slot->record.bus, slot->record.devfn, slot->unit->driver, aside);
}

static void detach_aside(struct dma_slot *slot, struct vtd_context *aside)
{
	redirect_to(slot, aside);
	kernel_block(&slot->pdev->dev);
	hooks_redirect_end();
}

static int attach_aside(struct dma_slot *slot, struct vtd_context *aside)
{
	unsigned int hits;
	int err;

	redirect_to(slot, aside);
	err = kernel_attach(slot->held, &slot->pdev->dev);
	hits = hooks_redirect_end();
	if (err) {
		dma_refuse("%s: the driver refuses the attach (%d)", pci_name(slot->pdev), err);
		return err;
	}
	if (!hits || !vtd_context_translates(aside)) {
		/* The driver has the device in a domain that VFIO may free. */
		detach_aside(slot, aside);
		dma_refuse("%s: the driver made no context entry", pci_name(slot->pdev));
		return -EIO;
	}
	return 0;
}

static const char *rights(u64 rights)
{
	static const char * const names[] = { "unmapped", "read", "write", "read-write" };

	return names[rights & DMA_ENTRY_RIGHTS];
}

static int compare(struct dma_slot *slot, const struct vtd_context *aside)
{
	struct dma_tables old = dma_area_tables(&slot->inherited,
						le64_to_cpu(slot->record.root),
						slot->record.levels);
	struct dma_difference difference;
	struct dma_live new;
	int err;

	err = dma_live_init(&new, aside);
	if (err)
		return err;
	err = dma_tables_compare(&old, &new.tables, &difference);
	dma_live_exit(&new);
	if (err == -EXDEV)
		dma_refuse("%s: IOVA %#llx was %s at %#llx, now %s at %#llx",
			   pci_name(slot->pdev), difference.iova, rights(difference.old_rights),
			   difference.old_phys, rights(difference.new_rights),
			   difference.new_phys);
	else if (err)
		dma_refuse("%s: the new tables can't be compared (%d)", pci_name(slot->pdev),
			   err);
	return err;
}

static void adopted(struct dma_slot *slot)
{
	struct pkernfs_region *region = slot->inherited.region;
	char name[sizeof(slot->inherited.name)];

	strscpy(name, slot->inherited.name, sizeof(name));
	mutex_lock(&dma_tables_lock);
	slot->state = DMA_PRESERVED;
	slot->held = NULL;
	slot->untold = false;
	slot->reason[0] = '\0';
	dma_area_unmap(&slot->inherited);
	mutex_unlock(&dma_tables_lock);
	dma_area_remove_later(region, name);
	slot->adopted++;
	/* Not opened yet: what VFIO does on opening would stop it. */
	if (slot->open)
		dma_let_go(slot);
	else
		slot->spare = true;
}

static int check_ready(struct dma_slot *slot)
{
	int err;

	if (slot->state != DMA_INHERITED) {
		dma_refuse("%s is %s, there is nothing to adopt", pci_name(slot->pdev),
			   dma_state_name(slot->state));
		return -EINVAL;
	}
	if (!slot->held || slot->held->type != IOMMU_DOMAIN_UNMANAGED) {
		dma_refuse("%s: no VFIO user has taken it yet", pci_name(slot->pdev));
		return -ENOTCONN;
	}
	err = dma_check_leaves(slot);
	if (err == -EAGAIN)
		dma_refuse("%s: mount the stores first", pci_name(slot->pdev));
	return err;
}

int dma_adopt(struct dma_slot *slot)
{
	struct vtd_context aside = { 0 }, *live;
	u64 start = ktime_get_ns(), switched;
	int err;

	lockdep_assert_held(&dma_lock);
	err = check_ready(slot);
	if (err)
		goto refused;
	live = live_context(slot);
	if (!live) {
		err = -EIO;
		goto refused;
	}
	err = attach_aside(slot, &aside);
	if (err)
		goto refused;
	err = compare(slot, &aside);
	if (err) {
		detach_aside(slot, &aside);
		goto refused;
	}

	switched = ktime_get_ns();
	vtd_context_replace(slot->unit, live, slot->record.bus, slot->record.devfn, aside);
	slot->switch_ns = ktime_get_ns() - switched;
	slot->adopt_ns = ktime_get_ns() - start;
	adopted(slot);
	pr_info("%s is adopted: switched in %llu us\n", pci_name(slot->pdev),
		slot->switch_ns / 1000);
	return 0;
refused:
	strscpy(slot->reason, dma_message, sizeof(slot->reason));
	return err;
}

int dma_adopt_by_name(const char *name)
{
	struct pci_dev *pdev = dma_parse_bdf(name);
	struct dma_slot *slot;
	int err;

	lockdep_assert_held(&dma_control_lock);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	mutex_lock(&dma_lock);
	slot = dma_slot_of(&pdev->dev);
	if (slot) {
		err = dma_adopt(slot);
	} else {
		dma_refuse("%s is not preserved", pci_name(pdev));
		err = -ENOENT;
	}
	mutex_unlock(&dma_lock);
	pci_dev_put(pdev);
	return err;
}
