// SPDX-License-Identifier: GPL-2.0-only
/*
 * The last moment of a kernel: what it leaves to the next one.
 *
 * In place of switching the IOMMUs off, the tables of preserved devices are copied and
 * every IOMMU is given a root table that knows nobody else. Interrupts are off and
 * nobody else runs; nothing may sleep, allocate or fail as a whole: what does not work
 * out for one device cuts it off.
 */
#include "handover.h"

#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>
#include <linux/utsname.h>

bool dma_handing_over(void)
{
	return dma_armed() && kernel_kexec_in_progress();
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

static bool leads_to_file(void *context, const struct dma_leaf *leaf)
{
	return dma_data_holds(&handover.data, leaf);
}

int handover_copy_tables(struct dma_slot *slot, const struct dma_tables *tables, u64 *root)
{
	struct supply supply = { .area = &slot->area, .next = DMA_FIRST_TABLE };
	struct dma_copy copy = {
		.page = next_page, .keep = leads_to_file, .context = &supply,
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
	return vtd_ram_page(phys);
}

/*
 * The hand-over itself.
 */

static struct keep_unit section_of(const struct vtd_unit *unit)
{
	unsigned int index = 1 + (unit - vtd_units);

	return (struct keep_unit){
		.registers = unit->registers,
		.segment = unit->segment,
		.remaps_interrupts = vtd_unit_remaps_interrupts(unit),
		.section = handover.root.addr[index],
		.section_phys = handover.root.phys[index],
	};
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
		.checksum = cpu_to_le32(dma_area_checksum(&slot->area, DMA_FIRST_TABLE,
							  slot->counts.pages)),
	};
	strscpy(device->file, slot->area.name, sizeof(device->file));
}

static void flush_tables(const struct dma_slot *slot)
{
	u64 i;

	if (vtd_unit_coherent(slot->unit))
		return;
	for (i = 0; i < slot->counts.pages; i++)
		vtd_flush_cpu(slot->unit, dma_area_page(&slot->area, DMA_FIRST_TABLE + i),
			      PAGE_SIZE);
}

static int hand_over_slot(struct dma_slot *slot, struct pkernfs_dma_record *record)
{
	struct vtd_context *context = dma_live_context(slot->pdev, &slot->unit);
	struct pkernfs_dma_device device;
	struct dma_tables tables;
	struct keep_unit unit;
	u64 root;
	int err;

	if (!context || !vtd_context_translates(context) || !slot->area.nr_blocks)
		return -ENOTCONN;
	tables = (struct dma_tables){
		.root = vtd_context_root(context),
		.levels = vtd_context_levels(context),
		.table = still_table,
	};
	err = handover_copy_tables(slot, &tables, &root);
	if (err)
		return err;
	flush_tables(slot);
	describe_slot(slot, root, context, &device);
	unit = section_of(slot->unit);
	return keep_add_device(record, &unit, &device);
}

static void hand_over_slots(struct pkernfs_dma_record *record)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot) {
		int err;

		if (slot->state != DMA_PRESERVED)
			continue;
		err = hand_over_slot(slot, record);
		if (!err)
			continue;
		/* Nothing knows it in the new tables; its bus master was kept on till now. */
		kernel_clear_master(slot->pdev);
		pr_err("%s is cut off: its tables can't be handed over (%d)\n",
		       pci_name(slot->pdev), err);
	}
}

static void make_record(struct pkernfs_dma_record *record)
{
	unsigned int i;

	keep_start(record, handover.base, handover.size, ktime_get_real_ns(),
		   init_utsname()->release);
	for (i = 0; i < vtd_nr_units; i++) {
		struct keep_unit unit = section_of(&vtd_units[i]);

		/* As many as the record has room for: PKERNFS_DMA_MAX_UNITS. */
		keep_add_unit(record, &unit);
	}
	hand_over_slots(record);
	keep_seal(record);
}

/*
 * Which tables hardware uses now is not known. The next kernel finds a unit that does
 * not translate and sets it up as at any boot; the devices can't reach memory, as all
 * others since device_shutdown().
 */
static void give_up(const struct vtd_unit *unit)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot) {
		if (slot->state != DMA_PRESERVED || slot->unit != unit)
			continue;
		kernel_clear_master(slot->pdev);
		pr_err("%s is cut off: its IOMMU does not answer\n", pci_name(slot->pdev));
	}
	vtd_switch_off(unit);
}

void dma_hand_over(void)
{
	struct pkernfs_dma_record *record = dma_area_page(&handover.root, 0);
	u64 start = ktime_get_mono_fast_ns();
	unsigned int i;

	make_record(record);
	for (i = 0; i < vtd_nr_units; i++) {
		struct vtd_unit *unit = &vtd_units[i];
		struct keep_unit kept = section_of(unit);

		vtd_flush_cpu(unit, kept.section + KEEP_CLEARED_START, KEEP_CLEARED_BYTES);
		/* Says what failed itself; there is nobody left to tell. */
		if (vtd_hand_over(unit, kept.section, kept.section_phys))
			give_up(unit);
	}
	pr_info("handed over %u device(s) on %u IOMMU(s) in %llu us\n",
		le32_to_cpu(record->nr_devices), vtd_nr_units,
		(ktime_get_mono_fast_ns() - start) / 1000);
}

/*
 * The last time that locks can be taken: which blocks belong to files now.
 *
 * Whoever armed has loaded a kernel that takes the devices over. A kexec by another
 * process (it may have died meanwhile) may start one that does not: it would switch
 * translation off under devices that work. So that is an ordinary kexec, and nothing
 * works on through it.
 */
static bool hands_over(void)
{
	if (!dma_handing_over())
		return false;
	if (task_tgid(current) == handover.by)
		return true;
	WRITE_ONCE(handover.armed, false);
	pr_err("not handed over: this kexec is not by the process that armed\n");
	return false;
}

static int before_kexec(struct notifier_block *block, unsigned long event, void *data)
{
	struct dma_data fresh = { 0 };

	if (!hands_over()) {
		dma_stop();
		return NOTIFY_DONE;
	}
	if (dma_data_init(&fresh))
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
	dma_arm_exit();
}
