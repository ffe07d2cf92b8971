// SPDX-License-Identifier: GPL-2.0-only
/* What can never be preserved, whatever its driver does: the list is in refusals.h. */
#include "dma.h"

#include <linux/iommu.h>

static bool no_iommu(struct pci_dev *pdev)
{
	return !pdev->dev.iommu_group;
}

static bool no_vtd(struct pci_dev *pdev)
{
	return !vtd_nr_units;
}

static bool is_bridge(struct pci_dev *pdev)
{
	return pdev->hdr_type != PCI_HEADER_TYPE_NORMAL;
}

/* sriov_init() clears VF Enable. */
static bool is_virtual_function(struct pci_dev *pdev)
{
	return pdev->is_virtfn;
}

/* And the device goes on without them, in the middle of what its driver does. */
static bool has_virtual_functions(struct pci_dev *pdev)
{
	return pci_num_vf(pdev);
}

static int count_member(struct device *dev, void *data)
{
	(*(unsigned int *)data)++;
	return 0;
}

static bool shares_group(struct pci_dev *pdev)
{
	struct iommu_group *group = iommu_group_get(&pdev->dev);
	unsigned int members = 0;

	if (!group)
		return false;
	iommu_group_for_each_dev(group, &members, count_member);
	iommu_group_put(group);
	return members != 1;
}

/* Do its requests carry its own name? pci_for_each_dma_alias() is not exported. */
static bool has_alias(struct pci_dev *pdev)
{
	struct pci_bus *bus;

	if (pdev->dma_alias_mask)
		return true;
	for (bus = pdev->bus; !pci_is_root_bus(bus); bus = bus->parent)
		if (!bus->self || !pci_is_pcie(bus->self) ||
		    pci_pcie_type(bus->self) == PCI_EXP_TYPE_PCI_BRIDGE ||
		    pci_pcie_type(bus->self) == PCI_EXP_TYPE_PCIE_BRIDGE)
			return true;
	return false;
}

/* Whether it is on is decided by whoever attaches it next. */
static bool has_ats(struct pci_dev *pdev)
{
#ifdef CONFIG_PCI_ATS
	return pdev->ats_cap;
#else
	return false;
#endif
}

/* VFIO does not get such a device either. */
static bool needs_firmware_memory(struct pci_dev *pdev)
{
	return pdev->dev.iommu && pdev->dev.iommu->require_direct;
}

/* quirk_usb_early_handoff() */
static bool is_usb_controller(struct pci_dev *pdev)
{
	return pdev->class >> 8 == PCI_CLASS_SERIAL_USB;
}

/* mellanox_check_broken_intx_masking(): ConnectX-4 and ConnectX-4 LX. */
static bool is_connectx4(struct pci_dev *pdev)
{
	return pdev->vendor == PCI_VENDOR_ID_MELLANOX &&
	       (pdev->device == 0x1013 || pdev->device == 0x1015);
}

#define DMA_REFUSAL(name, it, why)	{ it ": " why, name },

static const struct {
	const char *words;
	bool (*applies)(struct pci_dev *pdev);
} refusals[] = {
#include "refusals.h"
};

const char *dma_objection(struct pci_dev *pdev)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(refusals); i++)
		if (refusals[i].applies(pdev))
			return refusals[i].words;
	return NULL;
}
