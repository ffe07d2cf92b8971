// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which blocks a device may reach though nothing maps them any more.
 *
 * Memory without struct pages can't be pinned. Of all that looks up its addresses in a
 * mapping, VFIO's type1 alone keeps them without being told when the mapping goes
 * (drivers/vfio/vfio_iommu_type1.c, follow_fault_pfn()): iommufd wants pages and is
 * refused, KVM listens to the MMU notifiers. So a block that left its file may still be
 * in the IOMMU's tables, and must not be given to somebody else.
 *
 * What can be known on a kernel as it is: a container of type1 finds a block only in the
 * page tables of a process that called this container. So here is kept
 *
 *   - per process that maps files of a region (a mapper): a bit for each block that was
 *     put into its page tables. A fork shares the bits with its child, which gets a copy
 *     of the page tables without a fault;
 *   - which processes called which container (a link), by probes on type1 (see type1.c).
 *     The link is there before type1 looks at anything, and goes when the container has
 *     taken all its tables down.
 *
 * A block is reached while a process that had it mapped is linked to a container. That
 * may say yes too often, as the container can have unmapped it; it never says no too
 * early, whatever the IOMMU. Processes are known by their mm, of which we hold a
 * reference, so that the address can't come to mean another.
 *
 * If the probes can't be set, or there is no memory for a link, nothing is known from
 * then on: every block that was ever mapped counts as reached.
 *
 * The bits outlive a mount, and a mapper with a link keeps the module loaded.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/module.h>
#include <linux/refcount.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "pkernfs.h"

/* Blocks that were in somebody's page tables; shared by a process and its forks. */
struct seen {
	refcount_t users;
	unsigned long blocks[];
};

struct pkernfs_mapper {
	struct list_head list;
	struct pkernfs_region *region;
	struct mm_struct *mm;
	struct seen *seen;
	bool linked;		/* to a container, and the module is held for that */
};

struct link {
	struct list_head list;
	void *container;
	struct mm_struct *mm;
};

/* Taken in probes, which sit at entries of functions and so run in what calls these. */
static DEFINE_RAW_SPINLOCK(reach_lock);
static LIST_HEAD(mappers);
static LIST_HEAD(links);
static LIST_HEAD(dropped_links);	/* to be freed where that may take its time */
static bool blind;			/* something may have been missed */

static void drop_links(struct work_struct *work)
{
	struct link *link, *next;
	LIST_HEAD(list);

	raw_spin_lock(&reach_lock);
	list_splice_init(&dropped_links, &list);
	raw_spin_unlock(&reach_lock);
	list_for_each_entry_safe(link, next, &list, list) {
		mmdrop(link->mm);
		kfree(link);
	}
}

static DECLARE_WORK(drop_work, drop_links);

static bool mm_linked(const struct mm_struct *mm)
{
	struct link *link;

	list_for_each_entry(link, &links, list)
		if (link->mm == mm)
			return true;
	return false;
}

/* After any change of links, or of blind. */
static void settle(struct pkernfs_mapper *mapper)
{
	bool linked = blind || mm_linked(mapper->mm);

	lockdep_assert_held(&reach_lock);
	if (linked && !mapper->linked)
		__module_get(THIS_MODULE);
	if (!linked && mapper->linked)
		module_put(THIS_MODULE);
	mapper->linked = linked;
}

static void settle_all(void)
{
	struct pkernfs_mapper *mapper;

	list_for_each_entry(mapper, &mappers, list)
		settle(mapper);
}

/* Something was missed, or will be. */
void pkernfs_reach_blind(const char *why)
{
	bool before;

	raw_spin_lock(&reach_lock);
	before = blind;
	blind = true;
	settle_all();
	raw_spin_unlock(&reach_lock);
	if (!before)
		pr_warn("%s: what devices reach is not known any more, so memory that was mapped is not used again before the next kernel\n",
			why);
}

/*
 * Containers.
 */

static struct link *find_link(const void *container, const struct mm_struct *mm)
{
	struct link *link;

	list_for_each_entry(link, &links, list)
		if (link->container == container && link->mm == mm)
			return link;
	return NULL;
}

static bool is_linked(const void *container, const struct mm_struct *mm)
{
	bool found;

	raw_spin_lock(&reach_lock);
	found = find_link(container, mm);
	raw_spin_unlock(&reach_lock);
	return found;
}

/* A process is about to have a container do something. */
void pkernfs_reach_called(void *container, struct mm_struct *mm)
{
	struct link *link;

	if (is_linked(container, mm))
		return;
	link = kmalloc(sizeof(*link), GFP_ATOMIC | __GFP_NOWARN);
	if (!link) {
		pkernfs_reach_blind("no memory to note who uses VFIO");
		return;
	}
	link->container = container;
	link->mm = mm;
	mmgrab(mm);

	raw_spin_lock(&reach_lock);
	/* Another thread may have been here. */
	list_add(&link->list, find_link(container, mm) ? &dropped_links : &links);
	settle_all();
	raw_spin_unlock(&reach_lock);
}

/* Its domains are gone, and what hardware had cached of them. */
void pkernfs_reach_released(const void *container)
{
	struct link *link, *next;

	raw_spin_lock(&reach_lock);
	list_for_each_entry_safe(link, next, &links, list)
		if (link->container == container)
			list_move(&link->list, &dropped_links);
	settle_all();
	raw_spin_unlock(&reach_lock);
	schedule_work(&drop_work);
}

/*
 * Mappers.
 */

static void seen_put(struct seen *seen)
{
	if (seen && refcount_dec_and_test(&seen->users))
		kvfree(seen);
}

static void mapper_free(struct pkernfs_mapper *mapper)
{
	seen_put(mapper->seen);
	mmdrop(mapper->mm);
	kfree(mapper);
}

/* Takes out those whose process is gone, and that no container can have seen. */
static void sweep(bool all)
{
	struct pkernfs_mapper *mapper, *next;
	LIST_HEAD(list);

	raw_spin_lock(&reach_lock);
	list_for_each_entry_safe(mapper, next, &mappers, list)
		if (all || (!mapper->linked && !atomic_read(&mapper->mm->mm_users)))
			list_move(&mapper->list, &list);
	raw_spin_unlock(&reach_lock);
	list_for_each_entry_safe(mapper, next, &list, list)
		mapper_free(mapper);
}

/* Nothing is watched any more. */
void pkernfs_reach_exit(void)
{
	/* No mapper is linked, or the module would be in use: whose links there are is nothing. */
	raw_spin_lock(&reach_lock);
	list_splice_init(&links, &dropped_links);
	raw_spin_unlock(&reach_lock);
	schedule_work(&drop_work);
	flush_work(&drop_work);
	sweep(true);
}

static struct pkernfs_mapper *mapper_of(const struct pkernfs_region *region,
					const struct mm_struct *mm)
{
	struct pkernfs_mapper *mapper, *found = NULL;

	raw_spin_lock(&reach_lock);
	list_for_each_entry(mapper, &mappers, list)
		if (mapper->region == region && mapper->mm == mm)
			found = mapper;
	raw_spin_unlock(&reach_lock);
	return found;
}

/* The mm is locked for writing, so nobody else makes a mapper of it; takes seen over. */
static struct pkernfs_mapper *mapper_new(struct pkernfs_region *region, struct mm_struct *mm,
					 struct seen *seen, gfp_t gfp)
{
	struct pkernfs_mapper *mapper = kzalloc(sizeof(*mapper), gfp);

	if (!mapper)
		return NULL;
	mapper->region = region;
	mapper->mm = mm;
	mapper->seen = seen;
	mmgrab(mm);
	raw_spin_lock(&reach_lock);
	list_add(&mapper->list, &mappers);
	settle(mapper);
	raw_spin_unlock(&reach_lock);
	return mapper;
}

/* A process maps a file; its mm is locked for writing. NULL: no memory. */
struct pkernfs_mapper *pkernfs_reach_mapper(struct pkernfs_region *region,
					    struct mm_struct *mm)
{
	const size_t longs = BITS_TO_LONGS(region->backing.nr_blocks);
	struct pkernfs_mapper *mapper = mapper_of(region, mm);
	struct seen *seen;

	if (mapper)
		return mapper;
	sweep(false);
	seen = kvzalloc(struct_size(seen, blocks, longs), GFP_KERNEL_ACCOUNT);
	if (!seen)
		return NULL;
	refcount_set(&seen->users, 1);
	mapper = mapper_new(region, mm, seen, GFP_KERNEL);
	if (!mapper)
		kvfree(seen);
	return mapper;
}

/* A fork; page tables of the parent are copied after this. Both mms are locked. */
struct pkernfs_mapper *pkernfs_reach_fork(struct pkernfs_mapper *parent, struct mm_struct *mm)
{
	struct pkernfs_mapper *mapper = mapper_of(parent->region, mm);

	if (mapper)
		return mapper;
	refcount_inc(&parent->seen->users);
	return mapper_new(parent->region, mm, parent->seen, GFP_KERNEL | __GFP_NOFAIL);
}

/* Before memory is put into page tables. */
void pkernfs_reach_mark(struct pkernfs_mapper *mapper, u64 phys, u64 bytes)
{
	u64 from = phys - mapper->region->base;
	u32 block = from >> PKERNFS_BLOCK_SHIFT;
	u32 last = (from + bytes - 1) >> PKERNFS_BLOCK_SHIFT;

	for (; block <= last; block++)
		if (!test_bit(block, mapper->seen->blocks))
			set_bit(block, mapper->seen->blocks);
}

/*
 * May a device reach a block that is in no file and in no page table any more? If not,
 * all is forgotten of it: it is about to belong to somebody else.
 */
bool pkernfs_reached(const struct pkernfs_region *region, u32 block)
{
	struct pkernfs_mapper *mapper;
	bool reached = false;

	raw_spin_lock(&reach_lock);
	list_for_each_entry(mapper, &mappers, list)
		if (mapper->linked && mapper->region == region &&
		    test_bit(block, mapper->seen->blocks))
			reached = true;
	list_for_each_entry(mapper, &mappers, list)
		if (!reached && mapper->region == region &&
		    test_bit(block, mapper->seen->blocks))
			clear_bit(block, mapper->seen->blocks);
	raw_spin_unlock(&reach_lock);
	return reached;
}

/* Is there any such block at all? */
bool pkernfs_reached_any(const struct pkernfs_region *region)
{
	struct pkernfs_mapper *mapper;
	bool any = false;

	raw_spin_lock(&reach_lock);
	list_for_each_entry(mapper, &mappers, list)
		any = any || (mapper->linked && mapper->region == region);
	raw_spin_unlock(&reach_lock);
	return any;
}
