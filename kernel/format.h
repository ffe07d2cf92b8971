/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The on-memory format of a pkernfs store: the only definition.
 *
 * The kernel module includes this file; the Python package parses this very
 * file (src/pkernfs/store/layout.py). docs/format.md explains it.
 *
 * Keep to what both can read: integer #defines, enums and plain structs with
 * natural alignment, little-endian fields, no function-like macros.
 *
 * A store is a range of blocks of 2 MiB. Block 0 and every block that is
 * linked from it hold metadata, as slots of 4 KiB; all other blocks belong to
 * files or are free. Which ones are free, the directory index and all counts
 * are not stored: they follow from the live inodes and are rebuilt at mount.
 *
 * A change is one atomic step: write a new inode slot with a higher sequence
 * number, then store its commit word (8 bytes). Whatever came before that
 * store is invisible, whatever comes after only tidies up. Bump
 * PKERNFS_VERSION on any change of layout or meaning.
 *
 * Damage to an inode leaves out that inode, not the store: its slot is kept as it is,
 * and while there is such a slot no block is used that no good inode owned when the
 * store was opened. Only super blocks, headers, and the root are needed.
 */
#ifndef PKERNFS_FORMAT_H
#define PKERNFS_FORMAT_H

#define PKERNFS_MAGIC			0x3153464e52454b50	/* "PKERNFS1" */
#define PKERNFS_META_MAGIC		0x314154454d464b50	/* "PKFMETA1" */
#define PKERNFS_VERSION			1

#define PKERNFS_BLOCK_SHIFT		21	/* 2 MiB: unit of file data */
#define PKERNFS_SLOT_SHIFT		12	/* 4 KiB: unit of metadata */
#define PKERNFS_SLOTS_PER_BLOCK		512
#define PKERNFS_MIN_BLOCKS		4
#define PKERNFS_MAX_BLOCKS		8388608	/* 16 TiB */

/* Slots with a fixed meaning, counted within a metadata block. */
#define PKERNFS_SUPER_A_SLOT		0	/* block 0 only */
#define PKERNFS_SUPER_B_SLOT		256	/* block 0 only */
#define PKERNFS_HEADER_SLOT		511	/* every metadata block */

#define PKERNFS_ROOT_INO		1
#define PKERNFS_LOST_INO		0x7ffffffffffffffe	/* never stored, nor is any above */
#define PKERNFS_NAME_MAX		255
#define PKERNFS_LABEL_MAX		31

/*
 * Features that an implementation must know to use the store at all. A set
 * bit that is not known means: refuse, leave as it was.
 */
#define PKERNFS_INCOMPAT_KNOWN		0x0

/*
 * Super block: two identical copies, written once, when the store is made.
 * Either one is enough to mount; two that are valid but differ are damage.
 */
struct pkernfs_super {
	__le64	magic;		/* PKERNFS_MAGIC */
	__le32	version;	/* PKERNFS_VERSION */
	__le32	checksum;	/* CRC-32 of the slot, this field as zero */
	__u8	uuid[16];	/* of this store, new at every make */
	__le64	base;		/* physical address of block 0 */
	__le64	size;		/* bytes, a multiple of the block size */
	__le64	created_ns;	/* since the epoch */
	__le64	incompat;	/* feature bits */
	__le32	block_shift;	/* PKERNFS_BLOCK_SHIFT */
	__le32	slot_shift;	/* PKERNFS_SLOT_SHIFT */
	__le32	page_blocks;	/* blocks 1..page_blocks hold struct pages, never data */
	__le32	reserved0;
	__u8	label[32];	/* the region's name, NUL-padded */
	__u8	reserved[3984];	/* zero */
};

/*
 * Header of a metadata block. "next" links the metadata blocks, so that one
 * 8-byte store adds or removes a block. It checks itself: the low half is
 * the next block (0: this is the last one), the high half is the CRC-32 of
 * the store's uuid, this block's number and the low half (both __le32).
 * Everything but "next" is written before the block is linked.
 */
struct pkernfs_meta_header {
	__le64	next;
	__le64	magic;		/* PKERNFS_META_MAGIC */
	__le32	block;		/* this block's own number */
	__le32	checksum;	/* CRC-32 of uuid and the slot from byte 8 on, this field as zero */
	__u8	reserved[4072];	/* zero */
};

/* count blocks of a file from file_block on lie at block. */
struct pkernfs_extent {
	__le32	file_block;
	__le32	block;
	__le32	count;
};

/* An extent page: reached only through the inode that names it. */
struct pkernfs_page_ref {
	__le32	slot;
	__le32	checksum;	/* CRC-32 of uuid and the whole extent page */
};

#define PKERNFS_PAYLOAD_BYTES		3712
#define PKERNFS_INLINE_EXTENTS		309	/* payload / extent */
#define PKERNFS_MAX_EXTENT_PAGES	464	/* payload / page_ref */
#define PKERNFS_EXTENTS_PER_PAGE	338
#define PKERNFS_SYMLINK_MAX		3711

/*
 * Inode: one slot. Free when commit is zero, else commit equals seq.
 *
 * The three times are single words that are stored in place; every value is
 * valid, so the checksum leaves them out. All else changes by a new slot.
 *
 * Of two slots with the same ino the one with the higher seq counts. A slot
 * that names another inode in "replaces" (rename over it) removes that
 * inode if that one's seq is lower. What does not count is what a crash left
 * over: not damage, cleared at the next mount.
 *
 * Payload: symlink: the target. File with nr_pages == 0: nr_extents extents.
 * File with nr_pages > 0: that many struct pkernfs_page_ref, nr_extents is
 * the sum over the pages, every page but the last is full. Extents are sorted by
 * file_block and do not overlap; they may lie beyond size (fallocate).
 * Unused payload and reserved bytes are zero. Nothing is ever stored in a
 * directory: its children name it as parent.
 */
struct pkernfs_inode {
	__le64	commit;
	__le64	atime_ns;	/* signed, since the epoch */
	__le64	mtime_ns;
	__le64	ctime_ns;
	__le32	checksum;	/* CRC-32 of uuid and the slot from "slot" on */
	__le32	slot;		/* this slot's own number: block * 512 + index */
	__le64	seq;		/* store-wide, higher is later, never zero */
	__le64	ino;
	__le64	parent;		/* ino; the root is its own parent */
	__le64	replaces;	/* ino removed by the same rename, or zero */
	__le64	size;		/* file: bytes; symlink: length of target; else zero */
	__le64	btime_ns;
	__le32	mode;		/* S_IFREG, S_IFDIR or S_IFLNK, and permissions */
	__le32	uid;
	__le32	gid;
	__le32	flags;		/* zero; unknown bits are damage */
	__le32	nr_extents;
	__le32	nr_pages;
	__le32	reserved0;
	__le16	reserved1;
	__le16	name_len;	/* 1..255, 0 for the root */
	__u8	name[256];	/* NUL-padded */
	__le64	reserved2;
	__u8	payload[3712];
};

struct pkernfs_extent_page {
	__le64	commit;		/* always zero: never taken for an inode */
	__le32	slot;		/* this slot's own number */
	__le32	count;		/* extents in this page */
	__le64	ino;
	__le64	seq;		/* of the inode slot it was written for */
	struct pkernfs_extent extents[338];
	__le64	reserved;
};

#endif /* PKERNFS_FORMAT_H */
