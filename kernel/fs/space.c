// SPDX-License-Identifier: GPL-2.0-only
/* Free blocks: a bitmap that is never stored, and where a file's next block lies best. */
#include "store_private.h"

int pkernfs_space_init(struct pkernfs_store *store)
{
	store->used = kvcalloc(BITS_TO_LONGS(store->nr_blocks), sizeof(long), PKERNFS_GFP);
	store->limbo = kvcalloc(BITS_TO_LONGS(store->nr_blocks), sizeof(long), PKERNFS_GFP);
	if (!store->used || !store->limbo)
		return -ENOMEM;
	store->nr_free = store->nr_blocks;
	return 0;
}

void pkernfs_space_destroy(struct pkernfs_store *store)
{
	kvfree(store->contested);
	kvfree(store->limbo);
	kvfree(store->used);
}

static u32 next_used(const struct pkernfs_store *store, u32 from, u32 end)
{
	return from < end ? find_next_bit(store->used, end, from) : end;
}

static u32 next_free(const struct pkernfs_store *store, u32 from)
{
	from = max(from, store->lowest);
	return find_next_zero_bit(store->used, store->nr_blocks, from);
}

static void mark(struct pkernfs_store *store, u32 block, u32 count)
{
	bitmap_set(store->used, block, count);
	store->nr_free -= count;
	if (block == store->lowest)
		store->lowest = block + count;
}

/* Marks blocks as used; false if one of them is already. */
bool pkernfs_space_claim(struct pkernfs_store *store, u32 block, u32 count)
{
	if (next_used(store, block, block + count) < block + count)
		return false;
	mark(store, block, count);
	return true;
}

/* Marks blocks of which pkernfs_space_claim() said that one is used; notes which. */
int pkernfs_space_contest(struct pkernfs_store *store, u32 block, u32 count)
{
	u32 end = block + count;

	if (!store->contested)
		store->contested = kvcalloc(BITS_TO_LONGS(store->nr_blocks), sizeof(long),
					    PKERNFS_GFP);
	if (!store->contested)
		return -ENOMEM;
	for (; block < end; block++)
		if (!pkernfs_space_claim(store, block, 1))
			__set_bit(block, store->contested);
	return 0;
}

bool pkernfs_space_contested(const struct pkernfs_store *store, u32 block, u32 count)
{
	return find_next_bit(store->contested, block + count, block) < block + count;
}

/* Nothing is free any more but what is freed from now on. */
void pkernfs_space_withhold(struct pkernfs_store *store)
{
	bitmap_set(store->used, 0, store->nr_blocks);
	store->nr_free = 0;
	store->lowest = store->nr_blocks;
}

/* Blocks that were taken but never became part of a file. */
void pkernfs_space_untake(struct pkernfs_store *store, u32 block, u32 count)
{
	bitmap_clear(store->used, block, count);
	store->nr_free += count;
	store->lowest = min(store->lowest, block);
}

static void into_limbo(struct pkernfs_store *store, u32 block)
{
	__set_bit(block, store->limbo);
	store->nr_limbo++;
}

void pkernfs_space_free(struct pkernfs_store *store, u32 block, u32 count)
{
	struct pkernfs_backing *backing = store->backing;

	if (!backing->idle) {
		pkernfs_space_untake(store, block, count);
		return;
	}
	for (; count; block++, count--) {
		if (backing->idle(backing, block))
			pkernfs_space_untake(store, block, 1);
		else
			into_limbo(store, block);
	}
}

/* Asks again for the blocks that somebody still held when they were freed. */
void pkernfs_space_collect(struct pkernfs_store *store)
{
	struct pkernfs_backing *backing = store->backing;
	u32 left = store->nr_limbo;
	u32 block;

	for (block = 0; left; block++, left--) {
		block = find_next_bit(store->limbo, store->nr_blocks, block);
		if (!backing->idle(backing, block))
			continue;
		__clear_bit(block, store->limbo);
		store->nr_limbo--;
		pkernfs_space_untake(store, block, 1);
	}
}

void pkernfs_store_collect(struct pkernfs_store *store)
{
	pkernfs_assert_locked(store);
	pkernfs_space_collect(store);
}

void pkernfs_store_recheck(struct pkernfs_store *store)
{
	struct pkernfs_backing *backing = store->backing;
	u32 block;

	pkernfs_assert_locked(store);
	for (block = next_free(store, 0); block < store->nr_blocks;
	     block = next_free(store, block + 1)) {
		if (backing->idle(backing, block))
			continue;
		mark(store, block, 1);
		into_limbo(store, block);
	}
}

/* Takes what is free from goal on, if that is a block at all. */
static u32 take_at(struct pkernfs_store *store, s64 goal, u32 count)
{
	u32 end;

	if (goal < 0 || goal >= store->nr_blocks)
		return 0;
	end = min_t(u64, goal + count, store->nr_blocks);
	count = next_used(store, goal, end) - goal;
	if (count)
		mark(store, goal, count);
	return count;
}

/* How far a block lies into its window of physical memory, and a file block into its own. */
static u32 skew(const struct pkernfs_store *store, u32 file_block, u32 block)
{
	const u32 base = store->backing->base >> PKERNFS_BLOCK_SHIFT;

	return (base + block - file_block) % PKERNFS_WINDOW;
}

static bool is_large(const struct pkernfs_wish *wish)
{
	return wish->file_blocks >= PKERNFS_WINDOW || wish->count >= PKERNFS_WINDOW;
}

static bool may_leap(const struct pkernfs_store *store, const struct pkernfs_wish *wish,
		     const struct pkernfs_run *run)
{
	return is_large(wish) && !skew(store, run->file_block, run->block);
}

/*
 * Where blocks next to it would lie if the file went on as its neighbours do.
 * Across a gap that only matters for mappings of 1 GiB.
 */
static u32 take_near(struct pkernfs_store *store, const struct pkernfs_wish *wish, u32 *block)
{
	const struct pkernfs_run *run;
	u32 count;
	s64 goal;

	run = wish->before;
	if (run && (run->file_block + run->count == wish->file_block ||
		    may_leap(store, wish, run))) {
		goal = (s64)run->block + (wish->file_block - run->file_block);
		count = take_at(store, goal, wish->count);
		*block = goal;
		if (count)
			return count;
	}
	run = wish->after;
	if (run && may_leap(store, wish, run)) {
		goal = (s64)run->block - (run->file_block - wish->file_block);
		count = take_at(store, goal, wish->count);
		*block = goal;
		if (count)
			return count;
	}
	return 0;
}

/*
 * Room for the file from the window on that holds the wish: at the high end, out
 * of the way of small files, or the longest there is.
 */
static u32 take_window(struct pkernfs_store *store, const struct pkernfs_wish *wish, u32 *block)
{
	const u32 into = wish->file_block % PKERNFS_WINDOW;
	const u64 file_end = max_t(u64, wish->file_blocks, (u64)wish->file_block + wish->count);
	const u32 need = min_t(u64, file_end - (wish->file_block - into), store->nr_blocks);
	u32 best = 0, best_len = 0, start, end, first, len;

	for (start = next_free(store, 0); start < store->nr_blocks;
	     start = next_free(store, end)) {
		end = next_used(store, start, store->nr_blocks);
		/* Congruent to the beginning of the window in the file. */
		first = start + (PKERNFS_WINDOW - skew(store, 0, start)) % PKERNFS_WINDOW;
		if (first >= end)
			continue;
		len = end - first;
		if (len >= need) {
			first += rounddown(len - need, PKERNFS_WINDOW);
			len = need;
		}
		if (len >= best_len) {
			best = first;
			best_len = len;
		}
	}
	if (best_len < min(need, PKERNFS_WINDOW) || best_len <= into)
		return 0;
	*block = best + into;
	return take_at(store, *block, min(wish->count, best_len - into));
}

/*
 * The lowest run that is long enough. Without one: the longest if it is worth the
 * search, else the lowest.
 */
static u32 take_first(struct pkernfs_store *store, const struct pkernfs_wish *wish, u32 *block)
{
	u32 best = 0, best_len = 0, lowest, start, end;

	lowest = next_free(store, 0);
	store->lowest = lowest;
	for (start = lowest; start < store->nr_blocks; start = next_free(store, end)) {
		end = min_t(u64, (u64)start + wish->count, store->nr_blocks);
		end = next_used(store, start, end);
		if (end - start > best_len) {
			best = start;
			best_len = end - start;
		}
		if (best_len == wish->count)
			break;
	}
	*block = best_len == wish->count || best_len >= PKERNFS_WINDOW ? best : lowest;
	return take_at(store, *block, wish->count);
}

/* Takes up to wish->count blocks in one run; 0: no block is free. */
u32 pkernfs_space_take(struct pkernfs_store *store, const struct pkernfs_wish *wish, u32 *block)
{
	u32 count;

	if (!store->nr_free)
		return 0;
	count = take_near(store, wish, block);
	if (!count && is_large(wish))
		count = take_window(store, wish, block);
	if (!count)
		count = take_first(store, wish, block);
	return count;
}
