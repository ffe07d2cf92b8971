// SPDX-License-Identifier: GPL-2.0-only
/* Mutations of a store that know its structure. */
#include "fuzz.h"

struct source source;

u32 choose(u32 limit)
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

u64 interesting(void)
{
	static const u64 values[] = {
		0, 1, 2, 3, 4, 5, 7, 8, 255, 256, 309, 310, 338, 339, 464, 465, 511, 512, 513,
		1024, 3711, 3712, 4095, 4096, BLOCK, 8 * BLOCK, 0x7fffffff, 0x80000000, U32_MAX,
		U32_MAX - 1, (u64)S64_MAX, (u64)S64_MAX + 1, ~0ULL, ~0ULL - 1,
	};

	return values[choose(ARRAY_SIZE(values))];
}

u8 *slot_at(struct base *base, u32 slot)
{
	return pkn_memory(base->n) + slot * SLOT;
}

struct pkernfs_super *super_of(struct base *base)
{
	return (void *)slot_at(base, PKERNFS_SUPER_A_SLOT);
}

/* The slot with its checksum put right, as what it is meant to be. */
void set_slot(struct base *base, u32 slot, u8 content[SLOT], bool fix)
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

void mutate(struct base *base)
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
