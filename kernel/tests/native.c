// SPDX-License-Identifier: GPL-2.0-only
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/crc32.h>
#include <linux/minmax.h>
#include <linux/slab.h>

#include "native.h"

#define BLOCK	(1UL << PKERNFS_BLOCK_SHIFT)
#define PAGE	(1UL << PKERNFS_SLOT_SHIFT)

struct logged {
	u64 offset;
	u32 bytes;
	u32 kind;
	u64 old;	/* in the arena; the new bytes follow */
};

struct pkn {
	struct pkernfs_backing backing;
	struct pkernfs_store *store;
	u64 size;
	u8 *memory;
	u8 *shadow;		/* memory before the store that is being looked at */
	unsigned long *written;	/* pages that may not be zero */
	unsigned long *busy;	/* blocks */
	void **mapped;		/* per block: stands for the memory that a mapping takes */

	bool recording;
	struct logged *log;
	u64 log_size, log_max;
	u8 *arena;
	u64 arena_size, arena_max;
	u64 *touched;		/* pages, when not recording */
	u64 nr_touched;
	unsigned long *is_touched;

	s64 now_ns;
	char *said;
	size_t said_size;
	char *said_before;
};

/* The range that stores go to: the code under test does not say. */
static struct pkn *current;

static void *xcalloc(size_t count, size_t size)
{
	void *p = calloc(count, size);

	if (!p)
		abort();
	return p;
}

static void *xgrow(void *p, u64 need, u64 *max, size_t size)
{
	if (need <= *max)
		return p;
	*max = need * 2;
	p = realloc(p, *max * size);
	if (!p)
		abort();
	return p;
}

static u8 *reserve(u64 bytes)
{
	u8 *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

static void log_store(struct pkn *n, u64 offset, u32 bytes, u32 kind)
{
	struct logged *entry;

	n->log = xgrow(n->log, n->log_size + 1, &n->log_max, sizeof(*n->log));
	n->arena = xgrow(n->arena, n->arena_size + 2ULL * bytes, &n->arena_max, 1);
	entry = &n->log[n->log_size++];
	*entry = (struct logged){ offset, bytes, kind, n->arena_size };
	memcpy(n->arena + n->arena_size, n->shadow + offset, bytes);
	memcpy(n->arena + n->arena_size + bytes, n->memory + offset, bytes);
	memcpy(n->shadow + offset, n->memory + offset, bytes);
	n->arena_size += 2ULL * bytes;
}

static void note_store(struct pkn *n, u64 offset, u32 bytes, u32 kind)
{
	u64 page;

	assert(offset + bytes <= n->size);
	for (page = offset / PAGE; page * PAGE < offset + bytes; page++) {
		__set_bit(page, n->written);
		if (!n->recording && !__test_and_set_bit(page, n->is_touched))
			n->touched[n->nr_touched++] = page;
	}
	if (n->recording)
		log_store(n, offset, bytes, kind);
}

void shim_stored(const void *addr, size_t bytes)
{
	const u8 *at = addr;

	assert(current && at >= current->memory && at < current->memory + current->size);
	assert(!((at - current->memory) % 8) && !(bytes % 8));
	note_store(current, at - current->memory, bytes, bytes == 8 ? PKN_WORD : PKN_BODY);
}

void pkn_poke(struct pkn *n, u64 offset, const void *data, u32 bytes)
{
	memcpy(n->memory + offset, data, bytes);
	note_store(n, offset, bytes, PKN_DATA);
}

static int zero_bytes(struct pkn *n, u64 offset, u64 bytes)
{
	const u64 end = offset + bytes;

	while (offset < end) {
		u32 part = min_t(u64, end - offset, PAGE - offset % PAGE);

		if (!test_bit(offset / PAGE, n->written)) {
			offset = find_next_bit(n->written, DIV_ROUND_UP(end, PAGE),
					       offset / PAGE) * PAGE;
			continue;
		}
		if (memchr_inv(n->memory + offset, 0, part)) {
			memset(n->memory + offset, 0, part);
			note_store(n, offset, part, PKN_ZERO);
		}
		offset += part;
	}
	return 0;
}

static struct pkn *of(struct pkernfs_backing *backing)
{
	return container_of(backing, struct pkn, backing);
}

static void *map_meta(struct pkernfs_backing *backing, u32 block)
{
	struct pkn *n = of(backing);

	assert(block < backing->nr_blocks && !n->mapped[block]);
	n->mapped[block] = kmalloc(1, GFP_NOFS);
	return n->mapped[block] ? n->memory + block * BLOCK : NULL;
}

static void unmap_meta(struct pkernfs_backing *backing, u32 block, void *addr)
{
	struct pkn *n = of(backing);

	assert(n->mapped[block] && addr == n->memory + block * BLOCK);
	kfree(n->mapped[block]);
	n->mapped[block] = NULL;
}

static int zero(struct pkernfs_backing *backing, u32 block, u32 count)
{
	assert(count && block + (u64)count <= backing->nr_blocks);
	return zero_bytes(of(backing), block * BLOCK, count * BLOCK);
}

static int zero_part(struct pkernfs_backing *backing, u32 block, u32 offset, u32 bytes)
{
	assert(block < backing->nr_blocks && offset + (u64)bytes <= BLOCK);
	return zero_bytes(of(backing), block * BLOCK + offset, bytes);
}

static bool idle(struct pkernfs_backing *backing, u32 block)
{
	return !test_bit(block, of(backing)->busy);
}

__printf(2, 3)
static void say(struct pkernfs_backing *backing, const char *fmt, ...)
{
	struct pkn *n = of(backing);
	char line[256];
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(line, sizeof(line) - 1, fmt, args);
	va_end(args);
	assert(len > 0 && len < (int)sizeof(line) - 1 && !strchr(line, '\n'));
	line[len++] = '\n';
	n->said = realloc(n->said, n->said_size + len + 1);
	memcpy(n->said + n->said_size, line, len);
	n->said_size += len;
	n->said[n->said_size] = 0;
}

const char *pkn_said(struct pkn *n)
{
	free(n->said_before);
	n->said_before = n->said;
	n->said = NULL;
	n->said_size = 0;
	return n->said_before ? n->said_before : "";
}

struct pkn *pkn_new(u32 nr_blocks, u64 base)
{
	struct pkn *n = xcalloc(1, sizeof(*n));
	u64 pages;

	n->size = nr_blocks * BLOCK;
	pages = n->size / PAGE;
	n->backing = (struct pkernfs_backing){
		.base = base, .nr_blocks = nr_blocks, .map_meta = map_meta,
		.unmap_meta = unmap_meta, .zero = zero, .zero_part = zero_part, .idle = idle,
		.say = say,
	};
	n->memory = reserve(n->size);
	n->shadow = reserve(n->size);
	n->touched = (u64 *)reserve(pages * sizeof(u64));
	n->written = xcalloc(BITS_TO_LONGS(pages), sizeof(long));
	n->is_touched = xcalloc(BITS_TO_LONGS(pages), sizeof(long));
	n->busy = xcalloc(BITS_TO_LONGS(nr_blocks), sizeof(long));
	n->mapped = xcalloc(nr_blocks, sizeof(*n->mapped));
	n->recording = true;
	n->now_ns = 1000000000;
	return n;
}

void pkn_free(struct pkn *n)
{
	pkn_close(n);
	munmap(n->memory, n->size);
	munmap(n->shadow, n->size);
	munmap(n->touched, n->size / PAGE * sizeof(u64));
	free(n->written);
	free(n->is_touched);
	free(n->busy);
	free(n->mapped);
	free(n->log);
	free(n->arena);
	free(n->said);
	free(n->said_before);
	free(n);
}

u8 *pkn_memory(struct pkn *n)
{
	return n->memory;
}

struct pkernfs_store *pkn_store(struct pkn *n)
{
	current = n;
	return n->store;
}

void pkn_record(struct pkn *n, bool on)
{
	n->recording = on;
}

u64 pkn_log_size(struct pkn *n)
{
	return n->log_size;
}

void pkn_log_entry(struct pkn *n, u64 index, struct pkn_entry *entry)
{
	const struct logged *logged = &n->log[index];

	assert(index < n->log_size);
	entry->offset = logged->offset;
	entry->bytes = logged->bytes;
	entry->kind = logged->kind;
	entry->old = n->arena + logged->old;
	entry->new = entry->old + logged->bytes;
}

void pkn_rollback(struct pkn *n, u64 size)
{
	assert(!n->store);
	while (n->log_size > size) {
		const struct logged *entry = &n->log[--n->log_size];

		memcpy(n->memory + entry->offset, n->arena + entry->old, entry->bytes);
		memcpy(n->shadow + entry->offset, n->arena + entry->old, entry->bytes);
		n->arena_size = entry->old;
	}
}

void pkn_keep(struct pkn *n)
{
	const u64 pages = n->size / PAGE;
	u64 page;

	for (page = 0; (page = find_next_bit(n->written, pages, page)) < pages; page++)
		memcpy(n->shadow + page * PAGE, n->memory + page * PAGE, PAGE);
	while (n->nr_touched)
		__clear_bit(n->touched[--n->nr_touched], n->is_touched);
}

void pkn_restore(struct pkn *n)
{
	while (n->nr_touched) {
		u64 page = n->touched[--n->nr_touched];

		memcpy(n->memory + page * PAGE, n->shadow + page * PAGE, PAGE);
		__clear_bit(page, n->is_touched);
	}
}

static struct pkernfs_attr attr_of(struct pkn *n, u32 mode)
{
	return (struct pkernfs_attr){ .mode = mode, .uid = 0, .gid = 0, .now_ns = ++n->now_ns };
}

int pkn_make(struct pkn *n, const char *label, u32 page_blocks, bool force)
{
	static const u8 uuid[16] = "pkernfs-test-id";
	const struct pkernfs_attr root = attr_of(n, 0755);

	current = n;
	return pkernfs_store_make(&n->backing, uuid, label, page_blocks, &root, force);
}

int pkn_open(struct pkn *n)
{
	current = n;
	return pkernfs_store_open(&n->backing, &n->store);
}

void pkn_close(struct pkn *n)
{
	current = n;
	if (n->store)
		pkernfs_store_close(n->store);
	n->store = NULL;
}

void pkn_usage(struct pkn *n, struct pkernfs_usage *usage)
{
	pkernfs_store_usage(n->store, usage);
}

void pkn_set_busy(struct pkn *n, u32 block, bool busy)
{
	if (busy)
		__set_bit(block, n->busy);
	else
		__clear_bit(block, n->busy);
}

/* The directory that a path leads to, and the name in it. */
static struct pkernfs_node *walk(struct pkn *n, const char *path, const char **name, u32 *len)
{
	struct pkernfs_node *node = pkernfs_store_root(n->store);

	current = n;
	for (path += *path == '/';; path += *len + 1) {
		*name = path;
		*len = strcspn(path, "/");
		if (!path[*len] || !node)
			return node;
		node = pkernfs_node_lookup(node, path, *len);
	}
}

struct pkernfs_node *pkn_node(struct pkn *n, const char *path)
{
	struct pkernfs_node *dir;
	const char *name;
	u32 len;

	dir = walk(n, path, &name, &len);
	return dir && len ? pkernfs_node_lookup(dir, name, len) : dir;
}

/* A regular file, as the VFS makes sure. */
static int find_file(struct pkn *n, const char *path, struct pkernfs_node **node)
{
	*node = pkn_node(n, path);
	if (!*node)
		return -ENOENT;
	return S_ISREG(le32_to_cpu(pkernfs_node_inode(n->store, *node)->mode)) ? 0 : -EINVAL;
}

int pkn_create(struct pkn *n, const char *path, u32 mode, const char *target)
{
	const struct pkernfs_attr attr = attr_of(n, mode);
	struct pkernfs_node *dir, *node;
	const char *name;
	u32 len;

	dir = walk(n, path, &name, &len);
	if (!dir)
		return -ENOENT;
	return pkernfs_node_create(n->store, dir, name, len, &attr, target,
				   target ? strlen(target) : 0, &node);
}

int pkn_unlink(struct pkn *n, const char *path, bool keep, u64 *ino)
{
	struct pkernfs_node *node = pkn_node(n, path);
	int err;

	if (!node)
		return -ENOENT;
	err = pkernfs_node_unlink(n->store, node, ++n->now_ns);
	if (err)
		return err;
	if (keep)
		*ino = node->ino;
	else
		pkernfs_node_release(n->store, node);
	return 0;
}

int pkn_release(struct pkn *n, u64 ino)
{
	struct pkernfs_node *node = pkernfs_node_find(n->store, ino);

	current = n;
	if (!node || !node->orphan)
		return -ENOENT;
	pkernfs_node_release(n->store, node);
	return 0;
}

int pkn_rename(struct pkn *n, const char *from, const char *to)
{
	struct pkernfs_node *node = pkn_node(n, from), *dir, *victim;
	const char *name;
	u32 len;
	int err;

	dir = walk(n, to, &name, &len);
	if (!node || !dir)
		return -ENOENT;
	victim = pkernfs_node_lookup(dir, name, len);
	err = pkernfs_node_rename(n->store, node, dir, name, len, victim, ++n->now_ns);
	if (!err && victim && victim->orphan)
		pkernfs_node_release(n->store, victim);
	return err;
}

int pkn_resize(struct pkn *n, const char *path, u64 size)
{
	struct pkernfs_node *node;
	int err = find_file(n, path, &node);

	return err ? err : pkernfs_node_resize(n->store, node, size, ++n->now_ns);
}

int pkn_punch(struct pkn *n, const char *path, u32 file_block, u32 count)
{
	struct pkernfs_node *node;
	int err = find_file(n, path, &node);

	if (err)
		return err;
	return pkernfs_node_punch(n->store, node, file_block, count, ++n->now_ns);
}

int pkn_allocate(struct pkn *n, const char *path, u32 file_block, u32 count, u64 new_size)
{
	struct pkernfs_node *node;
	int err = find_file(n, path, &node);

	if (err)
		return err;
	return pkernfs_node_allocate(n->store, node, file_block, count, new_size, ++n->now_ns);
}

int pkn_chmod(struct pkn *n, const char *path, u32 mode)
{
	struct pkernfs_node *node = pkn_node(n, path);
	const struct pkernfs_attr attr = attr_of(n, mode);

	return node ? pkernfs_node_set_attr(n->store, node, &attr) : -ENOENT;
}

/* Where a byte of a file is in memory, NULL in a hole; *bytes to the end of the block at most. */
static u8 *find_bytes(struct pkn *n, struct pkernfs_node *node, u64 offset, u32 *bytes)
{
	u32 block, count;

	*bytes = min_t(u64, *bytes, BLOCK - offset % BLOCK);
	if (!pkernfs_node_map(n->store, node, offset / BLOCK, &block, &count))
		return NULL;
	return n->memory + block * BLOCK + offset % BLOCK;
}

int pkn_write(struct pkn *n, const char *path, u64 offset, const void *data, u32 bytes)
{
	u32 first = offset / BLOCK, part;
	struct pkernfs_node *node;
	int err;

	err = find_file(n, path, &node);
	if (err)
		return err;
	err = pkernfs_node_allocate(n->store, node, first,
				    DIV_ROUND_UP(offset + bytes, BLOCK) - first,
				    offset + bytes, ++n->now_ns);
	for (; !err && bytes; offset += part, data += part, bytes -= part) {
		part = bytes;
		pkn_poke(n, find_bytes(n, node, offset, &part) - n->memory, data, part);
	}
	return err;
}

int pkn_read(struct pkn *n, const char *path, u64 offset, void *data, u32 bytes)
{
	struct pkernfs_node *node;
	u32 part;
	int err;

	err = find_file(n, path, &node);
	if (err)
		return err;
	for (; bytes; offset += part, data += part, bytes -= part) {
		const u8 *from;

		part = bytes;
		from = find_bytes(n, node, offset, &part);
		if (from)
			memcpy(data, from, part);
		else
			memset(data, 0, part);
	}
	return 0;
}

static u32 digest_page(struct pkn *n, const u8 *at, u64 number, u32 bytes, u32 crc)
{
	if (!test_bit((at - n->memory) / PAGE, n->written) || !memchr_inv(at, 0, bytes))
		return crc;
	crc = crc32_le(crc, &number, sizeof(number));
	return crc32_le(crc, at, bytes);
}

u32 pkn_digest(struct pkn *n, const char *path)
{
	struct pkernfs_node *node;
	u64 offset = 0, size;
	u32 crc = ~0, block, count;

	if (find_file(n, path, &node))
		return 0;
	size = le64_to_cpu(pkernfs_node_inode(n->store, node)->size);
	while (offset < size) {
		u64 end, at;

		if (!pkernfs_node_map(n->store, node, offset / BLOCK, &block, &count))
			block = 0;
		end = min_t(u64, offset + count * BLOCK, size);
		for (at = offset; block && at < end; at += PAGE)
			crc = digest_page(n, n->memory + block * BLOCK + (at - offset),
					  at / PAGE, min_t(u64, PAGE, end - at), crc);
		offset += count * BLOCK;
	}
	return ~crc;
}

static void dump_path(struct pkn *n, const struct pkernfs_node *node, FILE *out)
{
	const char *name;
	u32 len;

	if (node->parent == node)
		return;
	dump_path(n, node->parent, out);
	name = pkernfs_node_name(n->store, node, &len);
	fprintf(out, "/%.*s", (int)len, name);
}

static void dump_extents(struct pkn *n, const struct pkernfs_node *node, FILE *out)
{
	u32 at = 0, block, count;
	const char *comma = "";

	while (at < U32_MAX) {
		if (pkernfs_node_map(n->store, node, at, &block, &count)) {
			fprintf(out, "%s%u:%u:%u", comma, at, block, count);
			comma = ",";
		}
		at += count;
	}
}

static void dump_node(struct pkn *n, const struct pkernfs_node *node, FILE *out)
{
	const struct pkernfs_inode *inode = pkernfs_node_inode(n->store, node);
	const u32 mode = le32_to_cpu(inode->mode);
	const u64 size = le64_to_cpu(inode->size);

	if (node->parent == node)
		fputc('/', out);
	dump_path(n, node, out);
	fprintf(out, "\t%llu\t%o\t%llu\t", node->ino, mode, size);
	if (S_ISREG(mode))
		dump_extents(n, node, out);
	else if (S_ISLNK(mode))
		fprintf(out, "%.*s", (int)size, inode->payload);
	fputc('\n', out);
}

static void dump_tree(struct pkn *n, struct pkernfs_node *dir, FILE *out)
{
	struct pkernfs_node *node;

	dump_node(n, dir, out);
	for (node = pkernfs_node_next(dir, 0); node; node = pkernfs_node_next(dir, node->ino + 1))
		dump_tree(n, node, out);
}

u64 pkn_dump(struct pkn *n, char *buffer, u64 size)
{
	size_t length;
	char *text;
	FILE *out = open_memstream(&text, &length);

	current = n;
	dump_tree(n, pkernfs_store_root(n->store), out);
	fclose(out);
	if (size)
		memcpy(buffer, text, min_t(u64, length, size));
	free(text);
	return length;
}
