// SPDX-License-Identifier: GPL-2.0-only
/* The functions behind the shim headers. */
#include <stdio.h>

#include <linux/bitmap.h>
#include <linux/rbtree.h>
#include <linux/slab.h>

long shim_fail_at;
long shim_allocations;
long shim_live;

void *shim_alloc(size_t count, size_t size, bool zero)
{
	size_t bytes;
	void *p;

	shim_allocations++;
	if (shim_fail_at && !--shim_fail_at)
		return NULL;
	if (__builtin_mul_overflow(count, size, &bytes))
		return NULL;
	p = malloc(bytes ? bytes : 1);
	if (!p)
		abort();
	memset(p, zero ? 0 : 0xa5, bytes);
	shim_live++;
	return p;
}

void shim_free(const void *p)
{
	shim_live -= p != NULL;
	free((void *)p);
}

int vscnprintf(char *to, size_t bytes, const char *fmt, va_list args)
{
	int len = vsnprintf(to, bytes, fmt, args);

	if (!bytes || len < 0)
		return 0;
	return min_t(size_t, len, bytes - 1);
}

int scnprintf(char *to, size_t bytes, const char *fmt, ...)
{
	va_list args;
	int len;

	va_start(args, fmt);
	len = vscnprintf(to, bytes, fmt, args);
	va_end(args);
	return len;
}

long strscpy(char *to, const char *from, size_t bytes)
{
	size_t length = strnlen(from, bytes);

	if (!bytes)
		return -E2BIG;
	if (length < bytes) {
		memcpy(to, from, length + 1);
		return length;
	}
	memcpy(to, from, bytes - 1);
	to[bytes - 1] = '\0';
	return -E2BIG;
}

void *memchr_inv(const void *p, int c, size_t bytes)
{
	const u8 *at = p, *end = at + bytes;

	/* By words while nothing else than zero is asked for. */
	if (!c) {
		u64 word;

		for (; end - at >= 8; at += 8) {
			memcpy(&word, at, 8);
			if (word)
				break;
		}
	}
	for (; at < end; at++)
		if (*at != (u8)c)
			return (void *)at;
	return NULL;
}

/* Eight bytes at a time; the tables follow from the polynomial. */
static u32 crc_table[8][256];

__attribute__((constructor)) static void make_crc_table(void)
{
	for (u32 i = 0; i < 256; i++) {
		u32 crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
		crc_table[0][i] = crc;
	}
	for (int t = 1; t < 8; t++)
		for (u32 i = 0; i < 256; i++) {
			u32 crc = crc_table[t - 1][i];

			crc_table[t][i] = crc >> 8 ^ crc_table[0][crc & 0xff];
		}
}

u32 crc32_le(u32 crc, const void *p, size_t bytes)
{
	const u8 *at = p;

	for (; bytes >= 8; at += 8, bytes -= 8) {
		u64 word;

		memcpy(&word, at, 8);
		word ^= crc;
		crc = 0;
		for (int i = 0; i < 8; i++)
			crc ^= crc_table[7 - i][word >> 8 * i & 0xff];
	}
	for (; bytes; at++, bytes--)
		crc = crc >> 8 ^ crc_table[0][(crc ^ *at) & 0xff];
	return crc;
}

void bitmap_set(unsigned long *map, unsigned long start, unsigned long count)
{
	for (; count; start++, count--) {
		if (start % BITS_PER_LONG == 0 && count >= BITS_PER_LONG) {
			map[start / BITS_PER_LONG] = ~0UL;
			start += BITS_PER_LONG - 1;
			count -= BITS_PER_LONG - 1;
			continue;
		}
		__set_bit(start, map);
	}
}

void bitmap_clear(unsigned long *map, unsigned long start, unsigned long count)
{
	for (; count; start++, count--) {
		if (start % BITS_PER_LONG == 0 && count >= BITS_PER_LONG) {
			map[start / BITS_PER_LONG] = 0;
			start += BITS_PER_LONG - 1;
			count -= BITS_PER_LONG - 1;
			continue;
		}
		__clear_bit(start, map);
	}
}

unsigned long bitmap_weight(const unsigned long *map, unsigned long size)
{
	unsigned long weight = 0;

	for (unsigned long n = 0; n < size; n++)
		weight += test_bit(n, map);
	return weight;
}

static unsigned long find_next(const unsigned long *map, unsigned long size, unsigned long from,
			       unsigned long flip)
{
	while (from < size) {
		unsigned long word = (map[from / BITS_PER_LONG] ^ flip) >> (from % BITS_PER_LONG);

		if (word) {
			from += __builtin_ctzl(word);
			return from < size ? from : size;
		}
		from = (from / BITS_PER_LONG + 1) * BITS_PER_LONG;
	}
	return size;
}

unsigned long find_next_bit(const unsigned long *map, unsigned long size, unsigned long from)
{
	return find_next(map, size, from, 0);
}

unsigned long find_next_zero_bit(const unsigned long *map, unsigned long size,
				 unsigned long from)
{
	return find_next(map, size, from, ~0UL);
}

static u64 priority(const struct rb_node *node)
{
	u64 x = (uintptr_t)node * 0x9e3779b97f4a7c15ULL;

	return x ^ x >> 29;
}

/* Puts new where old hangs. */
static void replace_child(struct rb_root *root, struct rb_node *up, struct rb_node *old,
			  struct rb_node *new)
{
	if (!up)
		root->rb_node = new;
	else if (up->rb_left == old)
		up->rb_left = new;
	else
		up->rb_right = new;
	if (new)
		new->rb_up = up;
}

/* Lifts a node above its parent. */
static void rotate_up(struct rb_root *root, struct rb_node *node)
{
	struct rb_node *up = node->rb_up, *inner;

	replace_child(root, up->rb_up, up, node);
	if (up->rb_left == node) {
		inner = node->rb_right;
		node->rb_right = up;
		up->rb_left = inner;
	} else {
		inner = node->rb_left;
		node->rb_left = up;
		up->rb_right = inner;
	}
	up->rb_up = node;
	if (inner)
		inner->rb_up = up;
}

void rb_insert_color(struct rb_node *node, struct rb_root *root)
{
	while (node->rb_up && priority(node) > priority(node->rb_up))
		rotate_up(root, node);
}

void rb_erase(struct rb_node *node, struct rb_root *root)
{
	while (node->rb_left && node->rb_right)
		rotate_up(root, priority(node->rb_left) > priority(node->rb_right) ?
			  node->rb_left : node->rb_right);
	replace_child(root, node->rb_up, node, node->rb_left ? node->rb_left : node->rb_right);
}

struct rb_node *rb_first(const struct rb_root *root)
{
	struct rb_node *node = root->rb_node;

	while (node && node->rb_left)
		node = node->rb_left;
	return node;
}

struct rb_node *rb_last(const struct rb_root *root)
{
	struct rb_node *node = root->rb_node;

	while (node && node->rb_right)
		node = node->rb_right;
	return node;
}

struct rb_node *rb_next(const struct rb_node *node)
{
	if (node->rb_right) {
		const struct rb_root right = { node->rb_right };

		return rb_first(&right);
	}
	while (node->rb_up && node->rb_up->rb_right == node)
		node = node->rb_up;
	return node->rb_up;
}

static struct rb_node *deepest(struct rb_node *node)
{
	while (node && (node->rb_left || node->rb_right))
		node = node->rb_left ? node->rb_left : node->rb_right;
	return node;
}

struct rb_node *rb_first_postorder(const struct rb_root *root)
{
	return deepest(root->rb_node);
}

struct rb_node *rb_next_postorder(const struct rb_node *node)
{
	struct rb_node *up = node->rb_up;

	if (up && up->rb_left == node && up->rb_right)
		return deepest(up->rb_right);
	return up;
}
