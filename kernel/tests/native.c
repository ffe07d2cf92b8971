// SPDX-License-Identifier: GPL-2.0-only
/* The range of a store: what was written into it, in which order, and how it was before. */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <linux/bitmap.h>
#include <linux/minmax.h>
#include <linux/slab.h>

#include "native_range.h"

struct pkn *pkn_current;

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

	assert(pkn_current && at >= pkn_current->memory && at < pkn_current->memory + pkn_current->size);
	assert(!((at - pkn_current->memory) % 8) && !(bytes % 8));
	note_store(pkn_current, at - pkn_current->memory, bytes, bytes == 8 ? PKN_WORD : PKN_BODY);
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
	of(backing)->zeroed += count * BLOCK;
	return zero_bytes(of(backing), block * BLOCK, count * BLOCK);
}

static int zero_part(struct pkernfs_backing *backing, u32 block, u32 offset, u32 bytes)
{
	assert(block < backing->nr_blocks && offset + (u64)bytes <= BLOCK);
	of(backing)->zeroed += bytes;
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
		.say = say, .alarm = say,
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
	pkn_current = n;
	return n->store;
}

struct pkernfs_backing *pkn_backing(struct pkn *n)
{
	pkn_current = n;
	return &n->backing;
}

u64 pkn_zeroed(struct pkn *n)
{
	return n->zeroed;
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

int pkn_make(struct pkn *n, const char *label, u32 page_blocks, bool force)
{
	static const u8 uuid[16] = "pkernfs-test-id";
	const struct pkernfs_attr root = attr_of(n, 0755);

	pkn_current = n;
	return pkernfs_store_make(&n->backing, uuid, label, page_blocks, &root, force);
}

int pkn_open(struct pkn *n)
{
	pkn_current = n;
	return pkernfs_store_open(&n->backing, false, &n->store);
}

int pkn_open_read_only(struct pkn *n)
{
	pkn_current = n;
	return pkernfs_store_open(&n->backing, true, &n->store);
}

void pkn_close(struct pkn *n)
{
	pkn_current = n;
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
