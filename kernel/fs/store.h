/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata of one store: what is done to the bytes that format.h defines.
 *
 * This part knows nothing of the VFS. It also compiles in user space
 * (kernel/tests), where every store to the range is recorded, so that a crash
 * between any two of them can be replayed.
 *
 *   store.c   make, open, close; commit of one step
 *   remains.c is there a store, or what is left of one?
 *   load.c    what is believed of a range: super blocks and chain; repairs what a
 *             crash left
 *   live.c    which inodes count, and whose the blocks are
 *   lost.c    the tree, and the directory for what has no place in it
 *   damage.c  what is left out, and what must stay untouched because of it
 *   verify.c  what can be said of one inode
 *   space.c   free blocks (derived, never stored)
 *   slots.c   metadata blocks and their free slots (likewise)
 *   extent.c  the extents of one file
 *   resize.c  its blocks and size: allocate, truncate, punch
 *   node.c    files, directories and symlinks: create, remove, rename
 */
#ifndef PKERNFS_STORE_H
#define PKERNFS_STORE_H

#include <linux/rbtree.h>
#include <linux/types.h>

#include "../format.h"

struct pkernfs_store;
struct rw_semaphore;

/* The largest size of a file: the file block numbers of extents are 32 bits wide. */
#define PKERNFS_FILE_MAX	((u64)U32_MAX << PKERNFS_BLOCK_SHIFT)

/*
 * The range of memory behind a store. Metadata blocks stay mapped as long as
 * the store is open; data blocks only for the duration of one call.
 */
struct pkernfs_backing {
	u64 base;		/* physical address of block 0 */
	u32 nr_blocks;
	void *(*map_meta)(struct pkernfs_backing *b, u32 block);	/* NULL: no memory */
	void (*unmap_meta)(struct pkernfs_backing *b, u32 block, void *addr);
	int (*zero)(struct pkernfs_backing *b, u32 block, u32 count);
	int (*zero_part)(struct pkernfs_backing *b, u32 block, u32 offset, u32 bytes);
	/* May this block, just freed, be handed out again now? NULL: always. */
	bool (*idle)(struct pkernfs_backing *b, u32 block);
	/* Says in one line (no newline) why a store is refused or what was repaired. */
	__printf(2, 3)
	void (*say)(struct pkernfs_backing *b, const char *fmt, ...);
	/* The same for damage that something is lost by. */
	__printf(2, 3)
	void (*alarm)(struct pkernfs_backing *b, const char *fmt, ...);
	/* What serialises the calls, for lockdep; NULL: not checked. */
	struct rw_semaphore *lock;
};

struct pkernfs_attr {
	u32 mode, uid, gid;
	s64 now_ns;
};

/* An inode of the store, in memory as long as the store is open. */
struct pkernfs_node {
	u64 ino;
	u32 slot;			/* the live inode slot */
	u32 name_hash;			/* order of parent->names */
	const struct pkernfs_inode *inode;	/* where that slot is mapped */
	u32 nr_children;		/* of a directory */
	u32 nr_subdirs;
	bool orphan;			/* unlinked but still open: gone after a kexec */
	bool reached;			/* from the root, while the tree is built */
	char *alias;			/* its name in lost+found, or NULL: the stored one */
	struct pkernfs_node *parent;	/* the root's is itself; of an orphan: NULL */
	struct rb_node by_ino;		/* store->nodes */
	struct rb_node by_name;		/* parent->names */
	struct rb_node by_child;	/* parent->children, ordered by ino */
	struct rb_root names;
	struct rb_root children;
	unsigned long user;		/* bits that are free for the user of this interface */
};

struct pkernfs_usage {
	u64 blocks, blocks_free;	/* data blocks: files' and free */
	u64 blocks_limbo;		/* in no file, but somebody may still reach them */
	u64 nodes, nodes_free;		/* nodes_free: as if all free blocks went to metadata */
};

/*
 * Locking: the caller serialises. Functions that change the store need it
 * exclusively, the others shared (the module uses one rw_semaphore; see
 * pkernfs_assert_locked() in store.c). Errors are negative errnos; a function that
 * fails has changed nothing.
 */

/*
 * -EINVAL: no store here; -EUCLEAN: its super blocks, chain or root are damaged; -EOPNOTSUPP: version or feature unknown;
 * -ENXIO: made for another base or size; -ENOMEM. Each with one line of say().
 * read_only: nothing is written. Before the store changes, _repair() has to be called.
 */
int pkernfs_store_open(struct pkernfs_backing *backing, bool read_only,
		       struct pkernfs_store **ret);
/* Puts right what a crash left over, if that was not done when the store was opened. */
void pkernfs_store_repair(struct pkernfs_store *store);
/* What was damaged when the store was opened, a line for each; "" if nothing was. */
const char *pkernfs_store_damage(struct pkernfs_store *store, u32 *length);
void pkernfs_store_close(struct pkernfs_store *store);
/*
 * 1: the range holds a store or what is left of one; 0: nothing of ours; or -ENOMEM.
 * block0: where the first block is mapped already, or NULL.
 */
int pkernfs_store_remains(struct pkernfs_backing *backing, void *block0);
/* -EEXIST: there is, or was, a store and !force. Whatever else lies there is lost. */
int pkernfs_store_make(struct pkernfs_backing *backing, const u8 uuid[16],
		       const char *label, u32 page_blocks,
		       const struct pkernfs_attr *root, bool force);
/*
 * Blocks that somebody may still reach are in limbo: in no file, and not free before
 * backing->idle() says so. Each change of the store asks again; _collect() does just that.
 * _recheck() asks for all that seems free: for a store that was just opened, while there
 * is somebody who reached blocks when it was open before.
 */
void pkernfs_store_collect(struct pkernfs_store *store);
void pkernfs_store_recheck(struct pkernfs_store *store);
void pkernfs_store_usage(struct pkernfs_store *store, struct pkernfs_usage *usage);
const struct pkernfs_super *pkernfs_store_super(struct pkernfs_store *store);
struct pkernfs_node *pkernfs_store_root(struct pkernfs_store *store);
/* The live inode slot: valid until the node changes; read only. */
const struct pkernfs_inode *pkernfs_node_inode(struct pkernfs_store *store,
					       const struct pkernfs_node *node);
/* Is this block metadata (then *addr is where it is mapped)? */
bool pkernfs_store_meta_block(struct pkernfs_store *store, u32 block, void **addr);

struct pkernfs_node *pkernfs_node_find(struct pkernfs_store *store, u64 ino);
struct pkernfs_node *pkernfs_node_lookup(struct pkernfs_node *dir,
					 const char *name, u32 len);
/* The child with the lowest ino >= from, or NULL: order and cookie of readdir. */
struct pkernfs_node *pkernfs_node_next(struct pkernfs_node *dir, u64 from);
/* Name of a node, not NUL-terminated beyond len; valid like its inode slot. */
const char *pkernfs_node_name(struct pkernfs_store *store,
			      const struct pkernfs_node *node, u32 *len);

/*
 * create, unlink and rename set the times of the directories, and the ctime of
 * what they change, to now_ns; allocate, resize and punch set mtime and ctime of
 * the file, and set_attr its ctime. A name that no directory may hold ("", ".",
 * "..", with a slash or a NUL) is -EINVAL, an orphan as directory -ENOENT. What a
 * damaged directory was the place of lies in lost+found, which is not stored: from there
 * it can be moved or unlinked, but nothing can be brought there (-EPERM), and the
 * directory itself stays (-EBUSY).
 */

/* target: of a symlink, else NULL. -EEXIST, -ENAMETOOLONG, -ENOSPC, -ENOMEM. */
int pkernfs_node_create(struct pkernfs_store *store, struct pkernfs_node *dir,
			const char *name, u32 len, const struct pkernfs_attr *attr,
			const char *target, u32 target_len, struct pkernfs_node **ret);
/*
 * Takes the name away at once; the content goes with pkernfs_node_release().
 * -ENOTEMPTY for a directory with children.
 */
int pkernfs_node_unlink(struct pkernfs_store *store, struct pkernfs_node *node, s64 now_ns);
/* Frees an orphan and its blocks; the last user is gone. */
void pkernfs_node_release(struct pkernfs_store *store, struct pkernfs_node *node);
/*
 * victim: what has that name now (becomes an orphan), or NULL. -EEXIST: there is
 * one but victim is NULL; -ENOENT: victim is another; -ENOTEMPTY, -EISDIR, -ENOTDIR:
 * it can't be replaced; -EINVAL: into itself. Onto itself: nothing happens.
 */
int pkernfs_node_rename(struct pkernfs_store *store, struct pkernfs_node *node,
			struct pkernfs_node *dir, const char *name, u32 len,
			struct pkernfs_node *victim, s64 now_ns);
int pkernfs_node_set_attr(struct pkernfs_store *store, struct pkernfs_node *node,
			  const struct pkernfs_attr *attr);
/* In place, one word each; a NULL time stays. Never fails. */
void pkernfs_node_set_times(struct pkernfs_store *store, struct pkernfs_node *node,
			    const s64 *atime_ns, const s64 *mtime_ns, const s64 *ctime_ns);

/*
 * What lies at file_block: true and the run from there on (block, count), or
 * false and the length of the hole in *count (U32_MAX - file_block if endless).
 */
bool pkernfs_node_map(struct pkernfs_store *store, const struct pkernfs_node *node,
		      u32 file_block, u32 *block, u32 *count);
/*
 * Fills the holes in [file_block, +count) with zeroed blocks and raises size to
 * at least new_size (0: as it is), in one step. Prefers runs whose file offset and
 * physical address are congruent modulo 1 GiB. All or nothing: -ENOSPC, -ENOMEM,
 * -EFBIG. Bytes that a higher size exposes are zeroed first: raise the size, then
 * write the data, not the other way round.
 */
int pkernfs_node_allocate(struct pkernfs_store *store, struct pkernfs_node *node,
			  u32 file_block, u32 count, u64 new_size, s64 now_ns);
/*
 * The same in three calls, so that the store need not be locked while memory is zeroed: the
 * RAM of a guest takes its time. _reserve() takes the blocks, and nobody else gets them;
 * _zero() needs no lock; _commit() makes them part of the file, or gives them back if there
 * was an err, and has to follow in any case. Neither blocks nor size of the file may change
 * meanwhile, names and attributes may. After a crash on the way the blocks are free.
 */
struct pkernfs_filling;

int pkernfs_node_reserve(struct pkernfs_store *store, struct pkernfs_node *node, u32 file_block,
			 u32 count, u64 new_size, struct pkernfs_filling **ret);
/* -EINTR: stop() said so, which is asked for each GiB; NULL: never. */
int pkernfs_filling_zero(struct pkernfs_backing *backing, const struct pkernfs_filling *fill,
			 bool (*stop)(void));
int pkernfs_node_commit(struct pkernfs_store *store, struct pkernfs_node *node,
			struct pkernfs_filling *fill, int err, s64 now_ns);
/*
 * Either way, to the byte. What a growth exposes is zero. Caller has taken mappings
 * away before a shrink. Blocks beyond the new size go, also when size is as before.
 */
int pkernfs_node_resize(struct pkernfs_store *store, struct pkernfs_node *node,
			u64 size, s64 now_ns);
/*
 * Zeroes what lies past the end of a file in its last page. No step: nothing of it
 * is content, so a crash on the way leaves the file as it is. -ENOMEM.
 */
int pkernfs_node_zero_tail(struct pkernfs_store *store, struct pkernfs_node *node);
/* Drops the whole blocks [file_block, +count); size stays. */
int pkernfs_node_punch(struct pkernfs_store *store, struct pkernfs_node *node,
		       u32 file_block, u32 count, s64 now_ns);

#endif /* PKERNFS_STORE_H */
