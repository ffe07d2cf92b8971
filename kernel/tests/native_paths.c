// SPDX-License-Identifier: GPL-2.0-only
/* Operations on a store by path, as the VFS would ask for them, and what is in it as text. */
#include <stdio.h>

#include <linux/bitmap.h>
#include <linux/crc32.h>
#include <linux/minmax.h>
#include <linux/slab.h>

#include "native_range.h"

/* The directory that a path leads to, and the name in it. */
static struct pkernfs_node *walk(struct pkn *n, const char *path, const char **name, u32 *len)
{
	struct pkernfs_node *node = pkernfs_store_root(n->store);

	pkn_current = n;
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

	pkn_current = n;
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

/* Any byte can be in a name: what could be taken for the end of a field is escaped. */
static void dump_text(const char *text, u32 len, FILE *out)
{
	for (; len--; text++) {
		if (*text > ' ' && *text < 0x7f && *text != '\\')
			fputc(*text, out);
		else
			fprintf(out, "\\x%02x", (u8)*text);
	}
}

static void dump_path(struct pkn *n, const struct pkernfs_node *node, FILE *out)
{
	const char *name;
	u32 len;

	if (node->parent == node)
		return;
	dump_path(n, node->parent, out);
	name = pkernfs_node_name(n->store, node, &len);
	fputc('/', out);
	dump_text(name, len, out);
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
		dump_text((const char *)inode->payload, size, out);
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

	pkn_current = n;
	dump_tree(n, pkernfs_store_root(n->store), out);
	fclose(out);
	if (size)
		memcpy(buffer, text, min_t(u64, length, size));
	free(text);
	return length;
}
