// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ranges of memory: what is refused, how they are claimed, and how the
 * metadata core and the VFS half reach what is in them.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <asm/memtype.h>
#include <asm/pgtable.h>
#include <asm/processor.h>

#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/export.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "export.h"
#include "pkernfs.h"

/* A run of blocks is mapped in pieces of at most this size. */
#define PKERNFS_MAP_MAX		SZ_32M

static LIST_HEAD(regions);	/* complete before the filesystem can be mounted */

struct units {
	char text[24];
};

/* The way a size or an address is written in a boot line: 4G, 2050M, ... */
static struct units in_units(u64 value)
{
	static const struct {
		u64 unit;
		char letter;
	} known[] = { { SZ_1G, 'G' }, { SZ_1M, 'M' }, { SZ_1K, 'K' } };
	struct units units;

	for (int i = 0; i < ARRAY_SIZE(known); i++) {
		if (!value || value % known[i].unit)
			continue;
		snprintf(units.text, sizeof(units.text), "%llu%c",
			 value / known[i].unit, known[i].letter);
		return units;
	}
	snprintf(units.text, sizeof(units.text), "%llu", value);
	return units;
}

#define UNITS(value)	(in_units(value).text)

/*
 * Reading and writing: a mapping for the duration of one call.
 */

void *pkernfs_map(struct pkernfs_region *region, u64 phys, size_t bytes)
{
	return memremap(phys, bytes, MEMREMAP_WB);
}

void pkernfs_unmap(void *addr)
{
	memunmap(addr);
}

static struct pkernfs_region *backing_region(struct pkernfs_backing *backing)
{
	return container_of(backing, struct pkernfs_region, backing);
}

static u64 block_phys(struct pkernfs_backing *backing, u32 block)
{
	return backing->base + ((u64)block << PKERNFS_BLOCK_SHIFT);
}

static void *map_meta(struct pkernfs_backing *backing, u32 block)
{
	return pkernfs_map(backing_region(backing), block_phys(backing, block),
			   PKERNFS_BLOCK_SIZE);
}

static void unmap_meta(struct pkernfs_backing *backing, u32 block, void *addr)
{
	pkernfs_unmap(addr);
}

static int zero_phys(struct pkernfs_region *region, u64 phys, u64 bytes)
{
	while (bytes) {
		size_t now = min_t(u64, bytes, PKERNFS_MAP_MAX);
		void *addr = pkernfs_map(region, phys, now);

		if (!addr)
			return -ENOMEM;
		memset(addr, 0, now);
		pkernfs_unmap(addr);
		phys += now;
		bytes -= now;
		cond_resched();
	}
	return 0;
}

static int zero_blocks(struct pkernfs_backing *backing, u32 block, u32 count)
{
	return zero_phys(backing_region(backing), block_phys(backing, block),
			 (u64)count << PKERNFS_BLOCK_SHIFT);
}

static int zero_part(struct pkernfs_backing *backing, u32 block, u32 offset, u32 bytes)
{
	return zero_phys(backing_region(backing), block_phys(backing, block) + offset, bytes);
}

static bool idle(struct pkernfs_backing *backing, u32 block)
{
	const struct pkernfs_region *region = backing_region(backing);

	return pkernfs_pages_idle(region, block) && !pkernfs_reached(region, block);
}

static __printf(2, 3) void say(struct pkernfs_backing *backing, const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list args;

	va_start(args, fmt);
	vaf.va = &args;
	pr_warn("region %s: %pV\n", backing_region(backing)->name, &vaf);
	va_end(args);
}

/* Something is lost, and somebody has to see to it. */
static __printf(2, 3) void alarm(struct pkernfs_backing *backing, const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list args;

	va_start(args, fmt);
	vaf.va = &args;
	pr_err("region %s: %pV\n", backing_region(backing)->name, &vaf);
	va_end(args);
}

/*
 * The memory type of the whole range.
 *
 * vmf_insert_pfn*() ask the PAT code which memory type a page frame has
 * (arch/x86/mm/pat/memtype.c, lookup_memtype()). For memory that is not System
 * RAM that is what somebody reserved, and uncached if nobody did: guests would
 * run from uncached memory. So write-back has to be reserved for the whole range
 * as long as it is claimed. There is no exported function for just that, but
 * ioremap_cache() does it on its way. vunmap() then takes the mapping away, and
 * not the reservation, which iounmap() would do: the kernel keeps no mapping of
 * data. Nothing is read or written through this mapping.
 *
 * In the end arch_io_free_memtype_wc() frees the reservation: it frees that of
 * the very range it is given, of whatever type. Mappings made in between have
 * reservations of their own beside it, of the same type.
 */
static int reserve_memtype(struct pkernfs_region *region)
{
	void __iomem *addr;
	unsigned int level;
	bool cached = true;
	pte_t *pte;

	addr = ioremap_cache(region->base, region->size);
	if (!addr) {
		pr_err("region %s: no memory to map it\n", region->name);
		return -ENOMEM;
	}
	/* The firmware's MTRRs may say that it is not ordinary memory: then it got another. */
	pte = lookup_address((unsigned long)addr, &level);
	if (pte)
		cached = !(pte_flags(*pte) & (_PAGE_PWT | _PAGE_PCD));
	vunmap((void __force *)addr);
	if (!cached) {
		arch_io_free_memtype_wc(region->base, region->size);
		pr_err("region %s: the firmware does not cache %s!%s: choose a range of ordinary RAM\n",
		       region->name, UNITS(region->size), UNITS(region->base));
		return -ENXIO;
	}
	region->memtype = true;
	return 0;
}

static void unreserve_memtype(struct pkernfs_region *region)
{
	if (region->memtype)
		arch_io_free_memtype_wc(region->base, region->size);
}

/*
 * What is refused: one line each, with what to write instead.
 */

static int check_shape(const struct pkernfs_region *region)
{
	u64 start = round_up(region->base, PKERNFS_BLOCK_SIZE);
	u64 end = round_down(region->base + region->size, PKERNFS_BLOCK_SIZE);
	u64 limit = 1ULL << boot_cpu_data.x86_phys_bits;

	if (region->size > ((u64)PKERNFS_MAX_BLOCKS << PKERNFS_BLOCK_SHIFT)) {
		pr_err("region %s: %s is more than 16 TiB: write at most %s!%s\n", region->name,
		       UNITS(region->size), UNITS((u64)PKERNFS_MAX_BLOCKS << PKERNFS_BLOCK_SHIFT),
		       UNITS(start));
		return -E2BIG;
	}
	if (region->base + region->size < region->base || region->base + region->size > limit) {
		pr_err("region %s: ends beyond the %s this CPU can address: write SIZE!START as in /proc/iomem\n",
		       region->name, UNITS(limit));
		return -ERANGE;
	}
	if (region->size < ((u64)PKERNFS_MIN_BLOCKS << PKERNFS_BLOCK_SHIFT)) {
		pr_err("region %s: %s is too small: write at least %s!%s\n", region->name,
		       UNITS(region->size), UNITS((u64)PKERNFS_MIN_BLOCKS << PKERNFS_BLOCK_SHIFT),
		       UNITS(start));
		return -EINVAL;
	}
	if (!IS_ALIGNED(region->base | region->size, PKERNFS_BLOCK_SIZE)) {
		pr_err("region %s: %s!%s is not aligned to 2M: write %s!%s\n", region->name,
		       UNITS(region->size), UNITS(region->base),
		       UNITS(max(end - start, (u64)PKERNFS_MIN_BLOCKS << PKERNFS_BLOCK_SHIFT)),
		       UNITS(start));
		return -EINVAL;
	}
	return 0;
}

/* Not -EEXIST: modprobe takes that for "is loaded already", and is content. */
static int check_others(const struct pkernfs_region *region)
{
	struct pkernfs_region *other;

	list_for_each_entry(other, &regions, list) {
		if (!strcmp(region->name, other->name)) {
			pr_err("region %s: given twice: write another NAME:SIZE!START for the second\n",
			       region->name);
			return -EINVAL;
		}
		if (region->base < other->base + other->size &&
		    other->base < region->base + region->size) {
			pr_err("region %s: overlaps with region %s: write %s!%s or another free range\n",
			       region->name, other->name, UNITS(region->size),
			       UNITS(other->base + other->size));
			return -EINVAL;
		}
	}
	return 0;
}

static int check_memory(const struct pkernfs_region *region)
{
	int protected;

	if (region_intersects(region->base, region->size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT) {
		pr_err("region %s: the kernel uses this range as its own RAM: add memmap=%s$%s to the boot line\n",
		       region->name, UNITS(region->size), UNITS(region->base));
		return -EBUSY;
	}
	if (region_intersects(region->base, region->size, IORESOURCE_MEM,
			      IORES_DESC_RESERVED) != REGION_INTERSECTS) {
		pr_err("region %s: not all of %s!%s is RAM set aside by memmap=: choose a range of System RAM in /proc/iomem and write memmap=SIZE$START for it\n",
		       region->name, UNITS(region->size), UNITS(region->base));
		return -ENXIO;
	}

	protected = pkernfs_bootline_protects(region->base, region->size);
	if (protected < 0) {
		pr_err("region %s: cannot read the boot line (%d): mount /proc first\n",
		       region->name, protected);
		return protected;
	}
	if (!protected) {
		pr_err("region %s: KASLR may put a kernel there: write memmap=%s$%s among the first four memmap= of the boot line\n",
		       region->name, UNITS(region->size), UNITS(region->base));
		return -EPERM;
	}
	return 0;
}

/*
 * Claiming.
 */

void pkernfs_region_free(struct pkernfs_region *region)
{
	unreserve_memtype(region);
	if (region->res)
		release_mem_region(region->base, region->size);
	kfree(region);
}

static struct pkernfs_region *region_new(char *text)
{
	struct pkernfs_region *region;
	int err;

	region = kzalloc(sizeof(*region), GFP_KERNEL);
	if (!region)
		return ERR_PTR(-ENOMEM);

	err = pkernfs_parse_region(region, text);
	if (!err)
		err = check_shape(region);
	if (!err)
		err = check_others(region);
	if (!err)
		err = check_memory(region);
	if (err)
		goto free_region;

	init_rwsem(&region->lock);
	region->backing = (struct pkernfs_backing) {
		.base		= region->base,
		.nr_blocks	= region->size >> PKERNFS_BLOCK_SHIFT,
		.map_meta	= map_meta,
		.unmap_meta	= unmap_meta,
		.zero		= zero_blocks,
		.zero_part	= zero_part,
		.idle		= idle,
		.say		= say,
		.alarm		= alarm,
		.lock		= &region->lock,
	};

	/* Exclusive: no other driver, and not /dev/mem either. */
	region->res = request_mem_region_exclusive(region->base, region->size, KBUILD_MODNAME);
	if (!region->res) {
		pr_err("region %s: something else has claimed part of it, see /proc/iomem: write memmap=%s$%s\n",
		       region->name, UNITS(region->size), UNITS(region->base));
		err = -EBUSY;
		goto free_region;
	}
	err = reserve_memtype(region);
	if (err)
		goto free_region;

	return region;

free_region:
	pkernfs_region_free(region);
	return ERR_PTR(err);
}

static int claim_one(char *text)
{
	struct pkernfs_region *region = region_new(text);
	int err;

	if (IS_ERR(region))
		return PTR_ERR(region);

	err = pkernfs_sysfs_add(region);
	if (err)
		return err;

	list_add_tail(&region->list, &regions);
	pr_info("region %s: %s!%s\n", region->name, UNITS(region->size), UNITS(region->base));
	return 0;
}

/* All or none. */
int pkernfs_regions_claim(char *param)
{
	char *rest, *text, *copy;
	int err = 0;

	if (!param || !*param) {
		pr_err("no region given: add memmap=SIZE$START pkernfs.region=SIZE!START to the boot line\n");
		return -EINVAL;
	}
	copy = kstrdup(param, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;

	rest = copy;
	while (!err && (text = strsep(&rest, ",")))
		err = claim_one(text);
	kfree(copy);
	if (err)
		pkernfs_regions_release();
	return err;
}

void pkernfs_regions_release(void)
{
	struct pkernfs_region *region, *next;

	list_for_each_entry_safe_reverse(region, next, &regions, list) {
		list_del(&region->list);
		/* Frees the region: nothing else has a reference. */
		kobject_put(&region->kobj);
	}
}

struct pkernfs_region *pkernfs_region_nth(unsigned int n)
{
	struct pkernfs_region *region;

	list_for_each_entry(region, &regions, list)
		if (!n--)
			return region;
	return NULL;
}
EXPORT_SYMBOL_GPL(pkernfs_region_nth);

/* NULL or "none": the first one. */
struct pkernfs_region *pkernfs_region_find(const char *name)
{
	struct pkernfs_region *region;

	list_for_each_entry(region, &regions, list)
		if (!name || !*name || !strcmp(name, "none") || !strcmp(name, region->name))
			return region;
	return NULL;
}
