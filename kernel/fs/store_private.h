/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the metadata code share (see store.h); nobody else includes it.
 */
#ifndef PKERNFS_STORE_PRIVATE_H
#define PKERNFS_STORE_PRIVATE_H

#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/lockdep.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/stat.h>
#include <linux/string.h>

#include "store.h"

#define PKERNFS_BLOCK_SIZE	(1U << PKERNFS_BLOCK_SHIFT)
#define PKERNFS_SLOT_SIZE	(1U << PKERNFS_SLOT_SHIFT)
/* A mapping of 1 GiB, in blocks. */
#define PKERNFS_WINDOW		512U
/* Slots that only what needs no more space in the end may use, see slots.c. */
#define PKERNFS_RESERVE		4U
/* So many slots stay free beyond the reserve when a metadata block is given back. */
#define PKERNFS_SLACK		128U
/* Later than any sequence number or inode number that can come to be. */
#define PKERNFS_SEQ_MAX		((u64)S64_MAX)

/*
 * No memory is reclaimed from filesystems while the store is locked: that could
 * need the store.
 */
#define PKERNFS_GFP		GFP_NOFS

/* A metadata block: mapped as long as it is one. */
struct pkernfs_meta {
	struct rb_node by_block;
	struct list_head chain;
	u32 block;
	u32 order;		/* grows along the chain */
	u32 nr_free;
	u8 *addr;
	DECLARE_BITMAP(used, PKERNFS_SLOTS_PER_BLOCK);
	DECLARE_BITMAP(damaged, PKERNFS_SLOTS_PER_BLOCK);	/* kept as they are */
};

/* What was left out when the store was opened, see damage.c. */
struct pkernfs_damage {
	char reason[96];	/* why the inode that was checked last is none */
	char *text;		/* a line for each, or NULL */
	u32 length;
	u32 nr_quarantined;	/* slots */
	u32 nr_lost;		/* inodes without a place */
	u32 withheld;		/* blocks */
	bool withheld_told;
};

/* What is to be put right before anything else is written. */
struct pkernfs_repairs {
	struct pkernfs_super *broken;	/* the copy that is, or NULL */
	u64 nr_leftovers;		/* committed slots that do not count */
};

struct pkernfs_store {
	struct pkernfs_backing *backing;
	struct pkernfs_super *super;	/* a copy */
	u32 nr_blocks;
	u32 page_blocks;

	struct rb_root nodes;
	struct pkernfs_node *root;
	u64 nr_nodes;
	u64 next_seq;
	u64 next_ino;

	struct pkernfs_repairs due;
	struct pkernfs_damage damage;
	struct pkernfs_node *lost;	/* the directory that is not stored, or NULL */

	/* Blocks: used has a bit for all that is not free, limbo for those to be asked again. */
	unsigned long *used;
	unsigned long *limbo;
	unsigned long *contested;	/* with two owners; NULL but while opening */
	u32 nr_free;
	u32 nr_limbo;
	bool limbo_told;
	u32 lowest;		/* no block below is free */

	/* Slots. */
	struct rb_root metas;
	struct list_head chain;
	struct pkernfs_meta *roomy;	/* none before it in the chain has a free slot */
	u32 nr_metas;
	u32 nr_empty;		/* of these, without a used slot and not block 0 */
	u64 slots_free;
	u32 max_pages;		/* no file has had more extent pages */

	/* One change at a time is built here. */
	struct pkernfs_inode *draft;
	struct pkernfs_extent_page *page;
};

/* A run of blocks of a file: struct pkernfs_extent in the byte order of the CPU. */
struct pkernfs_run {
	u32 file_block;
	u32 block;
	u32 count;
};

struct pkernfs_runs {
	struct pkernfs_run *v;
	u32 nr;
	u32 max;
};

/*
 * Every store to the range goes through these three or through the backing's
 * zero functions. The user-space tests define pkernfs_stored() to record them.
 */
#ifndef pkernfs_stored
static inline void pkernfs_stored(const void *addr, size_t bytes)
{
}
#endif

/* One word that changes at once; whatever was stored before is seen before it. */
static inline void pkernfs_put64(__le64 *addr, u64 value)
{
	smp_wmb();	/* what the word makes valid comes before it */
	WRITE_ONCE(*addr, cpu_to_le64(value));
	smp_wmb();	/* and what is done because of it comes after */
	pkernfs_stored(addr, sizeof(*addr));
}

static inline void pkernfs_copy(void *addr, const void *from, size_t bytes)
{
	memcpy(addr, from, bytes);
	pkernfs_stored(addr, bytes);
}

static inline void pkernfs_wipe(void *addr, size_t bytes)
{
	memset(addr, 0, bytes);
	pkernfs_stored(addr, bytes);
}

static inline struct pkernfs_super *pkernfs_super_at(void *block0, u32 slot)
{
	return block0 + (slot << PKERNFS_SLOT_SHIFT);
}

/* store.c */
void pkernfs_assert_locked(const struct pkernfs_store *store);
u32 pkernfs_crc(u32 crc, const void *data, size_t bytes);
u32 pkernfs_inode_checksum(const struct pkernfs_super *super, const struct pkernfs_inode *inode);
u32 pkernfs_page_checksum(const struct pkernfs_super *super,
			  const struct pkernfs_extent_page *page);
u32 pkernfs_super_checksum(const struct pkernfs_super *super);
u32 pkernfs_header_checksum(const struct pkernfs_super *super,
			    const struct pkernfs_meta_header *header);
u64 pkernfs_header_next(const struct pkernfs_super *super, u32 block, u32 next);
struct pkernfs_meta_header *pkernfs_meta_header(const struct pkernfs_meta *meta);

/*
 * One atomic step: begin copies the live slot into store->draft, the caller
 * changes that, commit makes it count.
 */
struct pkernfs_step {
	struct pkernfs_node *node;
	const struct pkernfs_runs *runs;	/* the new extents; NULL: as they are */
	struct pkernfs_node *victim;		/* goes in the same step, or NULL */
	bool shrinks;				/* may use the reserve for good */
};

struct pkernfs_inode *pkernfs_step_begin(struct pkernfs_store *store,
					 const struct pkernfs_node *node);
int pkernfs_step_commit(struct pkernfs_store *store, const struct pkernfs_step *step);

/* load.c */
int pkernfs_load(struct pkernfs_store *store);

/* live.c */
typedef int (*pkernfs_slot_fn)(struct pkernfs_store *store, struct pkernfs_inode *inode,
			       u32 slot, void *data);
int pkernfs_each_committed(struct pkernfs_store *store, pkernfs_slot_fn fn, void *data);
int pkernfs_load_live(struct pkernfs_store *store, u64 *nr_leftovers);

/* lost.c */
int pkernfs_load_tree(struct pkernfs_store *store);
void pkernfs_lost_drop(struct pkernfs_store *store);

/* damage.c */
int pkernfs_quarantine(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot,
		       bool believed);
__printf(3, 4)
int pkernfs_damage_lost(struct pkernfs_store *store, const struct pkernfs_node *node,
			const char *fmt, ...);
void pkernfs_damage_settle(struct pkernfs_store *store);
int pkernfs_no_space(struct pkernfs_store *store);
void pkernfs_damage_drop(struct pkernfs_store *store);

/* verify.c */
#define refuse(store, err, fmt, ...) \
	((store)->backing->say((store)->backing, fmt, ##__VA_ARGS__), (err))
#define damaged(store, fmt, ...)	refuse(store, -EUCLEAN, fmt, ##__VA_ARGS__)
/* Not said at once: damage to one inode is no reason to refuse the store. */
#define because(store, fmt, ...) \
	scnprintf((store)->damage.reason, sizeof((store)->damage.reason), fmt, ##__VA_ARGS__)
#define bad_slot(store, fmt, ...)	(because(store, fmt, ##__VA_ARGS__), -EUCLEAN)

static inline bool pkernfs_is_zero(const void *data, size_t bytes)
{
	return !memchr_inv(data, 0, bytes);
}

bool pkernfs_name_valid(const u8 *name, u32 len);
int pkernfs_check_slot(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot);
int pkernfs_check_inode(struct pkernfs_store *store, const struct pkernfs_inode *inode);
int pkernfs_check_file(struct pkernfs_store *store, const struct pkernfs_inode *inode);

/* space.c */
int pkernfs_space_init(struct pkernfs_store *store);
void pkernfs_space_destroy(struct pkernfs_store *store);
bool pkernfs_space_claim(struct pkernfs_store *store, u32 block, u32 count);
int pkernfs_space_contest(struct pkernfs_store *store, u32 block, u32 count);
bool pkernfs_space_contested(const struct pkernfs_store *store, u32 block, u32 count);
void pkernfs_space_withhold(struct pkernfs_store *store);

/* Where a run of a file would lie best. */
struct pkernfs_wish {
	u32 file_block;
	u32 count;
	u64 file_blocks;			/* of the whole file */
	const struct pkernfs_run *before;	/* neighbours in the file, or NULL */
	const struct pkernfs_run *after;
};

u32 pkernfs_space_take(struct pkernfs_store *store, const struct pkernfs_wish *wish, u32 *block);
void pkernfs_space_untake(struct pkernfs_store *store, u32 block, u32 count);
void pkernfs_space_free(struct pkernfs_store *store, u32 block, u32 count);
void pkernfs_space_collect(struct pkernfs_store *store);

/* slots.c */
void pkernfs_slots_destroy(struct pkernfs_store *store);
struct pkernfs_meta *pkernfs_meta_find(struct pkernfs_store *store, u32 block);
struct pkernfs_meta *pkernfs_meta_add(struct pkernfs_store *store, u32 block, void *addr);
void *pkernfs_slot_addr(struct pkernfs_store *store, u32 slot);
bool pkernfs_slot_is_free(struct pkernfs_store *store, u32 slot);
bool pkernfs_slot_claim(struct pkernfs_store *store, u32 slot);
int pkernfs_slots_reserve(struct pkernfs_store *store, u32 need, u32 back, u32 nr_pages,
			  bool shrinks);
u32 pkernfs_slot_take(struct pkernfs_store *store, void **addr);
void pkernfs_slot_free(struct pkernfs_store *store, u32 slot);
void pkernfs_slots_settle(struct pkernfs_store *store);
u64 pkernfs_slots_reserved(const struct pkernfs_store *store);

/* extent.c */
static inline u32 pkernfs_pages_for(u32 nr_extents)
{
	return nr_extents <= PKERNFS_INLINE_EXTENTS ?
		0 : DIV_ROUND_UP(nr_extents, PKERNFS_EXTENTS_PER_PAGE);
}

static inline const struct pkernfs_page_ref *pkernfs_page_refs(const struct pkernfs_inode *inode)
{
	return (const struct pkernfs_page_ref *)inode->payload;
}

static inline u32 pkernfs_run_end(const struct pkernfs_run *run)
{
	return run->file_block + run->count;
}

void pkernfs_extent_get(struct pkernfs_store *store, const struct pkernfs_inode *inode,
			u32 index, struct pkernfs_run *run);
u32 pkernfs_extent_search(struct pkernfs_store *store, const struct pkernfs_inode *inode,
			  u32 file_block);
int pkernfs_runs_copy(struct pkernfs_store *store, const struct pkernfs_inode *inode,
		      u32 from, u32 to, struct pkernfs_runs *runs);
int pkernfs_runs_push(struct pkernfs_runs *runs, u32 file_block, u32 block, u32 count);
void pkernfs_runs_drop(struct pkernfs_runs *runs);
void pkernfs_extents_write(struct pkernfs_store *store, struct pkernfs_inode *draft,
			   const struct pkernfs_runs *runs);
void pkernfs_extents_free_slots(struct pkernfs_store *store, const struct pkernfs_inode *inode);
void pkernfs_extents_free_blocks(struct pkernfs_store *store, const struct pkernfs_inode *inode);

/* node.c */
struct pkernfs_node *pkernfs_node_new(struct pkernfs_store *store, u32 slot,
				      const struct pkernfs_inode *inode);
bool pkernfs_node_insert(struct pkernfs_store *store, struct pkernfs_node *node);
bool pkernfs_node_link(struct pkernfs_node *dir, struct pkernfs_node *node);
void pkernfs_node_unlink_name(struct pkernfs_node *node);
struct pkernfs_node *pkernfs_node_lowest(struct pkernfs_store *store);
struct pkernfs_node *pkernfs_node_higher(struct pkernfs_node *node);
void pkernfs_node_free(struct pkernfs_store *store, struct pkernfs_node *node);

static inline bool pkernfs_is_dir(const struct pkernfs_inode *inode)
{
	return S_ISDIR(le32_to_cpu(inode->mode));
}

static inline bool pkernfs_is_lost_dir(const struct pkernfs_node *node)
{
	return node->ino == PKERNFS_LOST_INO;
}

#endif /* PKERNFS_STORE_PRIVATE_H */
