// SPDX-License-Identifier: GPL-2.0-only
/*
 * A kernel that ends otherwise than by a hand-over: translation is switched off then, and
 * a device that still did DMA would take addresses of its guest for those of the host. So
 * whatever works on inherited tables loses its way to memory before.
 */
#include "dma.h"

#include <linux/delay.h>
#include <linux/spinlock.h>

/* A stuck adoption must not keep a host from a kexec out of it. */
#define LOCK_MS		1000
/* After a panic nobody may ever give a lock back. */
#define PANIC_US	10000

static bool stopping;

bool dma_stopping(void)
{
	return READ_ONCE(stopping);
}

static bool is_kept_on(const struct dma_slot *slot)
{
	return READ_ONCE(slot->state) == DMA_INHERITED || slot->spare;
}

/* What the device has sent is in memory before the answer to a read of it. */
static void clear_master(struct pci_dev *pdev)
{
	u16 command;

	kernel_clear_master(pdev);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
}

static bool lock_slots(void)
{
	int ms;

	for (ms = 0; ms < LOCK_MS; ms++) {
		if (mutex_trylock(&dma_lock))
			return true;
		usleep_range(1000, 2000);
	}
	return false;
}

/* While everything still runs. From here on bus master is not spared any more. */
void dma_stop(void)
{
	struct dma_slot *slot;
	bool any = false;

	WRITE_ONCE(stopping, true);
	for_each_dma_slot(slot) {
		if (!is_kept_on(slot))
			continue;
		clear_master(slot->pdev);
		any = true;
	}
	if (!any)
		return;
	if (!lock_slots()) {
		pr_err("inherited devices lost bus master only: an order of the user does not end\n");
		return;
	}
	for_each_dma_slot(slot)
		if (slot->state == DMA_INHERITED)
			dma_cut_off(slot, "this kernel ends without a hand-over");
	mutex_unlock(&dma_lock);
}

/* One CPU is left: whoever switched bus master on again meanwhile is gone. */
void dma_stop_last(void)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot)
		if (slot->state != DMA_FREE)
			clear_master(slot->pdev);
}

/*
 * A panic, and a crash kernel is about to start, which may switch translation off as well.
 * The one lock of access to config space may be held by a CPU that does not go on, or
 * by this one. Then the dump comes first.
 */
void dma_stop_in_panic(void)
{
	struct dma_slot *slot;
	int us;

	for_each_dma_slot(slot) {
		if (!is_kept_on(slot))
			continue;
		for (us = 0; raw_spin_is_locked(kernel_config_lock()); us++) {
			if (us == PANIC_US) {
				pr_emerg("inherited devices are not stopped: PCI is locked\n");
				return;
			}
			udelay(1);
		}
		clear_master(slot->pdev);
		pr_emerg("%s is stopped\n", pci_name(slot->pdev));
	}
}
