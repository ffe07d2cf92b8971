// SPDX-License-Identifier: GPL-2.0-only
/* What changes the blocks and the size of a file: allocate, truncate, punch. */
#include "store_private.h"

static void free_runs(struct pkernfs_store *store, const struct pkernfs_runs *runs)
{
	u32 i;

	for (i = 0; i < runs->nr; i++)
		pkernfs_space_free(store, runs->v[i].block, runs->v[i].count);
}

static void touch(struct pkernfs_inode *draft, s64 now_ns)
{
	draft->mtime_ns = cpu_to_le64(now_ns);
	draft->ctime_ns = cpu_to_le64(now_ns);
}

/* An allocation that is under way. */
struct pkernfs_filling {
	u64 old_size;
	u64 size;			/* that the file will have */
	u64 file_blocks;		/* likewise */
	struct pkernfs_runs all;	/* extents that it will have, if any is new */
	struct pkernfs_runs fresh;	/* those that are new */
	struct pkernfs_runs exposed;	/* of those it has, where the size will reach into */
};

static int fill_hole(struct pkernfs_store *store, struct pkernfs_filling *fill, u32 from, u32 to,
		     const struct pkernfs_run *after)
{
	struct pkernfs_run before;
	u32 block, count;
	int err;

	while (from < to) {
		struct pkernfs_wish wish = {
			.file_block = from,
			.count = to - from,
			.file_blocks = fill->file_blocks,
			.after = after,
		};

		if (fill->all.nr) {
			before = fill->all.v[fill->all.nr - 1];
			wish.before = &before;
		}
		count = pkernfs_space_take(store, &wish, &block);
		if (!count)
			return -ENOSPC;
		err = pkernfs_runs_push(&fill->fresh, from, block, count);
		if (err) {
			pkernfs_space_untake(store, block, count);
			return err;
		}
		err = pkernfs_runs_push(&fill->all, from, block, count);
		if (err)
			return err;
		from += count;
	}
	return 0;
}

/* Goes through the extents that reach into [from, to) and fills what is between them. */
static int fill_range(struct pkernfs_store *store, const struct pkernfs_inode *inode,
		      u32 from, u32 to, struct pkernfs_filling *fill)
{
	u32 i = pkernfs_extent_search(store, inode, from);
	struct pkernfs_run run;
	int err;

	for (; from < to && i < le32_to_cpu(inode->nr_extents); i++) {
		pkernfs_extent_get(store, inode, i, &run);
		err = fill_hole(store, fill, from, min(run.file_block, to), &run);
		if (err)
			return err;
		if (run.file_block >= to)
			return 0;
		from = max(from, run.file_block);
		err = pkernfs_runs_push(&fill->all, from, run.block + (from - run.file_block),
					min(pkernfs_run_end(&run), to) - from);
		if (err)
			return err;
		from = pkernfs_run_end(&run);
	}
	return fill_hole(store, fill, from, to, NULL);
}

static u32 count_holes(struct pkernfs_store *store, const struct pkernfs_node *node,
		       u32 from, u32 to)
{
	u32 holes = 0, block, count;

	while (from < to) {
		if (!pkernfs_node_map(store, node, from, &block, &count))
			holes += min(count, to - from);
		from += min(count, to - from);
	}
	return holes;
}

static int allocate_runs(struct pkernfs_store *store, struct pkernfs_node *node,
			 u32 from, u32 to, struct pkernfs_filling *fill)
{
	const struct pkernfs_inode *inode = node->inode;
	int err;

	err = pkernfs_runs_copy(store, inode, 0, from, &fill->all);
	if (!err)
		err = fill_range(store, inode, from, to, fill);
	if (!err)
		err = pkernfs_runs_copy(store, inode, to, U32_MAX, &fill->all);
	if (err)
		return err;
	return pkernfs_pages_for(fill->all.nr) > PKERNFS_MAX_EXTENT_PAGES ? -ENOSPC : 0;
}

static int commit_size(struct pkernfs_store *store, struct pkernfs_node *node,
		       const struct pkernfs_runs *runs, u64 size, s64 now_ns)
{
	const struct pkernfs_step step = { .node = node, .runs = runs };
	struct pkernfs_inode *draft;

	draft = pkernfs_step_begin(store, node);
	draft->size = cpu_to_le64(size);
	touch(draft, now_ns);
	return pkernfs_step_commit(store, &step);
}

static void filling_drop(struct pkernfs_filling *fill)
{
	pkernfs_runs_drop(&fill->exposed);
	pkernfs_runs_drop(&fill->fresh);
	pkernfs_runs_drop(&fill->all);
	kfree(fill);
}

static void give_back(struct pkernfs_store *store, const struct pkernfs_runs *runs)
{
	u32 i;

	for (i = 0; i < runs->nr; i++)
		pkernfs_space_untake(store, runs->v[i].block, runs->v[i].count);
}

int pkernfs_node_reserve(struct pkernfs_store *store, struct pkernfs_node *node, u32 file_block,
			 u32 count, u64 new_size, struct pkernfs_filling **ret)
{
	const u64 old_size = le64_to_cpu(node->inode->size);
	const u64 end = (u64)file_block + count;
	struct pkernfs_filling *fill;
	int err = 0;
	u32 holes;

	pkernfs_assert_locked(store);
	if (end > U32_MAX || new_size > PKERNFS_FILE_MAX)
		return -EFBIG;
	pkernfs_space_collect(store);
	holes = count_holes(store, node, file_block, end);
	if (holes > store->nr_free)
		return pkernfs_no_space(store);
	fill = kzalloc(sizeof(*fill), PKERNFS_GFP);
	if (!fill)
		return -ENOMEM;

	fill->old_size = old_size;
	fill->size = max(old_size, new_size);
	fill->file_blocks = max(end, DIV_ROUND_UP_ULL(fill->size, PKERNFS_BLOCK_SIZE));
	if (holes)
		err = allocate_runs(store, node, file_block, end, fill);
	if (!err && fill->size > old_size)
		err = pkernfs_runs_copy(store, node->inode, old_size >> PKERNFS_BLOCK_SHIFT,
					DIV_ROUND_UP_ULL(fill->size, PKERNFS_BLOCK_SIZE),
					&fill->exposed);
	if (err) {
		give_back(store, &fill->fresh);
		filling_drop(fill);
		return err;
	}
	*ret = fill;
	return 0;
}

/* Whole blocks, and none when stop() says so. */
static int zero_run(struct pkernfs_backing *backing, u32 block, u32 count, bool (*stop)(void))
{
	while (count) {
		u32 now = min(count, PKERNFS_WINDOW);
		int err;

		if (stop && stop())
			return -EINTR;
		err = backing->zero(backing, block, now);
		if (err)
			return err;
		block += now;
		count -= now;
	}
	return 0;
}

/* The bytes of an extent of the file that are at from or behind, and before to. */
static int zero_within(struct pkernfs_backing *backing, const struct pkernfs_run *run, u64 from,
		       u64 to, bool (*stop)(void))
{
	const u64 start = (u64)run->file_block << PKERNFS_BLOCK_SHIFT;
	const u64 end = (u64)pkernfs_run_end(run) << PKERNFS_BLOCK_SHIFT;
	u64 at = max(start, from);
	int err = 0;

	to = min(end, to);
	while (!err && at < to) {
		u32 block = run->block + ((at - start) >> PKERNFS_BLOCK_SHIFT);
		u32 offset = at & (PKERNFS_BLOCK_SIZE - 1);
		u64 bytes = min_t(u64, PKERNFS_BLOCK_SIZE - offset, to - at);

		if (bytes == PKERNFS_BLOCK_SIZE) {
			bytes = rounddown(to - at, (u64)PKERNFS_BLOCK_SIZE);
			err = zero_run(backing, block, bytes >> PKERNFS_BLOCK_SHIFT, stop);
		} else {
			err = backing->zero_part(backing, block, offset, bytes);
		}
		at += bytes;
	}
	return err;
}

int pkernfs_filling_zero(struct pkernfs_backing *backing, const struct pkernfs_filling *fill,
			 bool (*stop)(void))
{
	int err = 0;
	u32 i;

	for (i = 0; !err && i < fill->fresh.nr; i++)
		err = zero_run(backing, fill->fresh.v[i].block, fill->fresh.v[i].count, stop);
	for (i = 0; !err && i < fill->exposed.nr; i++)
		err = zero_within(backing, &fill->exposed.v[i], fill->old_size, fill->size, stop);
	return err;
}

int pkernfs_node_commit(struct pkernfs_store *store, struct pkernfs_node *node,
			struct pkernfs_filling *fill, int err, s64 now_ns)
{
	pkernfs_assert_locked(store);
	if (!err && (fill->fresh.nr || fill->size != fill->old_size))
		err = commit_size(store, node, fill->fresh.nr ? &fill->all : NULL, fill->size,
				  now_ns);
	if (err)
		give_back(store, &fill->fresh);
	filling_drop(fill);
	return err;
}

int pkernfs_node_allocate(struct pkernfs_store *store, struct pkernfs_node *node,
			  u32 file_block, u32 count, u64 new_size, s64 now_ns)
{
	struct pkernfs_filling *fill;
	int err;

	err = pkernfs_node_reserve(store, node, file_block, count, new_size, &fill);
	if (err)
		return err;
	err = pkernfs_filling_zero(store->backing, fill, NULL);
	return pkernfs_node_commit(store, node, fill, err, now_ns);
}

/* Takes the blocks [from, to) away from a file and sets its size, in one step. */
static int cut(struct pkernfs_store *store, struct pkernfs_node *node, u32 from, u32 to,
	       u64 size, s64 now_ns)
{
	struct pkernfs_runs kept = { }, gone = { };
	const struct pkernfs_step step = { .node = node, .runs = &kept, .shrinks = true };
	struct pkernfs_inode *draft;
	int err;

	err = pkernfs_runs_copy(store, node->inode, from, to, &gone);
	if (!err)
		err = pkernfs_runs_copy(store, node->inode, 0, from, &kept);
	if (!err)
		err = pkernfs_runs_copy(store, node->inode, to, U32_MAX, &kept);
	if (err)
		goto drop;
	err = -ENOSPC;
	if (pkernfs_pages_for(kept.nr) > PKERNFS_MAX_EXTENT_PAGES)
		goto drop;
	draft = pkernfs_step_begin(store, node);
	draft->size = cpu_to_le64(size);
	touch(draft, now_ns);
	err = pkernfs_step_commit(store, &step);
	if (err)
		goto drop;
	free_runs(store, &gone);
	pkernfs_slots_settle(store);
drop:
	pkernfs_runs_drop(&gone);
	pkernfs_runs_drop(&kept);
	return err;
}

static bool has_blocks(struct pkernfs_store *store, const struct pkernfs_node *node,
		       u32 from, u32 to)
{
	u32 block, count;

	return pkernfs_node_map(store, node, from, &block, &count) || count < to - from;
}

int pkernfs_node_zero_tail(struct pkernfs_store *store, struct pkernfs_node *node)
{
	const u64 size = le64_to_cpu(node->inode->size);
	const u32 offset = size & (PKERNFS_BLOCK_SIZE - 1);
	const u32 bytes = round_up(size, (u64)PKERNFS_SLOT_SIZE) - size;
	u32 block, count;

	pkernfs_assert_locked(store);
	if (!bytes ||
	    !pkernfs_node_map(store, node, size >> PKERNFS_BLOCK_SHIFT, &block, &count))
		return 0;
	return store->backing->zero_part(store->backing, block, offset, bytes);
}

static int shrink(struct pkernfs_store *store, struct pkernfs_node *node, u64 size, s64 now_ns)
{
	const u32 end = DIV_ROUND_UP_ULL(size, PKERNFS_BLOCK_SIZE);
	const u64 old_size = le64_to_cpu(node->inode->size);
	const bool cuts = has_blocks(store, node, end, U32_MAX);
	int err;

	if (cuts)
		err = cut(store, node, end, U32_MAX, size, now_ns);
	else if (size < old_size)
		err = commit_size(store, node, NULL, size, now_ns);
	else
		return 0;
	if (err)
		return err;

	/* What is still mapped of the last page must not show what was cut off. */
	if (pkernfs_node_zero_tail(store, node))
		store->backing->say(store->backing, "could not zero the end of inode %llu",
				    node->ino);
	return 0;
}

int pkernfs_node_resize(struct pkernfs_store *store, struct pkernfs_node *node, u64 size,
			s64 now_ns)
{
	pkernfs_assert_locked(store);
	if (size > PKERNFS_FILE_MAX)
		return -EFBIG;
	pkernfs_space_collect(store);
	if (size > le64_to_cpu(node->inode->size))
		return pkernfs_node_allocate(store, node, 0, 0, size, now_ns);
	return shrink(store, node, size, now_ns);
}

int pkernfs_node_punch(struct pkernfs_store *store, struct pkernfs_node *node, u32 file_block,
		       u32 count, s64 now_ns)
{
	const u64 end = min_t(u64, (u64)file_block + count, U32_MAX);

	pkernfs_assert_locked(store);
	pkernfs_space_collect(store);
	if (file_block >= end || !has_blocks(store, node, file_block, end))
		return 0;
	return cut(store, node, file_block, end, le64_to_cpu(node->inode->size), now_ns);
}
