// SPDX-License-Identifier: GPL-2.0-only
/*
 * Damaged and hostile stores: opens them, walks what could be opened, changes it,
 * and opens it again. Nothing may crash, leak or contradict itself.
 *
 *	fuzz SEED IMAGES
 *
 * Mutations know the structure of a store and put its checksums right again most
 * of the time, else nothing behind the first checksum would ever be reached. With
 * PKERNFS_LIBFUZZER their choices are libFuzzer's input.
 */
#include <stdio.h>
#include <time.h>

#include <linux/minmax.h>
#include <linux/slab.h>

#include "../fs/store_private.h"
#include "native.h"

#define BLOCK		(1UL << PKERNFS_BLOCK_SHIFT)
#define SLOT		(1UL << PKERNFS_SLOT_SHIFT)
#define NR_BLOCKS	8
#define FILE_MODE	(S_IFREG | 0644)
#define DIR_MODE	(S_IFDIR | 0755)
#define MAX_SLOTS	64

#define check(cond) do { \
	if (!(cond)) { \
		fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #cond); \
		abort(); \
	} \
} while (0)

/* A valid store to begin with, and where something is in it. */
struct base {
	struct pkn *n;
	u32 inodes[MAX_SLOTS], pages[MAX_SLOTS], headers[NR_BLOCKS];
	u32 nr_inodes, nr_pages, nr_headers;
};

/* Where choices come from: a generator, or bytes that somebody else made up. */
static struct {
	u64 state;
	const u8 *data;
	size_t left;
} source;

static u32 choose(u32 limit)
{
	u32 value = 0;

	if (source.data) {
		size_t bytes = limit > 256 ? 4 : 1;

		bytes = min(bytes, source.left);
		memcpy(&value, source.data, bytes);
		source.data += bytes;
		source.left -= bytes;
		return value % limit;
	}
	source.state ^= source.state << 13;
	source.state ^= source.state >> 7;
	source.state ^= source.state << 17;
	return (source.state >> 16) % limit;
}

static u64 interesting(void)
{
	static const u64 values[] = {
		0, 1, 2, 3, 4, 5, 7, 8, 255, 256, 309, 310, 338, 339, 464, 465, 511, 512, 513,
		1024, 3711, 3712, 4095, 4096, BLOCK, 8 * BLOCK, 0x7fffffff, 0x80000000, U32_MAX,
		U32_MAX - 1, (u64)S64_MAX, (u64)S64_MAX + 1, ~0ULL, ~0ULL - 1,
	};

	return values[choose(ARRAY_SIZE(values))];
}

static u8 *slot_at(struct base *base, u32 slot)
{
	return pkn_memory(base->n) + slot * SLOT;
}

static struct pkernfs_super *super_of(struct base *base)
{
	return (void *)slot_at(base, PKERNFS_SUPER_A_SLOT);
}

/* The slot with its checksum put right, as what it is meant to be. */
static void set_slot(struct base *base, u32 slot, u8 content[SLOT], bool fix)
{
	struct pkernfs_inode *inode = (void *)content;
	u32 index = slot % PKERNFS_SLOTS_PER_BLOCK;

	if (fix && (slot == PKERNFS_SUPER_A_SLOT || slot == PKERNFS_SUPER_B_SLOT)) {
		struct pkernfs_super *super = (void *)content;

		super->checksum = cpu_to_le32(pkernfs_super_checksum(super));
	} else if (fix && index == PKERNFS_HEADER_SLOT) {
		struct pkernfs_meta_header *header = (void *)content;

		header->checksum = cpu_to_le32(pkernfs_header_checksum(super_of(base), header));
		header->next = cpu_to_le64(pkernfs_header_next(super_of(base), slot / 512,
							      header->next));
	} else if (fix) {
		inode->checksum = cpu_to_le32(pkernfs_inode_checksum(super_of(base), inode));
	}
	pkn_poke(base->n, slot * SLOT, content, SLOT);
}

static u32 any_slot(struct base *base)
{
	switch (choose(8)) {
	case 0:
		return choose(2) ? PKERNFS_SUPER_A_SLOT : PKERNFS_SUPER_B_SLOT;
	case 1:
		return base->headers[choose(base->nr_headers)];
	case 2:
		return base->pages[choose(base->nr_pages)];
	default:
		return base->inodes[choose(base->nr_inodes)];
	}
}

static void mutate_bytes(struct base *base, bool fix)
{
	u32 slot = any_slot(base), count = 1 + choose(3);
	u8 content[SLOT] __attribute__((aligned(8)));

	memcpy(content, slot_at(base, slot), SLOT);
	while (count--) {
		/* What matters is mostly at the beginning. */
		u32 at = choose(4) ? choose(160) : choose(SLOT);

		if (choose(2))
			content[at] ^= 1 << choose(8);
		else
			content[at] = interesting();
	}
	set_slot(base, slot, content, fix);
}

static void mutate_inode(struct base *base, bool fix)
{
	u32 slot = base->inodes[choose(base->nr_inodes)];
	u8 content[SLOT] __attribute__((aligned(8)));
	struct pkernfs_inode *inode = (void *)content;
	u64 value = choose(2) ? interesting() : choose(16);

	memcpy(content, slot_at(base, slot), SLOT);
	switch (choose(16)) {
	case 0:
		inode->commit = value;
		inode->seq = value;
		break;
	case 1:
		inode->ino = value;
		break;
	case 2:
		inode->parent = value;
		break;
	case 3:
		inode->replaces = value;
		break;
	case 4:
		inode->size = value;
		break;
	case 5:
		inode->mode = choose(2) ? value : (1 + choose(15)) << 12 | 0644;
		break;
	case 6:
		inode->flags = value;
		break;
	case 7:
		inode->nr_extents = value;
		break;
	case 8:
		inode->nr_pages = value;
		break;
	case 9:
		inode->name_len = value;
		break;
	case 10:
		inode->name[choose(16)] = "/.a\0b"[choose(5)];
		break;
	case 11:
		inode->slot = value;
		break;
	case 12:
		inode->reserved2 = value;
		break;
	default: {
		/* Extents, or references to extent pages. */
		__le32 *words = (void *)inode->payload;

		words[choose(12)] = value;
		break;
	}
	}
	set_slot(base, slot, content, fix);
}

static void mutate_page(struct base *base, bool fix)
{
	u32 slot = base->pages[choose(base->nr_pages)], i;
	u8 content[SLOT] __attribute__((aligned(8)));
	struct pkernfs_extent_page *page = (void *)content;
	u64 value = choose(2) ? interesting() : choose(16);

	memcpy(content, slot_at(base, slot), SLOT);
	switch (choose(7)) {
	case 0:
		page->commit = value;
		break;
	case 1:
		page->slot = value;
		break;
	case 2:
		page->count = value;
		break;
	case 3:
		page->ino = value;
		break;
	case 4:
		page->seq = value;
		break;
	default: {
		__le32 *words = (void *)page->extents;

		words[choose(12)] = value;
		break;
	}
	}
	pkn_poke(base->n, slot * SLOT, content, SLOT);
	if (!fix)
		return;
	/* Whoever names the page gets its new checksum. */
	for (i = 0; i < base->nr_inodes; i++) {
		struct pkernfs_inode *inode = (void *)slot_at(base, base->inodes[i]);
		struct pkernfs_page_ref *ref = (void *)inode->payload;
		u8 copy[SLOT] __attribute__((aligned(8)));

		if (!inode->nr_pages || ref->slot != slot)
			continue;
		memcpy(copy, inode, SLOT);
		ref = (void *)((struct pkernfs_inode *)copy)->payload;
		ref->checksum = cpu_to_le32(pkernfs_page_checksum(super_of(base), page));
		set_slot(base, base->inodes[i], copy, true);
	}
}

static void mutate_chain(struct base *base, bool fix)
{
	u32 slot = base->headers[choose(base->nr_headers)];
	u8 content[SLOT] __attribute__((aligned(8)));
	struct pkernfs_meta_header *header = (void *)content;

	memcpy(content, slot_at(base, slot), SLOT);
	header->next = choose(4) ? choose(NR_BLOCKS + 2) : interesting();
	set_slot(base, slot, content, fix);
}

/* A slot again somewhere else, as another inode or as a leftover of the same. */
static void mutate_copy(struct base *base, bool fix)
{
	u8 content[SLOT] __attribute__((aligned(8)));
	struct pkernfs_inode *inode = (void *)content;
	u32 to = 1 + choose(254);

	memcpy(content, slot_at(base, any_slot(base)), SLOT);
	inode->slot = cpu_to_le32(to);
	if (choose(2))
		inode->seq = cpu_to_le64(choose(64));
	if (choose(2))
		inode->commit = inode->seq;
	if (choose(2))
		inode->ino = cpu_to_le64(choose(16));
	if (choose(2))
		inode->name[0] = 'a' + choose(26);
	set_slot(base, to, content, fix);
}

static void mutate(struct base *base)
{
	u32 count = choose(3) ? 1 : 1 + choose(4);

	while (count--) {
		const bool fix = choose(8);

		switch (choose(8)) {
		case 0:
			mutate_bytes(base, fix);
			break;
		case 1:
			mutate_page(base, fix);
			break;
		case 2:
			mutate_chain(base, fix);
			break;
		case 3:
		case 4:
			mutate_copy(base, fix);
			break;
		default:
			mutate_inode(base, fix);
			break;
		}
	}
}

static const char *any_path(char *path)
{
	static const char *const dirs[] = { "", "d/", "d/e/", "q/" };

	sprintf(path, "%s%c", dirs[choose(4)], 'a' + (char)choose(26));
	return path;
}

static void change(struct base *base)
{
	struct pkn *n = base->n;
	char path[16], other[16];

	any_path(path);
	any_path(other);
	switch (choose(9)) {
	case 0:
		pkn_create(n, path, FILE_MODE, NULL);
		break;
	case 1:
		pkn_create(n, path, DIR_MODE, NULL);
		break;
	case 2:
		pkn_unlink(n, path, false, NULL);
		break;
	case 3:
		pkn_rename(n, path, other);
		break;
	case 4:
		pkn_chmod(n, path, choose(010000));
		break;
	case 5:
		pkn_resize(n, path, interesting());
		break;
	case 6:
		pkn_punch(n, path, choose(8), 1 + choose(4));
		break;
	case 7:
		pkn_allocate(n, path, choose(16), 1 + choose(4), 0);
		break;
	case 8:
		pkn_write(n, path, choose(8 * BLOCK), "data", 4);
		break;
	}
}

static char *dump(struct base *base)
{
	u64 size = pkn_dump(base->n, NULL, 0);
	char *text = calloc(1, size + 1);

	pkn_dump(base->n, text, size);
	return text;
}

/* What is shown must be what the next mount shows, and need no repair. */
static void reopen(struct base *base)
{
	char *before = dump(base), *after, *line;
	struct pkernfs_usage usage;

	/* Whatever is there has a place in the tree, and a line or (its name) more. */
	pkn_usage(base->n, &usage);
	for (line = before; usage.nodes && (line = strchr(line, '\n')); line++)
		usage.nodes--;
	check(!usage.nodes);
	pkn_close(base->n);
	check(!shim_live);
	check(!*pkn_said(base->n));
	check(!pkn_open(base->n));
	check(!*pkn_said(base->n));
	after = dump(base);
	check(!strcmp(before, after));
	free(before);
	free(after);
}

/* Returns whether the store could be opened. */
static bool try_image(struct base *base)
{
	u32 changes;
	int err;

	mutate(base);
	err = pkn_open(base->n);
	if (err) {
		check(err == -EINVAL || err == -EUCLEAN || err == -EOPNOTSUPP || err == -ENXIO);
		check(*pkn_said(base->n));
	} else {
		pkn_said(base->n);
		reopen(base);
		for (changes = choose(4); changes; changes--)
			change(base);
		reopen(base);
		pkn_close(base->n);
	}
	check(!shim_live);
	pkn_restore(base->n);
	return !err;
}

/* An extent page for a file whose extents would fit into its inode. */
static void add_page(struct base *base, const char *path)
{
	struct pkernfs_inode *inode = (void *)pkn_node(base->n, path)->inode;
	const u32 count = le32_to_cpu(inode->nr_extents), slot = 250;
	u8 content[2][SLOT] __attribute__((aligned(8))) = { };
	struct pkernfs_extent_page *page = (void *)content[0];
	struct pkernfs_inode *new = (void *)content[1];
	struct pkernfs_page_ref *ref = (void *)new->payload;

	memcpy(new, inode, SLOT);
	page->slot = cpu_to_le32(slot);
	page->count = cpu_to_le32(count);
	page->ino = inode->ino;
	page->seq = inode->seq;
	memcpy(page->extents, inode->payload, count * sizeof(page->extents[0]));
	memset(new->payload, 0, sizeof(new->payload));
	new->nr_pages = cpu_to_le32(1);
	ref->slot = cpu_to_le32(slot);
	ref->checksum = cpu_to_le32(pkernfs_page_checksum(super_of(base), page));
	pkn_poke(base->n, slot * SLOT, page, SLOT);
	set_slot(base, le32_to_cpu(inode->slot), content[1], true);
	pkn_close(base->n);
	check(!pkn_open(base->n));
}

static void find_slots(struct base *base)
{
	u32 block = 0, i;

	do {
		for (i = 0; i < PKERNFS_HEADER_SLOT; i++) {
			u32 slot = block * PKERNFS_SLOTS_PER_BLOCK + i;
			struct pkernfs_inode *inode = (void *)slot_at(base, slot);

			if (i % 256 && inode->commit && base->nr_inodes < MAX_SLOTS)
				base->inodes[base->nr_inodes++] = slot;
		}
		base->headers[base->nr_headers++] = block * PKERNFS_SLOTS_PER_BLOCK +
						    PKERNFS_HEADER_SLOT;
		block = *(u32 *)slot_at(base, base->headers[base->nr_headers - 1]);
	} while (block);
	base->pages[base->nr_pages++] = 250;
}

/*
 * kind 0: a tree, with an extent page; 1: in the middle of a rename over a file;
 * 2: with a second block of metadata.
 */
static struct base *make_base(u32 kind)
{
	struct base *base = calloc(1, sizeof(*base));
	struct pkn_entry entry;
	struct pkn *n;
	char name[16];
	u64 size;
	u32 i;

	base->n = n = pkn_new(NR_BLOCKS, 1UL << 30);
	check(!pkn_make(n, "fuzz", 1, false) && !pkn_open(n));
	check(!pkn_create(n, "d", DIR_MODE, NULL) && !pkn_create(n, "d/e", DIR_MODE, NULL));
	check(!pkn_create(n, "d/f", FILE_MODE, NULL) && !pkn_create(n, "b", FILE_MODE, NULL));
	check(!pkn_create(n, "l", S_IFLNK | 0777, "d/e/f") && !pkn_create(n, "q", DIR_MODE, NULL));
	check(!pkn_create(n, "d/e/z", FILE_MODE, NULL));
	check(!pkn_write(n, "d/f", 3 * BLOCK, "data", 4) && !pkn_write(n, "d/f", 5, "data", 4));
	check(!pkn_write(n, "b", 100, "data", 4));
	add_page(base, "d/f");
	if (kind == 2) {
		for (i = 0; i < 520; i++) {
			snprintf(name, sizeof(name), "q/x%u", i);
			check(!pkn_create(n, name, FILE_MODE, NULL));
		}
		for (i = 0; i < 515; i++) {
			snprintf(name, sizeof(name), "q/x%u", i);
			check(!pkn_unlink(n, name, false, NULL));
		}
	}
	if (kind == 1) {
		size = pkn_log_size(n);
		check(!pkn_rename(n, "b", "d/f"));
		do
			pkn_log_entry(n, size++, &entry);
		while (entry.kind != PKN_WORD);
		pkn_close(n);
		pkn_rollback(n, size);
	}
	pkn_close(n);
	find_slots(base);
	pkn_record(n, false);
	pkn_keep(n);
	return base;
}

static struct base *bases[3];

static void make_bases(void)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(bases); i++)
		bases[i] = make_base(i);
}

#ifdef PKERNFS_LIBFUZZER
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	if (!bases[0])
		make_bases();
	source.data = data;
	source.left = size;
	try_image(bases[choose(ARRAY_SIZE(bases))]);
	return 0;
}
#else
int main(int argc, char **argv)
{
	u64 images, opened = 0, i;
	clock_t start = clock();

	if (argc != 3) {
		fprintf(stderr, "usage: fuzz SEED IMAGES\n");
		return 2;
	}
	make_bases();
	source.state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ULL + 1;
	images = strtoull(argv[2], NULL, 0);
	for (i = 0; i < images; i++)
		opened += try_image(bases[i % ARRAY_SIZE(bases)]);
	for (i = 0; i < ARRAY_SIZE(bases); i++) {
		pkn_free(bases[i]->n);
		free(bases[i]);
	}
	printf("kernel/fs: %llu damaged images, %llu could be opened, no crash (%.0f s)\n",
	       images, opened, (double)(clock() - start) / CLOCKS_PER_SEC);
	return 0;
}
#endif
