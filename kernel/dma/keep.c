// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is kept at a kexec: making the record and the section of each IOMMU, and
 * whether the next kernel can trust them.
 */
#include "keep.h"

#include <linux/crc32.h>
#include <linux/errno.h>
#include <linux/string.h>

#define PAGE_BYTES	4096

/* Of a struct, its field for the checksum as zero. */
static u32 checksum_without(const void *start, size_t bytes, size_t at)
{
	static const u8 zero[4];
	const u8 *byte = start;
	u32 crc;

	crc = crc32_le(~0, byte, at);
	crc = crc32_le(crc, zero, sizeof(zero));
	return ~crc32_le(crc, byte + at + sizeof(zero), bytes - at - sizeof(zero));
}

static u32 record_checksum(const struct pkernfs_dma_record *record)
{
	return checksum_without(record, sizeof(*record),
				offsetof(struct pkernfs_dma_record, checksum));
}

static u32 header_checksum(const struct pkernfs_dma_tables *header)
{
	return checksum_without(header, sizeof(*header),
				offsetof(struct pkernfs_dma_tables, checksum));
}

/*
 * Making.
 */

void keep_start(struct pkernfs_dma_record *record, u64 base, u64 size, u64 now_ns,
		const char *release)
{
	memset(record, 0, sizeof(*record));
	record->magic = cpu_to_le64(PKERNFS_DMA_MAGIC);
	record->version = cpu_to_le32(PKERNFS_DMA_VERSION);
	record->bytes = cpu_to_le32(sizeof(*record));
	record->base = cpu_to_le64(base);
	record->size = cpu_to_le64(size);
	record->handed_over_ns = cpu_to_le64(now_ns);
	strscpy((char *)record->release, release, sizeof(record->release));
}

int keep_add_unit(struct pkernfs_dma_record *record, const struct keep_unit *unit)
{
	u32 count = le32_to_cpu(record->nr_units);
	u32 flags = unit->remaps_interrupts ? PKERNFS_DMA_UNIT_REMAPS_INTERRUPTS : 0;

	if (count == PKERNFS_DMA_MAX_UNITS)
		return -ENOSPC;
	memset(unit->section + KEEP_CLEARED_START, 0, KEEP_CLEARED_BYTES);
	record->units[count] = (struct pkernfs_dma_unit){
		.registers = cpu_to_le64(unit->registers),
		.section = cpu_to_le64(unit->section_phys),
		.segment = cpu_to_le32(unit->segment),
		.flags = cpu_to_le32(flags),
	};
	record->nr_units = cpu_to_le32(count + 1);
	return 0;
}

/* The context table of a bus in a section, a fresh one if it has none; NULL: no more. */
static struct vtd_context *context_table(const struct keep_unit *unit, u8 bus)
{
	u64 *root = unit->section + PKERNFS_DMA_SECTION_ROOT;
	u64 base = unit->section_phys + PKERNFS_DMA_SECTION_CONTEXT;
	unsigned int used = 0, i;

	if (root[bus * 2])
		return unit->section +
		       ((root[bus * 2] & ~VTD_ROOT_PRESENT) - unit->section_phys);
	for (i = 0; i < VTD_BUSES; i++)
		used += !!root[i * 2];
	if (used == PKERNFS_DMA_SECTION_CONTEXTS)
		return NULL;
	root[bus * 2] = (base + used * PAGE_BYTES) | VTD_ROOT_PRESENT;
	return unit->section + PKERNFS_DMA_SECTION_CONTEXT + used * PAGE_BYTES;
}

int keep_add_device(struct pkernfs_dma_record *record, const struct keep_unit *unit,
		    const struct pkernfs_dma_device *device)
{
	u32 count = le32_to_cpu(record->nr_devices);
	struct vtd_context *table;

	if (count == PKERNFS_DMA_MAX_DEVICES)
		return -ENOSPC;
	table = context_table(unit, device->bus);
	if (!table)
		return -ENOSPC;
	table[device->devfn] = vtd_context_make(le64_to_cpu(device->root), device->levels,
						le16_to_cpu(device->domain));
	record->devices[count] = *device;
	record->nr_devices = cpu_to_le32(count + 1);
	return 0;
}

void keep_seal(struct pkernfs_dma_record *record)
{
	record->checksum = cpu_to_le32(record_checksum(record));
}

void keep_seal_header(struct pkernfs_dma_tables *header)
{
	header->checksum = cpu_to_le32(header_checksum(header));
}

/*
 * Checking.
 */

const char *keep_record_fault(const struct pkernfs_dma_record *record, u64 base, u64 size)
{
	if (record->magic != cpu_to_le64(PKERNFS_DMA_MAGIC))
		return "there is none";
	if (record->version != cpu_to_le32(PKERNFS_DMA_VERSION) ||
	    record->bytes != cpu_to_le32(sizeof(*record)))
		return "it has another version";
	if (le32_to_cpu(record->checksum) != record_checksum(record))
		return "its checksum is wrong";
	if (le64_to_cpu(record->base) != base || le64_to_cpu(record->size) != size)
		return "it is for another range";
	if (le32_to_cpu(record->nr_units) > PKERNFS_DMA_MAX_UNITS ||
	    le32_to_cpu(record->nr_devices) > PKERNFS_DMA_MAX_DEVICES)
		return "its counts are wrong";
	return NULL;
}

const struct pkernfs_dma_unit *keep_unit_of(const struct pkernfs_dma_record *record,
					    const struct pkernfs_dma_device *device)
{
	u32 index = le32_to_cpu(device->unit);

	return index < le32_to_cpu(record->nr_units) ? &record->units[index] : NULL;
}

const char *keep_header_fault(const struct pkernfs_dma_tables *header, u64 base, u64 size)
{
	u32 i;

	if (header->magic != cpu_to_le64(PKERNFS_DMA_TABLES_MAGIC) ||
	    le32_to_cpu(header->checksum) != header_checksum(header))
		return "the header of its tables is damaged";
	if (!header->nr_blocks ||
	    le32_to_cpu(header->nr_blocks) > PKERNFS_DMA_MAX_TABLE_BLOCKS)
		return "its tables have a wrong size";
	for (i = 0; i < le32_to_cpu(header->nr_blocks); i++) {
		u64 block = le64_to_cpu(header->blocks[i]);

		if (block % DMA_BLOCK_BYTES || block < base || block - base >= size)
			return "its tables lie outside the range";
	}
	return NULL;
}

const char *keep_entry_fault(const struct pkernfs_dma_device *device,
			     const struct vtd_context *entry)
{
	if (!entry || !vtd_context_translates(entry))
		return "its IOMMU has no tables for it";
	if (vtd_context_root(entry) != le64_to_cpu(device->root) ||
	    vtd_context_levels(entry) != device->levels ||
	    vtd_context_domain(entry) != le16_to_cpu(device->domain))
		return "its IOMMU uses other tables";
	return NULL;
}
