/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The metadata code over a range in ordinary memory, as a flat interface for the
 * C tests and for tests/native.py.
 *
 * Every store to the range is recorded: what replaying the first n of them onto the
 * memory of before gives is what a crash after the n-th leaves. Functions return 0
 * or a negative errno if they don't say otherwise. Files are named by their path.
 */
#ifndef PKERNFS_TESTS_NATIVE_H
#define PKERNFS_TESTS_NATIVE_H

#include <linux/types.h>

#include "../fs/store.h"

#define BLOCK		(1UL << PKERNFS_BLOCK_SHIFT)
#define FILE_MODE	(S_IFREG | 0644)
#define DIR_MODE	(S_IFDIR | 0755)

struct pkn;

/* What an entry of the log is. */
enum pkn_kind {
	PKN_WORD,	/* 8 bytes, seen at once: a commit, a link, a time */
	PKN_BODY,	/* memory that nothing points to yet, in any order */
	PKN_ZERO,	/* a block or a part of one is zeroed */
	PKN_DATA,	/* the user of a file, or a test, writes */
};

struct pkn_entry {
	u64 offset;
	u32 bytes;
	u32 kind;
	const u8 *old;
	const u8 *new;
};

struct pkn *pkn_new(u32 nr_blocks, u64 base);
void pkn_free(struct pkn *n);
u8 *pkn_memory(struct pkn *n);
struct pkernfs_store *pkn_store(struct pkn *n);
struct pkernfs_backing *pkn_backing(struct pkn *n);
/* All that say() was told since the last call, lines ending in a newline. */
const char *pkn_said(struct pkn *n);

/* Bytes that the store had zeroed. */
u64 pkn_zeroed(struct pkn *n);

/* The log. Without recording, only pages that were stored to are remembered. */
void pkn_record(struct pkn *n, bool on);
u64 pkn_log_size(struct pkn *n);
void pkn_log_entry(struct pkn *n, u64 index, struct pkn_entry *entry);
/* Undoes everything after the first size entries; the store must be closed. */
void pkn_rollback(struct pkn *n, u64 size);
/* A store by a test. */
void pkn_poke(struct pkn *n, u64 offset, const void *data, u32 bytes);
/* Not recording: the memory as it is now is what pkn_restore() goes back to. */
void pkn_keep(struct pkn *n);
void pkn_restore(struct pkn *n);

int pkn_make(struct pkn *n, const char *label, u32 page_blocks, bool force);
int pkn_open(struct pkn *n);
int pkn_open_read_only(struct pkn *n);
void pkn_close(struct pkn *n);
void pkn_usage(struct pkn *n, struct pkernfs_usage *usage);
/* A freed block that is busy is not handed out again. */
void pkn_set_busy(struct pkn *n, u32 block, bool busy);

int pkn_create(struct pkn *n, const char *path, u32 mode, const char *target);
/* keep: as if it was still open; *ino is then for pkn_release(). */
int pkn_unlink(struct pkn *n, const char *path, bool keep, u64 *ino);
int pkn_release(struct pkn *n, u64 ino);
int pkn_rename(struct pkn *n, const char *from, const char *to);
int pkn_resize(struct pkn *n, const char *path, u64 size);
int pkn_punch(struct pkn *n, const char *path, u32 file_block, u32 count);
int pkn_allocate(struct pkn *n, const char *path, u32 file_block, u32 count, u64 new_size);
int pkn_chmod(struct pkn *n, const char *path, u32 mode);
/* As the module does it: blocks and size first, then the data. */
int pkn_write(struct pkn *n, const char *path, u64 offset, const void *data, u32 bytes);
/* Bytes of a file, holes as zero. */
int pkn_read(struct pkn *n, const char *path, u64 offset, void *data, u32 bytes);
/* CRC-32 of the content of a file: every page that is not zero, with its number. 0: no file. */
u32 pkn_digest(struct pkn *n, const char *path);
/*
 * One line per inode, parents first: path, ino, mode in octal, size, and extents as
 * file_block:block:count with commas or the target, separated by tabs. Returns the length,
 * also when it does not fit.
 */
u64 pkn_dump(struct pkn *n, char *buffer, u64 size);

struct pkernfs_node *pkn_node(struct pkn *n, const char *path);

#endif /* PKERNFS_TESTS_NATIVE_H */
