// SPDX-License-Identifier: GPL-2.0-only
/*
 * Getting ready for a kexec: all that can fail is settled while everything still runs.
 * Files are made large enough, mapped, and a copy is rehearsed.
 */
#include "handover.h"

#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/slab.h>

#define ROOT_FILE	"root-pgtables"

struct dma_handover handover;

bool dma_armed(void)
{
	return READ_ONCE(handover.armed);
}

u64 dma_record_phys(void)
{
	return handover.armed ? dma_area_phys(&handover.root, 0) : 0;
}

static void fill_header(struct dma_area *area)
{
	struct pkernfs_dma_tables *header = dma_area_page(area, 0);
	u32 i;

	memset(header, 0, sizeof(*header));
	header->magic = cpu_to_le64(PKERNFS_DMA_TABLES_MAGIC);
	header->nr_blocks = cpu_to_le32(area->nr_blocks);
	for (i = 0; i < area->nr_blocks; i++)
		header->blocks[i] = cpu_to_le64(area->phys[i]);
	keep_seal_header(header);
}

/* Unmaps an area and removes its file. */
static void drop_area(struct dma_area *area)
{
	char name[sizeof(area->name)];

	if (!area->nr_blocks)
		return;
	strscpy(name, area->name, sizeof(name));
	mutex_lock(&dma_tables_lock);
	dma_area_unmap(area);
	mutex_unlock(&dma_tables_lock);
	pkernfs_kernel_file_remove(handover.region, name);
}

static int make_slot_area(struct dma_slot *slot, u64 table_pages)
{
	/* Room to grow until the kexec: a quarter, and some for the smallest. */
	u64 pages = DMA_FIRST_TABLE + table_pages + table_pages / 4 + 64;
	u64 blocks = DIV_ROUND_UP(pages, 512);
	struct dma_area area = { 0 };
	int err;

	if (blocks > PKERNFS_DMA_MAX_TABLE_BLOCKS) {
		dma_refuse("%s: %llu pages of tables are too many", pci_name(slot->pdev),
			   table_pages);
		return -E2BIG;
	}
	if (slot->area.nr_blocks >= blocks)
		return 0;
	drop_area(&slot->area);
	err = dma_area_make(&area, handover.region, pci_name(slot->pdev), blocks);
	if (err) {
		dma_refuse("%s: no room for %llu MiB of tables in the store (%d)",
			   pci_name(slot->pdev), blocks * 2, err);
		return err;
	}
	fill_header(&area);
	mutex_lock(&dma_tables_lock);
	slot->area = area;
	mutex_unlock(&dma_tables_lock);
	return 0;
}

static int arm_slot(struct dma_slot *slot)
{
	struct vtd_context *context = dma_live_context(slot->pdev, &slot->unit);
	const char *name = pci_name(slot->pdev);
	struct dma_counts counts;
	struct dma_live live;
	u64 root;
	int err;

	/* driver_managed_dma: vfio-pci and its kin, no driver that uses the DMA API. */
	if (!context || !slot->pdev->driver || !slot->pdev->driver->driver_managed_dma) {
		dma_refuse("%s: nobody uses it through VFIO, there is nothing to preserve", name);
		return -ENOTCONN;
	}
	if (!vtd_context_translates(context)) {
		dma_refuse("%s: its IOMMU does not translate by second-stage tables", name);
		return -EOPNOTSUPP;
	}
	err = dma_live_init(&live, context);
	if (err)
		return err;
	err = dma_tables_count(&live.tables, &counts);
	if (err) {
		dma_refuse("%s: its tables can't be read (%d)", name, err);
		goto exit_live;
	}
	err = make_slot_area(slot, counts.pages);
	if (err)
		goto exit_live;
	err = handover_copy_tables(slot, &live.tables, &root);
	if (err) {
		dma_refuse("%s: its tables can't be copied (%d)", name, err);
		goto exit_live;
	}
	pr_info("%s: %llu translations of %llu MiB in %llu pages of tables go along, %llu do not\n",
		name, slot->counts.leaves, slot->counts.bytes >> 20, slot->counts.pages,
		slot->dropped);
exit_live:
	dma_live_exit(&live);
	return err;
}

static int arm_units(void)
{
	unsigned int i;

	for (i = 0; i < vtd_nr_units; i++) {
		const char *objection = vtd_unit_objection(&vtd_units[i]);

		if (objection) {
			dma_refuse("the IOMMU at %#llx %s", vtd_units[i].registers, objection);
			return -EOPNOTSUPP;
		}
	}
	return 0;
}

static int arm_root(void)
{
	unsigned int i;
	int err;

	if (handover.root.nr_blocks)
		return 0;
	err = dma_area_make(&handover.root, handover.region, ROOT_FILE, 1 + vtd_nr_units);
	if (err) {
		dma_refuse("no room for %u MiB of root tables in the store (%d)",
			   2 * (1 + vtd_nr_units), err);
		return err;
	}
	for (i = 0; i < vtd_nr_units; i++) {
		vtd_fill_blocked_interrupts(handover.root.addr[1 + i]);
		vtd_flush_cpu(&vtd_units[i], handover.root.addr[1 + i], DMA_BLOCK_BYTES);
	}
	return 0;
}

static int arm_slots(void)
{
	struct dma_slot *slot;
	unsigned int preserved = 0;

	for_each_dma_slot(slot) {
		int err;

		if (slot->state == DMA_INHERITED) {
			dma_refuse("%s still works on inherited tables: adopt or release it",
				   pci_name(slot->pdev));
			return -EBUSY;
		}
		if (slot->state != DMA_PRESERVED)
			continue;
		err = arm_slot(slot);
		if (err)
			return err;
		preserved++;
	}
	if (!preserved) {
		dma_refuse("no device is preserved");
		return -ENOENT;
	}
	return 0;
}

/* The first store that is mounted. Guest memory may lie in any of them. */
static int hold_store(void)
{
	struct pkernfs_region *region;
	struct pkernfs_region_info info;
	unsigned int i;

	if (handover.region)
		return 0;
	for (i = 0; (region = pkernfs_region_nth(i)); i++)
		if (!pkernfs_store_get(region))
			break;
	if (!region) {
		dma_refuse("no pkernfs is mounted");
		return -ENODEV;
	}
	pkernfs_region_describe(region, &info);
	handover.region = region;
	handover.base = info.base;
	handover.size = info.size;
	return 0;
}

static void drop_areas(void)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot)
		drop_area(&slot->area);
	drop_area(&handover.root);
}

int dma_disarm(void)
{
	lockdep_assert_held(&dma_control_lock);
	WRITE_ONCE(handover.armed, false);
	put_pid(handover.by);
	handover.by = NULL;
	if (!handover.region)
		return 0;
	drop_areas();
	dma_data_exit(&handover.data);
	pkernfs_store_put(handover.region);
	handover.region = NULL;
	return 0;
}

/* Armed already: checks again, and makes larger what has grown. */
int dma_arm(void)
{
	struct dma_data data = { 0 };
	int err;

	lockdep_assert_held(&dma_control_lock);
	dma_area_flush();
	err = arm_units();
	if (!err)
		err = hold_store();
	if (!err)
		err = dma_data_init(&data);
	if (err)
		goto disarm;
	swap(data, handover.data);
	dma_data_exit(&data);
	err = arm_root();
	if (!err)
		err = arm_slots();
	if (err)
		goto disarm;
	put_pid(handover.by);
	handover.by = get_task_pid(current, PIDTYPE_TGID);
	WRITE_ONCE(handover.armed, true);
	return 0;
disarm:
	dma_disarm();
	return err;
}

bool dma_handover_reaches(u64 phys, u64 size)
{
	struct dma_slot *slot;
	u32 i;

	lockdep_assert_held(&dma_tables_lock);
	for (i = 0; i < handover.root.nr_blocks; i++)
		if (handover.root.phys[i] >= phys && handover.root.phys[i] - phys < size)
			return true;
	for_each_dma_slot(slot)
		for (i = 0; i < slot->area.nr_blocks; i++)
			if (slot->area.phys[i] >= phys && slot->area.phys[i] - phys < size)
				return true;
	return false;
}

void dma_arm_exit(void)
{
	mutex_lock(&dma_control_lock);
	dma_disarm();
	mutex_unlock(&dma_control_lock);
}
