// SPDX-License-Identifier: GPL-2.0-only
/*
 * The first moment of the next kernel: what the one before left. It is checked, and what
 * does not pass can't reach memory any more.
 */
#include "dma.h"

#include <linux/device.h>
#include <linux/io.h>
#include <linux/pm_runtime.h>
#include <linux/slab.h>

static struct vtd_unit *unit_of(const struct pkernfs_dma_record *record,
				const struct pkernfs_dma_device *device)
{
	const struct pkernfs_dma_unit *kept = keep_unit_of(record, device);
	unsigned int i;

	for (i = 0; kept && i < vtd_nr_units; i++)
		if (vtd_units[i].registers == le64_to_cpu(kept->registers))
			return &vtd_units[i];
	return NULL;
}

static const char *map_tables(struct dma_slot *slot, struct pkernfs_region *region)
{
	u64 phys = le64_to_cpu(slot->record.header);
	struct pkernfs_dma_tables *header, *copy;
	struct pkernfs_region_info info;
	struct dma_area area = { 0 };
	const char *fault;

	if (pkernfs_region_at(phys) != region || !PAGE_ALIGNED(phys))
		return "its tables lie outside the range";
	header = memremap(phys, sizeof(*header), MEMREMAP_WB);
	copy = kvmalloc(sizeof(*copy), GFP_KERNEL);
	fault = "no memory";
	if (!header || !copy)
		goto done;
	memcpy(copy, header, sizeof(*copy));
	pkernfs_region_describe(region, &info);
	fault = keep_header_fault(copy, info.base, info.size);
	if (fault)
		goto done;
	slot->record.file[sizeof(slot->record.file) - 1] = '\0';
	if (dma_area_map(&area, region, slot->record.file, copy->blocks,
			 le32_to_cpu(copy->nr_blocks))) {
		fault = "no memory";
		goto done;
	}
	mutex_lock(&dma_tables_lock);
	slot->inherited = area;
	mutex_unlock(&dma_tables_lock);
done:
	kvfree(copy);
	if (header)
		memunmap(header);
	return fault;
}

static bool table_in_area(void *context, u64 phys)
{
	struct dma_slot *slot = context;

	return dma_area_holds(&slot->inherited, phys);
}

static bool leaf_in_region(void *context, const struct dma_leaf *leaf)
{
	struct pkernfs_region *region = pkernfs_region_at(leaf->phys);
	struct dma_slot *slot = context;

	return region && pkernfs_region_at(leaf->phys + leaf->size - 1) == region &&
	       !dma_area_holds(&slot->inherited, leaf->phys);
}

static const char *check_tables(struct dma_slot *slot)
{
	const struct pkernfs_dma_device *record = &slot->record;
	struct dma_tables tables = dma_area_tables(&slot->inherited, le64_to_cpu(record->root),
						   record->levels);
	struct dma_bounds bounds = {
		.table_allowed = table_in_area, .leaf_allowed = leaf_in_region,
		.context = slot, .max_pages = le64_to_cpu(record->pages),
	};
	u64 pages = le64_to_cpu(record->pages);

	if (pages > dma_area_pages(&slot->inherited) - DMA_FIRST_TABLE)
		return "its tables have a wrong size";
	if (dma_area_checksum(&slot->inherited, DMA_FIRST_TABLE, pages) !=
	    le32_to_cpu(record->checksum))
		return "the checksum of its tables is wrong";
	if (dma_tables_validate(&tables, &bounds))
		return "its tables translate to memory that is not theirs";
	if (bounds.counts.leaves != le64_to_cpu(record->leaves))
		return "its tables are not what was handed over";
	return NULL;
}

static struct vtd_context *live_context(const struct dma_slot *slot)
{
	return vtd_live_context(slot->unit, slot->record.bus, slot->record.devfn);
}

static const char *check_device(const struct dma_slot *slot)
{
	if (slot->pdev->vendor != le16_to_cpu(slot->record.vendor) ||
	    slot->pdev->device != le16_to_cpu(slot->record.device))
		return "another device is in its place";
	if (slot->pdev->driver)
		return "a driver of this kernel has taken it";
	return NULL;
}

static const char *check_slot(struct dma_slot *slot, struct pkernfs_region *region)
{
	const char *fault = check_device(slot);

	if (!fault)
		fault = keep_entry_fault(&slot->record, live_context(slot));
	if (!fault)
		fault = map_tables(slot, region);
	if (!fault)
		fault = check_tables(slot);
	return fault;
}

/* It stays on, in D0, and for vfio-pci only, until it is adopted. */
static int hold(struct dma_slot *slot)
{
	struct pci_dev *pdev = slot->pdev;
	int err;

	err = device_set_driver_override(&pdev->dev, "vfio-pci");
	if (err)
		return err;
	pm_runtime_get_sync(&pdev->dev);
	err = pci_enable_device(pdev);
	if (err) {
		pm_runtime_put(&pdev->dev);
		return err;
	}
	/* That let its interrupt line through, and nobody listens yet. */
	pci_intx(pdev, 0);
	pci_set_master(pdev);
	slot->holds_power = true;
	return 0;
}

void dma_let_go(struct dma_slot *slot)
{
	if (!slot->holds_power)
		return;
	slot->holds_power = false;
	pci_disable_device(slot->pdev);
	pm_runtime_put(&slot->pdev->dev);
}

/* Takes the device's way to memory. It is an ordinary one afterwards. */
void dma_cut_off(struct dma_slot *slot, const char *why)
{
	static const struct vtd_context nothing;
	struct vtd_context *context = slot->unit ? live_context(slot) : NULL;
	struct pkernfs_region *region = slot->inherited.region;

	lockdep_assert_held(&dma_lock);
	if (context && vtd_context_present(context) &&
	    pkernfs_region_at(vtd_context_root(context)))
		vtd_context_replace(slot->unit, context, slot->record.bus, slot->record.devfn,
				    nothing);
	kernel_clear_master(slot->pdev);
	dma_let_go(slot);
	if (region)
		dma_area_remove_later(region, slot->inherited.name);
	strscpy(slot->reason, why, sizeof(slot->reason));
	mutex_lock(&dma_tables_lock);
	slot->state = DMA_CUT_OFF;
	slot->held = NULL;
	dma_area_unmap(&slot->inherited);
	mutex_unlock(&dma_tables_lock);
	pr_err("%s is cut off: %s\n", pci_name(slot->pdev), why);
}

static void inherit_device(const struct pkernfs_dma_record *record,
			   const struct pkernfs_dma_device *device,
			   struct pkernfs_region *region)
{
	struct pci_dev *pdev = pci_get_domain_bus_and_slot(le16_to_cpu(device->segment),
							   device->bus, device->devfn);
	struct dma_slot *slot;
	const char *fault;

	if (!pdev) {
		pr_err("%04x:%02x:%02x.%x was handed over and is not there\n",
		       le16_to_cpu(device->segment), device->bus, PCI_SLOT(device->devfn),
		       PCI_FUNC(device->devfn));
		return;
	}
	slot = dma_slot_take(pdev, DMA_INHERITED);
	if (WARN_ON_ONCE(!slot))
		return;
	slot->record = *device;
	slot->unit = unit_of(record, device);
	fault = slot->unit ? check_slot(slot, region) : "its IOMMU is not there";
	if (!fault && hold(slot))
		fault = "it can't be enabled";
	if (fault)
		dma_cut_off(slot, fault);
	else
		pr_info("%s works on: %llu translations of %llu MiB inherited\n", pci_name(pdev),
			le64_to_cpu(device->leaves), le64_to_cpu(device->bytes) >> 20);
}

/* Entries that lead into a range and that no slot answers for: nobody's, so nothing's. */
static void cut_stray(const struct vtd_unit *unit, struct vtd_context *context,
		      unsigned int id)
{
	static const struct vtd_context nothing;
	u8 bus = PCI_BUS_NUM(id), devfn = id & 0xff;
	struct pci_dev *pdev;
	struct dma_slot *slot;

	if (!pkernfs_region_at(vtd_context_root(context)))
		return;
	pdev = pci_get_domain_bus_and_slot(unit->segment, bus, devfn);
	slot = pdev ? dma_slot_of(&pdev->dev) : NULL;
	if (!slot || slot->state != DMA_INHERITED) {
		pr_err("%04x:%02x:%02x.%x is cut off: no record speaks for its tables\n",
		       unit->segment, bus, PCI_SLOT(devfn), PCI_FUNC(devfn));
		vtd_context_replace(unit, context, bus, devfn, nothing);
		if (pdev)
			kernel_clear_master(pdev);
	}
	pci_dev_put(pdev);
}

static void cut_strays(const struct vtd_unit *unit)
{
	struct vtd_roots roots = vtd_unit_roots(unit);
	struct vtd_context *context;
	unsigned int id;

	for (id = 0; (context = vtd_roots_next(&roots, &id)); id++)
		cut_stray(unit, context, id);
}

void dma_inherit(void)
{
	struct pkernfs_dma_record *record;
	struct pkernfs_region *region;
	u32 i;

	mutex_lock(&dma_lock);
	record = dma_read_record(&region);
	for (i = 0; record && i < le32_to_cpu(record->nr_devices); i++)
		inherit_device(record, &record->devices[i], region);
	kvfree(record);
	for (i = 0; i < vtd_nr_units; i++)
		cut_strays(&vtd_units[i]);
	mutex_unlock(&dma_lock);
	dma_attach_all();
	dma_check_stores();
}

/*
 * The second look, once the stores are mounted: memory of files, and nothing else.
 */

struct second_look {
	struct dma_data data;
	bool waits;		/* for a store that is not mounted yet */
};

static bool leaf_in_files(void *context, const struct dma_leaf *leaf)
{
	struct second_look *look = context;

	if (dma_data_holds(&look->data, leaf))
		return true;
	if (dma_data_knows(&look->data, leaf->phys))
		return false;
	look->waits = true;
	return true;
}

static bool any_table(void *context, u64 phys)
{
	return true;
}

/* -EAGAIN: a store that the tables lead to is not mounted yet. */
int dma_check_leaves(struct dma_slot *slot)
{
	struct dma_tables tables = dma_area_tables(&slot->inherited,
						   le64_to_cpu(slot->record.root),
						   slot->record.levels);
	struct second_look look = { 0 };
	struct dma_bounds bounds = {
		.table_allowed = any_table, .leaf_allowed = leaf_in_files,
		.context = &look, .max_pages = le64_to_cpu(slot->record.pages),
	};
	int err;

	lockdep_assert_held(&dma_lock);
	if (slot->checked)
		return 0;
	err = dma_data_init(&look.data);
	if (!err)
		err = dma_tables_validate(&tables, &bounds);
	dma_data_exit(&look.data);
	if (err == -ERANGE) {
		pr_err("%s: IOVA %#llx leads to %#llx, which is in no file\n",
		       pci_name(slot->pdev), bounds.bad_leaf.iova, bounds.bad_leaf.phys);
		dma_cut_off(slot, "its tables lead to memory of no file");
	} else if (!err && look.waits) {
		err = -EAGAIN;
	} else if (!err) {
		slot->checked = true;
	}
	return err;
}

void dma_check_stores(void)
{
	struct dma_slot *slot;

	mutex_lock(&dma_lock);
	for_each_dma_slot(slot)
		if (slot->state == DMA_INHERITED)
			dma_check_leaves(slot);
	mutex_unlock(&dma_lock);
}
