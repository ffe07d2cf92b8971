// SPDX-License-Identifier: GPL-2.0-only
/*
 * A kernel that takes itself for one after a crash, because the one before left devices.
 *
 * The boot line carries elfcorehdr=ADDRESS OF THE RECORD. So the IOMMU driver kept the
 * tables that it found (copy_translation_tables() in drivers/iommu/intel/iommu.c). Here
 * that disguise ends, before other drivers look.
 */
#include "dma.h"

#include <linux/crash_dump.h>
#include <linux/io.h>
#include <linux/slab.h>
#include <linux/string.h>

static u64 record_phys;

/* 0, also when there was none; -EBUSY: this really is a kernel after a crash. */
int dma_end_disguise(void)
{
	if (elfcorehdr_addr == ELFCORE_ADDR_MAX)
		return 0;
	if (!pkernfs_region_at(elfcorehdr_addr)) {
		pr_err("refused: this kernel was started after a crash\n");
		return -EBUSY;
	}
	record_phys = elfcorehdr_addr;
	elfcorehdr_addr = ELFCORE_ADDR_MAX;
	return 0;
}

/*
 * kdump-tools give this line to their kernel, behind the address of a real ELF header,
 * and the last such word counts. The text is ordinary memory; whoever reads it just now
 * sees some of the spaces.
 */
void dma_hide_record(void)
{
	static const char name[] = "elfcorehdr=";
	char *line = kernel_command_line(), *word = line, *end;

	if (!record_phys || !line)
		return;
	while ((word = strstr(word, name))) {
		end = word + strcspn(word, " ");
		if ((word == line || word[-1] == ' ') &&
		    memparse(word + strlen(name), NULL) == record_phys)
			memset(word, ' ', end - word);
		word = end;
	}
}

/* A copy that nobody else can change, checked: kvfree() it. NULL: none that can be trusted. */
struct pkernfs_dma_record *dma_read_record(struct pkernfs_region **region)
{
	struct pkernfs_dma_record *record;
	struct pkernfs_region_info info;
	const char *fault = NULL;
	void *mapped;

	*region = record_phys ? pkernfs_region_at(record_phys) : NULL;
	if (!*region)
		return NULL;
	record = kvmalloc(sizeof(*record), GFP_KERNEL);
	mapped = memremap(record_phys, sizeof(*record), MEMREMAP_WB);
	if (!record || !mapped) {
		fault = "no memory";
		goto done;
	}
	memcpy(record, mapped, sizeof(*record));
	/* It counts once. */
	memset(mapped, 0, sizeof(__le64));

	pkernfs_region_describe(*region, &info);
	fault = keep_record_fault(record, info.base, info.size);
done:
	if (mapped)
		memunmap(mapped);
	if (!fault)
		return record;
	dma_refuse("the hand-over record at %#llx is not trusted: %s", record_phys, fault);
	kvfree(record);
	return NULL;
}

/*
 * The module refuses this kernel: nobody checks what the devices are doing, nothing
 * guards the memory that they do it to. So they stop. Nothing is diverted here.
 */
void dma_fail_closed(void)
{
	struct pkernfs_dma_record *record;
	struct pkernfs_region *region;
	u32 i;

	record = dma_read_record(&region);
	for (i = 0; record && i < le32_to_cpu(record->nr_devices); i++) {
		const struct pkernfs_dma_device *device = &record->devices[i];
		struct pci_dev *pdev;

		pdev = pci_get_domain_bus_and_slot(le16_to_cpu(device->segment), device->bus,
						   device->devfn);
		if (!pdev)
			continue;
		pci_clear_master(pdev);
		pr_err("%s is stopped: this kernel is refused\n", pci_name(pdev));
		pci_dev_put(pdev);
	}
	kvfree(record);
}
