// SPDX-License-Identifier: GPL-2.0-only
/*
 * The extents of one file: found in the slots where they are stored, changed as
 * an array of all of them that is then written anew.
 */
#include "store_private.h"

static const struct pkernfs_extent *extent_at(struct pkernfs_store *store,
					      const struct pkernfs_inode *inode, u32 index)
{
	const struct pkernfs_extent_page *page;
	u32 slot;

	if (!inode->nr_pages)
		return (const struct pkernfs_extent *)inode->payload + index;
	slot = le32_to_cpu(pkernfs_page_refs(inode)[index / PKERNFS_EXTENTS_PER_PAGE].slot);
	page = pkernfs_slot_addr(store, slot);
	return &page->extents[index % PKERNFS_EXTENTS_PER_PAGE];
}

void pkernfs_extent_get(struct pkernfs_store *store, const struct pkernfs_inode *inode,
			u32 index, struct pkernfs_run *run)
{
	const struct pkernfs_extent *extent = extent_at(store, inode, index);

	run->file_block = le32_to_cpu(extent->file_block);
	run->block = le32_to_cpu(extent->block);
	run->count = le32_to_cpu(extent->count);
}

/* Index of the first extent that ends behind a block of the file. */
u32 pkernfs_extent_search(struct pkernfs_store *store, const struct pkernfs_inode *inode,
			  u32 file_block)
{
	u32 low = 0, high = le32_to_cpu(inode->nr_extents);

	while (low < high) {
		u32 mid = low + (high - low) / 2;
		struct pkernfs_run run;

		pkernfs_extent_get(store, inode, mid, &run);
		if (pkernfs_run_end(&run) > file_block)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

bool pkernfs_node_map(struct pkernfs_store *store, const struct pkernfs_node *node,
		      u32 file_block, u32 *block, u32 *count)
{
	const struct pkernfs_inode *inode = node->inode;
	u32 index = pkernfs_extent_search(store, inode, file_block);
	struct pkernfs_run run;

	*block = 0;
	if (index == le32_to_cpu(inode->nr_extents)) {
		*count = U32_MAX - file_block;
		return false;
	}
	pkernfs_extent_get(store, inode, index, &run);
	if (file_block < run.file_block) {
		*count = run.file_block - file_block;
		return false;
	}
	*block = run.block + (file_block - run.file_block);
	*count = pkernfs_run_end(&run) - file_block;
	return true;
}

static int runs_grow(struct pkernfs_runs *runs)
{
	const u32 max = runs->max ? runs->max * 2 : 64;
	struct pkernfs_run *v = kvmalloc_array(max, sizeof(*v), PKERNFS_GFP);

	if (!v)
		return -ENOMEM;
	if (runs->nr)
		memcpy(v, runs->v, runs->nr * sizeof(*v));
	kvfree(runs->v);
	runs->v = v;
	runs->max = max;
	return 0;
}

/* Adds a run behind the last, or makes that longer. */
int pkernfs_runs_push(struct pkernfs_runs *runs, u32 file_block, u32 block, u32 count)
{
	struct pkernfs_run *last = runs->nr ? &runs->v[runs->nr - 1] : NULL;
	int err;

	if (last && pkernfs_run_end(last) == file_block && last->block + last->count == block) {
		last->count += count;
		return 0;
	}
	if (runs->nr == runs->max) {
		err = runs_grow(runs);
		if (err)
			return err;
	}
	runs->v[runs->nr++] = (struct pkernfs_run){
		.file_block = file_block, .block = block, .count = count,
	};
	return 0;
}

void pkernfs_runs_drop(struct pkernfs_runs *runs)
{
	kvfree(runs->v);
}

static void write_runs(struct pkernfs_extent *to, const struct pkernfs_run *from, u32 count)
{
	for (; count; to++, from++, count--) {
		to->file_block = cpu_to_le32(from->file_block);
		to->block = cpu_to_le32(from->block);
		to->count = cpu_to_le32(from->count);
	}
}

static void write_page(struct pkernfs_store *store, const struct pkernfs_inode *draft,
		       const struct pkernfs_run *runs, u32 count, struct pkernfs_page_ref *ref)
{
	struct pkernfs_extent_page *page = store->page;
	void *addr;
	u32 slot;

	slot = pkernfs_slot_take(store, &addr);
	memset(page, 0, sizeof(*page));
	page->slot = cpu_to_le32(slot);
	page->count = cpu_to_le32(count);
	page->ino = draft->ino;
	page->seq = draft->seq;
	write_runs(page->extents, runs, count);
	ref->slot = page->slot;
	ref->checksum = cpu_to_le32(pkernfs_page_checksum(store->super, page));
	pkernfs_copy((u8 *)addr + sizeof(page->commit), (u8 *)page + sizeof(page->commit),
		     sizeof(*page) - sizeof(page->commit));
}

/* Puts all extents into the draft, or into pages that it names; slots are reserved. */
void pkernfs_extents_write(struct pkernfs_store *store, struct pkernfs_inode *draft,
			   const struct pkernfs_runs *runs)
{
	struct pkernfs_page_ref *ref = (struct pkernfs_page_ref *)draft->payload;
	u32 nr_pages = pkernfs_pages_for(runs->nr);
	u32 done, count;

	memset(draft->payload, 0, sizeof(draft->payload));
	draft->nr_extents = cpu_to_le32(runs->nr);
	draft->nr_pages = cpu_to_le32(nr_pages);
	if (!nr_pages) {
		write_runs((struct pkernfs_extent *)draft->payload, runs->v, runs->nr);
		return;
	}
	for (done = 0; done < runs->nr; done += count, ref++) {
		count = min_t(u32, runs->nr - done, PKERNFS_EXTENTS_PER_PAGE);
		write_page(store, draft, runs->v + done, count, ref);
	}
}

void pkernfs_extents_free_slots(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	u32 i;

	for (i = 0; i < le32_to_cpu(inode->nr_pages); i++)
		pkernfs_slot_free(store, le32_to_cpu(pkernfs_page_refs(inode)[i].slot));
}

void pkernfs_extents_free_blocks(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	u32 i;

	for (i = 0; i < le32_to_cpu(inode->nr_extents); i++) {
		struct pkernfs_run run;

		pkernfs_extent_get(store, inode, i, &run);
		pkernfs_space_free(store, run.block, run.count);
	}
}

/* Copies what lies in [from, to) of the file; extents may be cut at both ends. */
int pkernfs_runs_copy(struct pkernfs_store *store, const struct pkernfs_inode *inode,
		      u32 from, u32 to, struct pkernfs_runs *runs)
{
	u32 i = pkernfs_extent_search(store, inode, from);
	int err;

	for (; i < le32_to_cpu(inode->nr_extents); i++) {
		struct pkernfs_run run;
		u32 start, end;

		pkernfs_extent_get(store, inode, i, &run);
		if (run.file_block >= to)
			break;
		start = max(run.file_block, from);
		end = min(pkernfs_run_end(&run), to);
		err = pkernfs_runs_push(runs, start, run.block + (start - run.file_block),
					end - start);
		if (err)
			return err;
	}
	return 0;
}
