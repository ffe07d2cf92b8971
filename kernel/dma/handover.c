// SPDX-License-Identifier: GPL-2.0-only
/*
 * The last moment of a kernel: what it leaves to the next one.
 *
 * Arming settles all that can fail while everything still runs: files are made large
 * enough, mapped, and a copy is rehearsed. Then, at kexec, in place of switching the
 * IOMMUs off, the tables of preserved devices are copied and every IOMMU is given
 * a root table that knows nobody else.
 */
#include "dma.h"

#include <linux/crc32.h>
#include <linux/mm.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/utsname.h>

#define ROOT_FILE		"root-pgtables"
#define BLOCK_SHIFT		21
#define FIRST_TABLE		1	/* behind the header */

static struct {
	bool armed;
	struct pkernfs_region *region;
	struct dma_area root;		/* record, then a section per IOMMU */
	struct dma_data data;
} handover;

bool dma_armed(void)
{
	return READ_ONCE(handover.armed);
}

u64 dma_record_phys(void)
{
	return handover.armed ? dma_area_phys(&handover.root, 0) : 0;
}

bool dma_handing_over(void)
{
	return dma_armed() && kernel_kexec_in_progress();
}

u32 dma_record_checksum(const struct pkernfs_dma_record *record)
{
	const u8 *bytes = (const u8 *)record;
	const size_t at = offsetof(struct pkernfs_dma_record, checksum);
	static const u8 zero[4];
	u32 crc;

	crc = crc32_le(~0, bytes, at);
	crc = crc32_le(crc, zero, sizeof(zero));
	return ~crc32_le(crc, bytes + at + 4, sizeof(*record) - at - 4);
}

u32 dma_header_checksum(const struct pkernfs_dma_tables *header)
{
	const u8 *bytes = (const u8 *)header;
	const size_t at = offsetof(struct pkernfs_dma_tables, checksum);
	static const u8 zero[4];
	u32 crc;

	crc = crc32_le(~0, bytes, at);
	crc = crc32_le(crc, zero, sizeof(zero));
	return ~crc32_le(crc, bytes + at + 4, sizeof(*header) - at - 4);
}

/*
 * Which memory may go along: that of files. A VMM also maps what is its own (the
 * firmware of its guest, say). That memory is gone with this kernel, so such
 * translations stay behind.
 */

int dma_data_init(struct dma_data *data, struct pkernfs_region *region)
{
	struct pkernfs_region_info info;

	pkernfs_region_describe(region, &info);
	data->base = info.base;
	data->nr_blocks = info.size >> BLOCK_SHIFT;
	data->blocks = pkernfs_data_blocks(region);
	return data->blocks ? 0 : -ENOMEM;
}

void dma_data_exit(struct dma_data *data)
{
	kvfree(data->blocks);
	data->blocks = NULL;
}

bool dma_data_holds(const struct dma_data *data, const struct dma_leaf *leaf)
{
	u64 first, last;

	if (leaf->phys < data->base)
		return false;
	first = (leaf->phys - data->base) >> BLOCK_SHIFT;
	last = (leaf->phys - data->base + leaf->size - 1) >> BLOCK_SHIFT;
	if (last >= data->nr_blocks)
		return false;
	return find_next_zero_bit(data->blocks, last + 1, first) > last;
}

static bool keep_leaf(void *context, const struct dma_leaf *leaf)
{
	return dma_data_holds(&handover.data, leaf);
}

/*
 * Copying.
 */

struct supply {
	struct dma_area *area;
	u64 next;
};

static u64 *next_page(void *context, u64 *phys)
{
	struct supply *supply = context;

	if (supply->next == dma_area_pages(supply->area))
		return NULL;
	*phys = dma_area_phys(supply->area, supply->next);
	return dma_area_page(supply->area, supply->next++);
}

/* keep_leaf() needs no context, next_page() does: one for both. */
static bool keep_for_supply(void *context, const struct dma_leaf *leaf)
{
	return keep_leaf(NULL, leaf);
}

static int copy_tables(struct dma_slot *slot, const struct dma_tables *tables, u64 *root)
{
	struct supply supply = { .area = &slot->area, .next = FIRST_TABLE };
	struct dma_copy copy = {
		.page = next_page, .keep = keep_for_supply, .context = &supply,
	};
	int err = dma_tables_copy(tables, &copy);

	slot->counts = copy.counts;
	slot->dropped = copy.dropped;
	*root = copy.root;
	return err;
}

/* With one CPU left and interrupts off, tables stay where they are. */
static const u64 *still_table(void *context, unsigned int level, u64 phys)
{
	return pfn_valid(phys >> PAGE_SHIFT) && page_is_ram(phys >> PAGE_SHIFT) ?
		phys_to_virt(phys) : NULL;
}

/*
 * Arming.
 */

static struct vtd_context *find_context(struct dma_slot *slot)
{
	struct pci_dev *pdev = slot->pdev;
	unsigned int i;

	for (i = 0; i < vtd_nr_units; i++) {
		struct vtd_context *context;

		if (vtd_units[i].segment != pci_domain_nr(pdev->bus))
			continue;
		context = vtd_live_context(&vtd_units[i], pdev->bus->number, pdev->devfn);
		if (!context || !vtd_context_present(context))
			continue;
		slot->unit = &vtd_units[i];
		return context;
	}
	return NULL;
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
	header->checksum = cpu_to_le32(dma_header_checksum(header));
}

static int make_slot_area(struct dma_slot *slot, u64 table_pages)
{
	/* Room to grow until the kexec: a quarter, and some for the smallest. */
	u64 pages = FIRST_TABLE + table_pages + table_pages / 4 + 64;
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
	if (slot->area.nr_blocks) {
		char name[sizeof(slot->area.name)];

		strscpy(name, slot->area.name, sizeof(name));
		mutex_lock(&dma_tables_lock);
		dma_area_unmap(&slot->area);
		mutex_unlock(&dma_tables_lock);
		pkernfs_kernel_file_remove(handover.region, name);
	}
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
	struct vtd_context *context = find_context(slot);
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
	err = copy_tables(slot, &live.tables, &root);
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

static struct pkernfs_region *mounted_region(void)
{
	struct pkernfs_region *region, *found = NULL;
	unsigned int i;

	for (i = 0; (region = pkernfs_region_nth(i)); i++) {
		struct pkernfs_region_info info;

		pkernfs_region_describe(region, &info);
		if (!info.mounted)
			continue;
		if (found)
			return ERR_PTR(-ENOTUNIQ);
		found = region;
	}
	return found ?: ERR_PTR(-ENODEV);
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
		vtd_flush_cpu(&vtd_units[i], handover.root.addr[1 + i], 1 << BLOCK_SHIFT);
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

static int hold_store(void)
{
	struct pkernfs_region *region;
	int err;

	if (handover.region)
		return 0;
	region = mounted_region();
	if (IS_ERR(region)) {
		dma_refuse(PTR_ERR(region) == -ENODEV ? "no pkernfs is mounted" :
			   "several stores are mounted, mount only the one to use");
		return PTR_ERR(region);
	}
	err = pkernfs_store_get(region);
	if (!err)
		handover.region = region;
	return err;
}

static void drop_areas(void)
{
	char names[2][sizeof(handover.root.name)];
	struct dma_slot *slot;

	for_each_dma_slot(slot) {
		if (!slot->area.nr_blocks)
			continue;
		strscpy(names[0], slot->area.name, sizeof(names[0]));
		mutex_lock(&dma_tables_lock);
		dma_area_unmap(&slot->area);
		mutex_unlock(&dma_tables_lock);
		pkernfs_kernel_file_remove(handover.region, names[0]);
	}
	if (handover.root.nr_blocks) {
		strscpy(names[1], handover.root.name, sizeof(names[1]));
		mutex_lock(&dma_tables_lock);
		dma_area_unmap(&handover.root);
		mutex_unlock(&dma_tables_lock);
		pkernfs_kernel_file_remove(handover.region, names[1]);
	}
}

int dma_disarm(void)
{
	lockdep_assert_held(&dma_control_lock);
	WRITE_ONCE(handover.armed, false);
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
		err = dma_data_init(&data, handover.region);
	if (err)
		goto disarm;
	swap(data, handover.data);
	dma_data_exit(&data);
	err = arm_root();
	if (!err)
		err = arm_slots();
	if (err)
		goto disarm;
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

/*
 * The hand-over itself. Interrupts are off and nobody else runs; nothing may sleep,
 * allocate or fail as a whole: what does not work out for one device cuts it off.
 */

static void *section_of(const struct vtd_unit *unit)
{
	return handover.root.addr[1 + (unit - vtd_units)];
}

static u64 section_phys(const struct vtd_unit *unit)
{
	return handover.root.phys[1 + (unit - vtd_units)];
}

/* The context table of a bus in our root table, a fresh one if it has none. */
static struct vtd_context *context_table(const struct vtd_unit *unit, u8 bus)
{
	void *section = section_of(unit);
	u64 *root = section + PKERNFS_DMA_SECTION_ROOT;
	u64 base = section_phys(unit) + PKERNFS_DMA_SECTION_CONTEXT;
	unsigned int used = 0, i;

	if (root[bus * 2])
		return section + ((root[bus * 2] & PAGE_MASK) - section_phys(unit));
	for (i = 0; i < 256; i++)
		used += !!root[i * 2];
	if (used == PKERNFS_DMA_SECTION_CONTEXTS)
		return NULL;
	root[bus * 2] = (base + used * PAGE_SIZE) | 1;
	return section + PKERNFS_DMA_SECTION_CONTEXT + used * PAGE_SIZE;
}

static void describe_slot(const struct dma_slot *slot, u64 root,
			  const struct vtd_context *context, struct pkernfs_dma_device *device)
{
	const struct pci_dev *pdev = slot->pdev;

	*device = (struct pkernfs_dma_device){
		.segment = cpu_to_le16(pci_domain_nr(pdev->bus)),
		.bus = pdev->bus->number,
		.devfn = pdev->devfn,
		.vendor = cpu_to_le16(pdev->vendor),
		.device = cpu_to_le16(pdev->device),
		.unit = cpu_to_le32(slot->unit - vtd_units),
		.domain = cpu_to_le16(vtd_context_domain(context)),
		.levels = vtd_context_levels(context),
		.root = cpu_to_le64(root),
		.header = cpu_to_le64(dma_area_phys(&slot->area, 0)),
		.pages = cpu_to_le64(slot->counts.pages),
		.leaves = cpu_to_le64(slot->counts.leaves),
		.bytes = cpu_to_le64(slot->counts.bytes),
		.checksum = cpu_to_le32(dma_area_checksum(&slot->area, FIRST_TABLE,
							  slot->counts.pages)),
	};
	strscpy(device->file, slot->area.name, sizeof(device->file));
}

static int hand_over_slot(struct dma_slot *slot, struct pkernfs_dma_device *device)
{
	u8 bus = slot->pdev->bus->number, devfn = slot->pdev->devfn;
	struct vtd_context *context = find_context(slot), *table;
	struct dma_tables tables;
	u64 root, i;
	int err;

	if (!context || !vtd_context_translates(context) || !slot->area.nr_blocks)
		return -ENOTCONN;
	tables = (struct dma_tables){
		.root = vtd_context_root(context),
		.levels = vtd_context_levels(context),
		.table = still_table,
	};
	err = copy_tables(slot, &tables, &root);
	if (err)
		return err;
	table = context_table(slot->unit, bus);
	if (!table)
		return -ENOSPC;
	if (!vtd_unit_coherent(slot->unit))
		for (i = 0; i < slot->counts.pages; i++)
			vtd_flush_cpu(slot->unit, dma_area_page(&slot->area, FIRST_TABLE + i),
				      PAGE_SIZE);
	describe_slot(slot, root, context, device);
	table[devfn] = vtd_context_make(root, tables.levels, vtd_context_domain(context));
	return 0;
}

static void describe_unit(const struct vtd_unit *unit, struct pkernfs_dma_unit *entry)
{
	bool remaps = vtd_unit_remaps_interrupts(unit);

	*entry = (struct pkernfs_dma_unit){
		.registers = cpu_to_le64(unit->registers),
		.section = cpu_to_le64(section_phys(unit)),
		.segment = cpu_to_le32(unit->segment),
		.flags = cpu_to_le32(remaps ? PKERNFS_DMA_UNIT_REMAPS_INTERRUPTS : 0),
	};
}

static void start_record(struct pkernfs_dma_record *record)
{
	struct pkernfs_region_info info;

	pkernfs_region_describe(handover.region, &info);
	memset(record, 0, sizeof(*record));
	record->magic = cpu_to_le64(PKERNFS_DMA_MAGIC);
	record->version = cpu_to_le32(PKERNFS_DMA_VERSION);
	record->bytes = cpu_to_le32(sizeof(*record));
	record->base = cpu_to_le64(info.base);
	record->size = cpu_to_le64(info.size);
	record->handed_over_ns = cpu_to_le64(ktime_get_real_ns());
	strscpy(record->release, init_utsname()->release, sizeof(record->release));
}

static u32 hand_over_slots(struct pkernfs_dma_record *record)
{
	struct dma_slot *slot;
	u32 devices = 0;

	for_each_dma_slot(slot) {
		int err;

		if (slot->state != DMA_PRESERVED)
			continue;
		err = hand_over_slot(slot, &record->devices[devices]);
		if (!err) {
			devices++;
			continue;
		}
		/* Nothing knows it in the new tables; its bus master was kept on till now. */
		kernel_clear_master(slot->pdev);
		pr_err("%s is cut off: its tables can't be handed over (%d)\n",
		       pci_name(slot->pdev), err);
	}
	return devices;
}

void dma_hand_over(void)
{
	struct pkernfs_dma_record *record = dma_area_page(&handover.root, 0);
	u64 start = ktime_get_mono_fast_ns();
	unsigned int i;

	start_record(record);
	for (i = 0; i < vtd_nr_units; i++) {
		memset(section_of(&vtd_units[i]) + PKERNFS_DMA_SECTION_ROOT, 0,
		       (1 << BLOCK_SHIFT) - PKERNFS_DMA_SECTION_ROOT);
		describe_unit(&vtd_units[i], &record->units[i]);
	}
	record->nr_units = cpu_to_le32(vtd_nr_units);
	record->nr_devices = cpu_to_le32(hand_over_slots(record));
	record->checksum = cpu_to_le32(dma_record_checksum(record));

	for (i = 0; i < vtd_nr_units; i++) {
		struct vtd_unit *unit = &vtd_units[i];

		vtd_flush_cpu(unit, section_of(unit) + PKERNFS_DMA_SECTION_ROOT,
			      (1 << BLOCK_SHIFT) - PKERNFS_DMA_SECTION_ROOT);
		/* Says what failed itself; there is nobody left to tell. */
		vtd_hand_over(unit, section_of(unit), section_phys(unit));
	}
	pr_info("handed over %u device(s) on %u IOMMU(s) in %llu us\n",
		le32_to_cpu(record->nr_devices), vtd_nr_units,
		(ktime_get_mono_fast_ns() - start) / 1000);
}

/* The last time that locks can be taken: which blocks belong to files now. */
static int before_kexec(struct notifier_block *block, unsigned long event, void *data)
{
	struct dma_data fresh = { 0 };

	if (!dma_handing_over() || dma_data_init(&fresh, handover.region))
		return NOTIFY_DONE;
	swap(fresh, handover.data);
	dma_data_exit(&fresh);
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = { .notifier_call = before_kexec };

int dma_handover_init(void)
{
	return register_reboot_notifier(&reboot_notifier);
}

void dma_handover_exit(void)
{
	unregister_reboot_notifier(&reboot_notifier);
	mutex_lock(&dma_control_lock);
	dma_disarm();
	mutex_unlock(&dma_control_lock);
}
