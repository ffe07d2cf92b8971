/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Between the table of touch points (hooks.c) and what hooked functions do (hooked.c).
 *
 * Originals: the address behind the ftrace call is a valid entry, the call is the first
 * thing in a function, before its stack frame.
 */
#ifndef PKERNFS_DMA_HOOKS_H
#define PKERNFS_DMA_HOOKS_H

#include "dma.h"

#include <linux/static_call.h>

void hook_shutdown(void);
void hook_crash(struct pt_regs *regs);
void hook_clear_master(struct pci_dev *pdev);
int hook_try_reset(struct pci_dev *pdev);
int hook_reset_locked(struct pci_dev *pdev);
int hook_reset_bus(struct pci_dev *pdev);
int hook_user_write_word(struct pci_dev *pdev, int pos, u16 value);
int hook_attach(DMA_ATTACH_PROTO);
int hook_block(DMA_ATTACH_PROTO);
int hook_identity(DMA_ATTACH_PROTO);
bool hook_coherency(struct iommu_domain *domain);
#ifdef PKERNFS_ATTACH_HAS_OLD
bool hook_coherency_first(struct iommu_domain *domain);
#endif
struct vtd_context *hook_context_addr(struct intel_iommu *driver, u8 bus, u8 devfn, int alloc);

DECLARE_STATIC_CALL(orig_shutdown, hook_shutdown);
DECLARE_STATIC_CALL(orig_crash, hook_crash);
DECLARE_STATIC_CALL(orig_clear_master, hook_clear_master);
DECLARE_STATIC_CALL(orig_try_reset, hook_try_reset);
DECLARE_STATIC_CALL(orig_reset_locked, hook_reset_locked);
DECLARE_STATIC_CALL(orig_reset_bus, hook_reset_bus);
DECLARE_STATIC_CALL(orig_user_write_word, hook_user_write_word);
DECLARE_STATIC_CALL(orig_attach, hook_attach);
DECLARE_STATIC_CALL(orig_block, hook_block);
DECLARE_STATIC_CALL(orig_identity, hook_identity);
DECLARE_STATIC_CALL(orig_coherency, hook_coherency);
#ifdef PKERNFS_ATTACH_HAS_OLD
DECLARE_STATIC_CALL(orig_coherency_first, hook_coherency_first);
#endif
DECLARE_STATIC_CALL(orig_context_addr, hook_context_addr);

#endif /* PKERNFS_DMA_HOOKS_H */
