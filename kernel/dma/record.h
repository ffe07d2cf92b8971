/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What one kernel leaves to the next about preserved devices: the only definition.
 *
 * The record is the first block of iommu/root-pgtables. Behind it, that file has one
 * block per IOMMU (a section). Each preserved device has a file of its own,
 * iommu/DEVICE, with the copy of its page tables.
 *
 * As kernel/format.h: integer #defines and plain structs with natural alignment, so
 * that Python can parse this very file. Addresses are physical. Bump the version on any
 * change of layout or meaning: a record of another version is not trusted, its devices
 * are cut off.
 */
#ifndef PKERNFS_DMA_RECORD_H
#define PKERNFS_DMA_RECORD_H

#define PKERNFS_DMA_MAGIC		0x3144524f43455244	/* "DRECORD1" */
#define PKERNFS_DMA_TABLES_MAGIC	0x314c424154414d44	/* "DMATABL1" */
#define PKERNFS_DMA_VERSION		1

#define PKERNFS_DMA_MAX_UNITS		32
#define PKERNFS_DMA_MAX_DEVICES		64
#define PKERNFS_DMA_MAX_TABLE_BLOCKS	500

/* What a section holds, as offsets into its block. */
#define PKERNFS_DMA_SECTION_IRT		0		/* interrupt remapping table, 1 MiB */
#define PKERNFS_DMA_SECTION_ROOT	0x100000	/* root table, 4 KiB */
#define PKERNFS_DMA_SECTION_QUEUE	0x101000	/* invalidation queue, 4 KiB */
#define PKERNFS_DMA_SECTION_STATUS	0x102000	/* its status word */
#define PKERNFS_DMA_SECTION_CONTEXT	0x103000	/* context tables, 4 KiB each */
#define PKERNFS_DMA_SECTION_CONTEXTS	253

struct pkernfs_dma_unit {
	__le64	registers;	/* which IOMMU: base of its registers */
	__le64	section;	/* its block of iommu/root-pgtables */
	__le32	segment;	/* PCI segment */
	__le32	flags;
	__le64	reserved;
};

#define PKERNFS_DMA_UNIT_REMAPS_INTERRUPTS	0x1

struct pkernfs_dma_device {
	__le16	segment;
	__u8	bus;
	__u8	devfn;
	__le16	vendor;
	__le16	device;
	__le32	unit;		/* index into units */
	__le16	domain;		/* domain id in the context entry */
	__u8	levels;		/* of the page tables: 3, 4 or 5 */
	__u8	reserved0;
	__le64	root;		/* top table, a page of the device's file */
	__le64	header;		/* first page of the device's file */
	__le64	pages;		/* tables, from the page behind the header on */
	__le64	leaves;		/* translations in them */
	__le64	bytes;		/* that they translate */
	__le32	checksum;	/* CRC-32 of those pages, in order */
	__le32	reserved1;
	__u8	file[32];	/* name below iommu/ */
};

struct pkernfs_dma_record {
	__le64	magic;
	__le32	version;
	__le32	checksum;	/* CRC-32 of the record, this field as zero */
	__le32	bytes;		/* of this struct */
	__le32	nr_units;
	__le32	nr_devices;
	__le32	reserved0;
	__le64	base;		/* of the range that all addresses lie in */
	__le64	size;
	__le64	handed_over_ns;	/* since the epoch */
	__u8	release[64];	/* of the kernel that wrote this */
	struct pkernfs_dma_unit units[32];
	struct pkernfs_dma_device devices[64];
};

/* First page of a device's file: where its blocks are, in the order of its pages. */
struct pkernfs_dma_tables {
	__le64	magic;
	__le32	nr_blocks;
	__le32	checksum;	/* CRC-32 of this struct, this field as zero */
	__le64	reserved[10];
	__le64	blocks[500];
};

#endif /* PKERNFS_DMA_RECORD_H */
