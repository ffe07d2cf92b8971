// SPDX-License-Identifier: GPL-2.0-only
/*
 * Filling the holes of a file with blocks.
 *
 * New blocks are zeroed with the store locked, which keeps all other changes waiting,
 * also the page faults of running guests. So the RAM of a large guest is allocated in
 * steps, and still all of it or nothing: what was a hole becomes one again if a later
 * step fails.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pkernfs.h"

/* Blocks of one step: as much as one entry of a page table can map. */
#define PKERNFS_STEP	(SZ_1G >> PKERNFS_BLOCK_SHIFT)

struct hole {
	u32 first;
	u32 count;
};

/* The whole of [first, last] in one step, and the size raised to new_size. */
static int fill_step(struct inode *inode, u32 first, u32 last, loff_t new_size)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	int err;

	pkernfs_lock(region);
	err = pkernfs_node_allocate(region->store, pkernfs_node(inode), first, last - first + 1,
				    new_size, pkernfs_now());
	if (!err) {
		pkernfs_drop_zeros(inode, (loff_t)first << PKERNFS_BLOCK_SHIFT,
				   (loff_t)(last - first + 1) << PKERNFS_BLOCK_SHIFT);
		pkernfs_inode_sync(inode);
	}
	pkernfs_unlock(region);
	return err;
}

/* The first hole in [from, last], cut off at the end of a step; false: there is none. */
static bool next_hole(struct inode *inode, u32 from, u32 last, struct hole *hole)
{
	struct pkernfs_region *region = pkernfs_region(inode);

	while (from <= last) {
		u32 block, count;

		if (!pkernfs_node_map(region->store, pkernfs_node(inode), from, &block, &count)) {
			u32 end = min_t(u64, round_up((u64)from + 1, PKERNFS_STEP),
					min_t(u64, (u64)from + count, (u64)last + 1));

			*hole = (struct hole) { .first = from, .count = end - from };
			return true;
		}
		if (count > last - from)
			break;
		from += count;
	}
	return false;
}

/* All holes in [first, last]; *blocks is their sum. NULL: none, or no memory for the list. */
static struct hole *list_holes(struct inode *inode, u32 first, u32 last, u32 *nr, u32 *blocks)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct hole *holes, hole;
	u32 from;

	*nr = 0;
	*blocks = 0;
	down_read(&region->lock);
	for (from = first; next_hole(inode, from, last, &hole); from = hole.first + hole.count) {
		*blocks += hole.count;
		++*nr;
	}
	up_read(&region->lock);

	/* Nobody else changes this file: its holes are the same in the second round. */
	holes = *nr ? kvmalloc_array(*nr, sizeof(*holes), GFP_KERNEL) : NULL;
	if (!holes)
		return NULL;
	from = first;
	down_read(&region->lock);
	for (u32 i = 0; i < *nr && next_hole(inode, from, last, &holes[i]); i++)
		from = holes[i].first + holes[i].count;
	up_read(&region->lock);
	return holes;
}

static void make_hole(struct inode *inode, const struct hole *hole)
{
	struct pkernfs_region *region = pkernfs_region(inode);

	pkernfs_lock(region);
	pkernfs_node_punch(region->store, pkernfs_node(inode), hole->first, hole->count,
			   pkernfs_now());
	pkernfs_inode_sync(inode);
	pkernfs_unlock(region);
}

static int fill_steps(struct inode *inode, const struct hole *holes, u32 nr)
{
	int err = 0;
	u32 done;

	for (done = 0; done < nr && !err; done++) {
		err = fill_step(inode, holes[done].first,
				holes[done].first + holes[done].count - 1, 0);
		if (!err && fatal_signal_pending(current))
			err = -EINTR;
		cond_resched();
	}
	if (err)
		while (done--)
			make_hole(inode, &holes[done]);
	return err;
}

static bool enough_free(struct pkernfs_region *region, u32 blocks)
{
	struct pkernfs_usage usage;

	down_read(&region->lock);
	pkernfs_store_usage(region->store, &usage);
	up_read(&region->lock);
	return blocks <= usage.blocks_free;
}

/*
 * Fills the holes in [pos, end), and raises the size to new_size if that is higher.
 * The caller holds i_rwsem. With invalidate_lock held as well no fault can use a block
 * before it is certain that it stays.
 */
int pkernfs_fill(struct inode *inode, loff_t pos, loff_t end, loff_t new_size)
{
	u32 first = pos >> PKERNFS_BLOCK_SHIFT;
	u32 last = (end - 1) >> PKERNFS_BLOCK_SHIFT;
	struct hole *holes;
	u32 nr, blocks;
	int err = 0;

	if (last - first < PKERNFS_STEP)
		return fill_step(inode, first, last, new_size);

	filemap_invalidate_lock(inode->i_mapping);
	holes = list_holes(inode, first, last, &nr, &blocks);
	/* Not enough free, as it seems: one step for all says so before it zeroes any. */
	if (holes && enough_free(pkernfs_region(inode), blocks))
		err = fill_steps(inode, holes, nr);
	kvfree(holes);
	if (!err)
		err = fill_step(inode, first, last, new_size);
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}
