// SPDX-License-Identifier: GPL-2.0-only
/*
 * Devices of the host that are not ours, after the disguise.
 *
 * A kernel after a crash attaches no device to its domain: it waits for the first DMA that
 * a driver asks a translation for (is_attach_deferred()). Where the IOMMU does not translate
 * for drivers (iommu=pt, an integrated GPU) none ever asks, and the device would stay
 * without a way to memory. So they are attached as in any other kernel: what is there when
 * the disguise ends, and what comes later before its driver does.
 */
#include "dma.h"

#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/platform_device.h>

static bool is_deferred(const struct device *dev)
{
	return dev->iommu && dev->iommu->attach_deferred;
}

static void attach(struct device *dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);
	int err;

	if (!domain || !is_deferred(dev))
		return;
	err = kernel_deferred_attach(dev, domain);
	if (err)
		pr_err("%s can't be attached to its IOMMU domain (%d)\n", dev_name(dev), err);
}

/* Its driver comes, or it is ours no more: as the core itself does, without a lock. */
void dma_attach(struct device *dev)
{
	if (!dma_slot_of(dev))
		attach(dev);
}

void dma_attach_released(struct device *dev, bool untold)
{
	struct iommu_domain *domain;
	int err = 0;

	device_lock(dev);
	dma_attach(dev);
	domain = iommu_get_domain_for_dev(dev);
	if (untold && domain && domain->ops->attach_dev)
		err = kernel_attach_any(domain, dev);
	device_unlock(dev);
	if (err)
		pr_err("%s can't be attached to its IOMMU domain (%d)\n", dev_name(dev), err);
}

/*
 * A driver may be coming just now. If it is translated for, it is about to attach the device
 * itself; if not, it waits in vain for an answer of its device, with the lock held.
 */
static int attach_one(struct device *dev, void *data)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);
	bool alone;

	if (!domain || !is_deferred(dev))
		return 0;
	alone = device_trylock(dev);
	if (alone || domain->type == IOMMU_DOMAIN_IDENTITY)
		dma_attach(dev);
	if (alone)
		device_unlock(dev);
	return 0;
}

void dma_attach_all(void)
{
	bus_for_each_dev(&pci_bus_type, NULL, NULL, attach_one);
	bus_for_each_dev(&platform_bus_type, NULL, NULL, attach_one);
}
