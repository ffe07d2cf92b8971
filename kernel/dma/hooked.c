// SPDX-License-Identifier: GPL-2.0-only
/*
 * What hooked functions do: each decides and, for a device that is not ours, calls the
 * original: its body behind the ftrace call, by a direct call (static_call), so that
 * neither recursion nor IBT is a question. They run in the context of their caller and
 * may sleep where it may.
 */
#include "hooks.h"
#include "touch.h"

#include <linux/sched.h>

void hook_shutdown(void)
{
	touch_enter();
	if (dma_handing_over()) {
		dma_hand_over();
	} else {
		dma_stop_last();
		static_call(orig_shutdown)();
	}
	touch_leave();
}

void hook_crash(struct pt_regs *regs)
{
	touch_enter();
	dma_stop_in_panic();
	static_call(orig_crash)(regs);
	touch_leave();
}

static bool keep_master(struct pci_dev *pdev)
{
	struct dma_slot *slot = dma_slot_of(&pdev->dev);

	if (dma_handing_over())
		return (slot && slot->state == DMA_PRESERVED) || dma_above_preserved(pdev);
	if (dma_stopping() || !slot || (slot->state != DMA_INHERITED && !slot->spare))
		return false;
	/* vfio_pci_core_enable(): this, then pci_try_reset_function(). */
	slot->opening = true;
	return true;
}

void hook_clear_master(struct pci_dev *pdev)
{
	touch_enter();
	if (!keep_master(pdev))
		static_call(orig_clear_master)(pdev);
	touch_leave();
}

/* VFIO opens the device. A VMM that mapped its memory before has it switched here. */
static int opened(struct dma_slot *slot)
{
	mutex_lock(&dma_lock);
	slot->opening = false;
	slot->open = true;
	if (slot->spare) {
		slot->spare = false;
		dma_let_go(slot);
	} else if (slot->state == DMA_INHERITED && slot->held) {
		/* Refused: it stays inherited, and "adopt" can be asked for later. */
		dma_adopt(slot);
	}
	mutex_unlock(&dma_lock);
	return 0;
}

int hook_try_reset(struct pci_dev *pdev)
{
	struct dma_slot *slot;
	int ret;

	touch_enter();
	slot = dma_slot_of(&pdev->dev);
	if (slot && slot->opening)
		ret = opened(slot);
	else if (slot && slot->state == DMA_INHERITED)
		ret = -EBUSY;
	else
		ret = static_call(orig_try_reset)(pdev);
	touch_leave();
	return ret;
}

int hook_reset_locked(struct pci_dev *pdev)
{
	struct dma_slot *slot;
	int ret = 0;

	touch_enter();
	slot = dma_slot_of(&pdev->dev);
	/* Closed without having been adopted: it works on, the next owner may come. */
	if (slot && slot->state == DMA_INHERITED)
		slot->open = slot->opening = false;
	else
		ret = static_call(orig_reset_locked)(pdev);
	touch_leave();
	return ret;
}

static bool inherited_on(const struct pci_bus *bus)
{
	struct dma_slot *slot;
	bool found = false;

	mutex_lock(&dma_lock);
	for_each_dma_slot(slot)
		if (slot->state == DMA_INHERITED && slot->pdev->bus == bus)
			found = true;
	mutex_unlock(&dma_lock);
	return found;
}

/*
 * QEMU resets the machine that it emulates before anything else, also when it is to take
 * a running device over. Of a device without function level reset it clears the command
 * register then, and resets the bus if several devices share it.
 */
int hook_reset_bus(struct pci_dev *pdev)
{
	int ret = -EBUSY;

	touch_enter();
	if (!inherited_on(pdev->bus))
		ret = static_call(orig_reset_bus)(pdev);
	touch_leave();
	return ret;
}

int hook_user_write_word(struct pci_dev *pdev, int pos, u16 value)
{
	struct dma_slot *slot;
	int ret = 0;

	touch_enter();
	slot = pos == PCI_COMMAND && !(value & PCI_COMMAND_MASTER) ? dma_slot_of(&pdev->dev) : NULL;
	if (!slot || READ_ONCE(slot->state) != DMA_INHERITED)
		ret = static_call(orig_user_write_word)(pdev, pos, value);
	touch_leave();
	return ret;
}

/* Holds an attach back; false if the device is not inherited (any more). */
static bool hold_back(struct device *dev, struct iommu_domain *domain)
{
	struct dma_slot *slot = dma_slot_of(dev);
	bool held = false;

	if (!slot || READ_ONCE(slot->state) != DMA_INHERITED)
		return false;
	mutex_lock(&dma_lock);
	if (slot->state == DMA_INHERITED) {
		WRITE_ONCE(slot->held, domain);
		slot->untold = true;
		held = true;
	}
	mutex_unlock(&dma_lock);
	return held;
}

/* What the core believes of a device that was cut off is true from its next attach on. */
static int told(struct device *dev, int ret)
{
	struct dma_slot *slot = dma_slot_of(dev);

	if (slot && !ret)
		slot->untold = false;
	return ret;
}

int hook_attach(DMA_ATTACH_PROTO)
{
	int ret = 0;

	touch_enter();
	if (!hold_back(dev, domain))
		ret = told(dev, static_call(orig_attach)(DMA_ATTACH_ARGS));
	touch_leave();
	return ret;
}

int hook_block(DMA_ATTACH_PROTO)
{
	int ret = 0;

	touch_enter();
	if (!hold_back(dev, NULL))
		ret = told(dev, static_call(orig_block)(DMA_ATTACH_ARGS));
	touch_leave();
	return ret;
}

int hook_identity(DMA_ATTACH_PROTO)
{
	int ret = 0;

	touch_enter();
	if (!hold_back(dev, NULL))
		ret = told(dev, static_call(orig_identity)(DMA_ATTACH_ARGS));
	touch_leave();
	return ret;
}

/*
 * With no device in it, a domain claims that it can enforce snooping, and the attach
 * that was held back would then fail (-EINVAL) if the IOMMU can't. So answer for it.
 */
static bool held_by_one_that_cannot_snoop(struct iommu_domain *domain)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot)
		if (READ_ONCE(slot->held) == domain && !vtd_unit_snoops(slot->unit))
			return true;
	return false;
}

bool hook_coherency(struct iommu_domain *domain)
{
	bool ret = false;

	touch_enter();
	if (!held_by_one_that_cannot_snoop(domain))
		ret = static_call(orig_coherency)(domain);
	touch_leave();
	return ret;
}

#ifdef PKERNFS_ATTACH_HAS_OLD
bool hook_coherency_first(struct iommu_domain *domain)
{
	bool ret = false;

	touch_enter();
	if (!held_by_one_that_cannot_snoop(domain))
		ret = static_call(orig_coherency_first)(domain);
	touch_leave();
	return ret;
}
#endif

/* One redirection at a time, under dma_lock, for one task. */
static struct {
	struct task_struct *task;
	struct intel_iommu *driver;
	u8 bus;
	u8 devfn;
	unsigned int hits;
	struct vtd_context *entry;
} redirect;

struct vtd_context *hook_context_addr(struct intel_iommu *driver, u8 bus, u8 devfn, int alloc)
{
	struct vtd_context *entry;

	touch_enter();
	if (READ_ONCE(redirect.task) == current && redirect.driver == driver &&
	    redirect.bus == bus && redirect.devfn == devfn) {
		redirect.hits++;
		entry = redirect.entry;
	} else {
		entry = static_call(orig_context_addr)(driver, bus, devfn, alloc);
	}
	touch_leave();
	return entry;
}

void hooks_redirect(u8 bus, u8 devfn, struct intel_iommu *driver, struct vtd_context *entry)
{
	lockdep_assert_held(&dma_lock);
	redirect.driver = driver;
	redirect.bus = bus;
	redirect.devfn = devfn;
	redirect.entry = entry;
	redirect.hits = 0;
	WRITE_ONCE(redirect.task, current);
}

unsigned int hooks_redirect_end(void)
{
	WRITE_ONCE(redirect.task, NULL);
	return redirect.hits;
}
