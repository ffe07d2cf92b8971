// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOMMUs by the Intel VT-d specification (revision 4.1): registers (chapter 11), root
 * and context entries (9.1, 9.3), queued invalidation (6.5.2), interrupt remapping
 * entries (9.10). Nothing here knows the driver's structures; of the driver it uses the
 * list of units and, while the kernel runs, its invalidation queue.
 */
#include "dma.h"

#include <asm/cacheflush.h>
#include <asm/cmpxchg.h>

#include <linux/delay.h>
#include <linux/dmar.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/rwsem.h>
#include <linux/uaccess.h>

#define REG_CAP		0x08
#define REG_ECAP	0x10
#define REG_GCMD	0x18
#define REG_GSTS	0x1c
#define REG_RTADDR	0x20
#define REG_FSTS	0x34
#define REG_FECTL	0x38
#define REG_PMEN	0x64
#define REG_IQH		0x80
#define REG_IQT		0x88
#define REG_IQA		0x90
#define REG_IRTA	0xb8
#define REG_WINDOW	0x1000	/* what we map: all of the above */

#define GCMD_WBF	BIT(27)
#define GCMD_QIE	BIT(26)
#define GCMD_SIRTP	BIT(24)
#define GCMD_SRTP	BIT(30)
#define GSTS_TES	BIT(31)
#define GSTS_RTPS	BIT(30)
#define GSTS_WBFS	BIT(27)
#define GSTS_QIES	BIT(26)
#define GSTS_IRES	BIT(25)
#define GSTS_IRTPS	BIT(24)
/* Of the status, what a command has to repeat (section 11.4.4.1). */
#define GSTS_KEEP	0x96ffffffU

#define CAP_RWBF(cap)	(((cap) >> 4) & 1)
#define CAP_PROTECTED(cap)	(((cap) >> 5) & 3)
#define CAP_DRAINS(cap)		(((cap) >> 54) & 3)
#define ECAP_COHERENT(ecap)	((ecap) & 1)
#define ECAP_QI(ecap)	(((ecap) >> 1) & 1)
#define ECAP_SNOOP(ecap)	(((ecap) >> 7) & 1)

#define IRTA_X2APIC	BIT(11)
#define IRTA_SIZE	0xfULL		/* 2^16 entries: Linux takes over no other size */
#define IRT_ENTRIES	65536
#define IRTE_BLOCKED	BIT(1)		/* not present, faults not reported */
#define FECTL_MASK	BIT(31)
/* Errors of the queue: it takes no more descriptors until they are cleared (by a 1). */
#define FSTS_QUEUE	(BIT(4) | BIT(5) | BIT(6))
#define GCMD_TE		BIT(31)
#define PMEN_ENABLE	BIT(31)
#define PMEN_STATUS	BIT(0)

#define QI_CONTEXT_GLOBAL	(0x1ULL | 1ULL << 4)
#define QI_IOTLB_GLOBAL		(0x2ULL | 1ULL << 4)
#define QI_DRAIN_SHIFT		6		/* writes, then reads: as CAP says */
#define QI_INTERRUPT_GLOBAL	0x4ULL
#define QI_WAIT			(0x5ULL | 1ULL << 5 | 1ULL << 6)
#define QI_DONE			0x600d

#define HARDWARE_TIMEOUT_US	1000000

struct vtd_unit vtd_units[PKERNFS_DMA_MAX_UNITS];
unsigned int vtd_nr_units;

static int find_unit(const struct dmar_drhd_unit *drhd)
{
	struct vtd_unit *unit = &vtd_units[vtd_nr_units];

	if (vtd_nr_units == PKERNFS_DMA_MAX_UNITS) {
		pr_err("refused: more than %d IOMMUs\n", PKERNFS_DMA_MAX_UNITS);
		return -E2BIG;
	}
	unit->reg = ioremap(drhd->reg_base_addr, REG_WINDOW);
	if (!unit->reg)
		return -ENOMEM;
	unit->registers = drhd->reg_base_addr;
	unit->segment = drhd->segment;
	unit->driver = drhd->iommu;
	unit->cap = readq(unit->reg + REG_CAP);
	unit->ecap = readq(unit->reg + REG_ECAP);
	vtd_nr_units++;
	return 0;
}

int vtd_find_units(void)
{
	struct dmar_drhd_unit *drhd;
	int err = 0;

	if (!boot_cpu_has(X86_FEATURE_CX16)) {
		pr_err("refused: this CPU has no CMPXCHG16B\n");
		return -EOPNOTSUPP;
	}
	down_read(kernel_dmar_lock());
	list_for_each_entry(drhd, kernel_drhd_units(), list) {
		/* The driver has switched those off for good. */
		if (drhd->ignored || !drhd->iommu)
			continue;
		err = find_unit(drhd);
		if (err)
			break;
	}
	up_read(kernel_dmar_lock());
	if (err)
		vtd_forget_units();
	return err;
}

void vtd_forget_units(void)
{
	while (vtd_nr_units)
		iounmap(vtd_units[--vtd_nr_units].reg);
}

bool vtd_unit_coherent(const struct vtd_unit *unit)
{
	return ECAP_COHERENT(unit->ecap);
}

bool vtd_unit_snoops(const struct vtd_unit *unit)
{
	return ECAP_SNOOP(unit->ecap);
}

static u32 status(const struct vtd_unit *unit)
{
	return readl(unit->reg + REG_GSTS);
}

bool vtd_unit_remaps_interrupts(const struct vtd_unit *unit)
{
	return status(unit) & GSTS_IRES;
}

const char *vtd_unit_objection(const struct vtd_unit *unit)
{
	if (!(status(unit) & GSTS_TES))
		return "does not translate: boot with intel_iommu=on";
	if (readq(unit->reg + REG_RTADDR) & VTD_RTADDR_MODE)
		return "is in scalable mode: boot with intel_iommu=on,sm_off";
	if (!ECAP_QI(unit->ecap) || !(status(unit) & GSTS_QIES))
		return "has no queued invalidation";
	return NULL;
}

void vtd_flush_cpu(const struct vtd_unit *unit, void *addr, size_t bytes)
{
	if (!vtd_unit_coherent(unit))
		clflush_cache_range(addr, bytes);
}

/*
 * Context entries.
 */

/*
 * Only ordinary memory is in the direct map. page_is_ram() takes a lock, which at the last
 * moment a CPU may have that does not go on.
 */
void *vtd_ram_page(u64 phys)
{
	void *page;
	u64 probe;

	if (!pfn_valid(phys >> PAGE_SHIFT))
		return NULL;
	page = phys_to_virt(phys);
	return copy_from_kernel_nofault(&probe, page, sizeof(probe)) ? NULL : page;
}

/* Tables of a driver that runs lie in ordinary memory. */
static void *table_address(void *context, u64 phys)
{
	return vtd_ram_page(phys);
}

struct vtd_roots vtd_unit_roots(const struct vtd_unit *unit)
{
	return (struct vtd_roots){
		.segment = unit->segment,
		.rtaddr = readq(unit->reg + REG_RTADDR),
		.page = table_address,
	};
}

struct vtd_context *vtd_live_context(const struct vtd_unit *unit, u8 bus, u8 devfn)
{
	struct vtd_roots roots = vtd_unit_roots(unit);

	return vtd_roots_entry(&roots, bus, devfn);
}

/*
 * One 16-byte store: hardware sees the old entry or the new one. What it cached of
 * the old one stays in use until the flushes, which is as good: both say the same.
 */
void vtd_context_replace(const struct vtd_unit *unit, struct vtd_context *entry, u8 bus,
			 u8 devfn, struct vtd_context new)
{
	u128 *place = (u128 *)entry;
	u128 old = (u128)entry->hi << 64 | entry->lo;
	u16 domain = vtd_context_domain(entry);

	while (!try_cmpxchg128(place, &old, (u128)new.hi << 64 | new.lo))
		;
	vtd_flush_cpu(unit, entry, sizeof(*entry));
	kernel_flush_context(unit->driver, domain, PCI_DEVID(bus, devfn));
	kernel_flush_iotlb(unit->driver, domain);
}

/*
 * The hand-over.
 */

static int wait_for(const struct vtd_unit *unit, u32 bit, bool set, const char *what)
{
	int us;

	for (us = 0; us < HARDWARE_TIMEOUT_US; us++) {
		if (!(status(unit) & bit) == !set)
			return 0;
		udelay(1);
	}
	pr_err("IOMMU at %#llx: %s timed out\n", unit->registers, what);
	return -ETIMEDOUT;
}

static void command(const struct vtd_unit *unit, u32 set, u32 clear)
{
	writel(((status(unit) & GSTS_KEEP) | set) & ~clear, unit->reg + REG_GCMD);
}

static int queue_off(const struct vtd_unit *unit)
{
	int us;

	if (!(status(unit) & GSTS_QIES))
		return 0;
	for (us = 0; us < HARDWARE_TIMEOUT_US; us++) {
		if (readl(unit->reg + REG_IQH) == readl(unit->reg + REG_IQT))
			break;
		udelay(1);
	}
	command(unit, 0, GCMD_QIE);
	return wait_for(unit, GSTS_QIES, false, "switching the invalidation queue off");
}

static int queue_on(const struct vtd_unit *unit, u64 queue_phys)
{
	writel(FSTS_QUEUE, unit->reg + REG_FSTS);
	writel(0, unit->reg + REG_IQT);
	writeq(queue_phys, unit->reg + REG_IQA);
	command(unit, GCMD_QIE, 0);
	return wait_for(unit, GSTS_QIES, true, "switching the invalidation queue on");
}

/* Drops all that hardware cached, through a queue of our own. */
static int invalidate_all(const struct vtd_unit *unit, void *section, u64 section_phys)
{
	u64 *queue = section + PKERNFS_DMA_SECTION_QUEUE;
	u32 *done = section + PKERNFS_DMA_SECTION_STATUS;
	int us, err, slots = 0;

	err = queue_on(unit, section_phys + PKERNFS_DMA_SECTION_QUEUE);
	if (err)
		return err;
	memset(queue, 0, PAGE_SIZE);
	queue[2 * slots++] = QI_CONTEXT_GLOBAL;
	queue[2 * slots++] = QI_IOTLB_GLOBAL | CAP_DRAINS(unit->cap) << QI_DRAIN_SHIFT;
	if (vtd_unit_remaps_interrupts(unit))
		queue[2 * slots++] = QI_INTERRUPT_GLOBAL;
	queue[2 * slots] = QI_WAIT | (u64)QI_DONE << 32;
	queue[2 * slots++ + 1] = section_phys + PKERNFS_DMA_SECTION_STATUS;
	WRITE_ONCE(*done, 0);
	vtd_flush_cpu(unit, queue, PAGE_SIZE);
	vtd_flush_cpu(unit, done, sizeof(*done));
	writel(slots * 16, unit->reg + REG_IQT);

	for (us = 0; us < HARDWARE_TIMEOUT_US; us++) {
		vtd_flush_cpu(unit, done, sizeof(*done));
		if (READ_ONCE(*done) == QI_DONE)
			return queue_off(unit);
		udelay(1);
	}
	pr_err("IOMMU at %#llx: invalidation timed out\n", unit->registers);
	return -ETIMEDOUT;
}

/* As the driver's shutdown does: memory that firmware protected is ordinary again. */
static void unprotect_memory(const struct vtd_unit *unit)
{
	int us;

	if (!CAP_PROTECTED(unit->cap) || !(readl(unit->reg + REG_PMEN) & PMEN_STATUS))
		return;
	writel(readl(unit->reg + REG_PMEN) & ~PMEN_ENABLE, unit->reg + REG_PMEN);
	for (us = 0; us < HARDWARE_TIMEOUT_US; us++) {
		if (!(readl(unit->reg + REG_PMEN) & PMEN_STATUS))
			return;
		udelay(1);
	}
}

/* No interrupt passes, and none is reported: the next kernel has not asked for any yet. */
void vtd_fill_blocked_interrupts(void *irt)
{
	u64 *entries = irt;
	int i;

	for (i = 0; i < IRT_ENTRIES; i++) {
		entries[2 * i] = IRTE_BLOCKED;
		entries[2 * i + 1] = 0;
	}
}

/*
 * The table that remaps interrupts lies in memory that the next kernel may use before
 * it has a table of its own. The one in the range blocks them all meanwhile.
 */
static int hand_over_interrupts(const struct vtd_unit *unit, u64 section_phys)
{
	u64 mode = readq(unit->reg + REG_IRTA) & IRTA_X2APIC;

	if (!vtd_unit_remaps_interrupts(unit))
		return 0;
	writeq((section_phys + PKERNFS_DMA_SECTION_IRT) | mode | IRTA_SIZE,
	       unit->reg + REG_IRTA);
	command(unit, GCMD_SIRTP, 0);
	return wait_for(unit, GSTS_IRTPS, true, "setting the interrupt table");
}

void vtd_switch_off(const struct vtd_unit *unit)
{
	command(unit, 0, GCMD_TE);
	wait_for(unit, GSTS_TES, false, "switching translation off");
}

int vtd_hand_over(const struct vtd_unit *unit, void *section, u64 section_phys)
{
	int err;

	unprotect_memory(unit);
	/* Faults stay recorded for the next kernel; nobody is there for an interrupt. */
	writel(readl(unit->reg + REG_FECTL) | FECTL_MASK, unit->reg + REG_FECTL);
	if (CAP_RWBF(unit->cap)) {
		command(unit, GCMD_WBF, 0);
		wait_for(unit, GSTS_WBFS, false, "flushing the write buffer");
	}
	err = queue_off(unit);
	if (err)
		return err;

	writeq(section_phys + PKERNFS_DMA_SECTION_ROOT, unit->reg + REG_RTADDR);
	command(unit, GCMD_SRTP, 0);
	err = wait_for(unit, GSTS_RTPS, true, "setting the root table");
	if (err)
		return err;
	err = hand_over_interrupts(unit, section_phys);
	if (err)
		return err;
	return invalidate_all(unit, section, section_phys);
}
