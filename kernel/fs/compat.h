/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels that the module is built for. Each macro is
 * set by Kbuild from this kernel's headers.
 */
#ifndef PKERNFS_COMPAT_H
#define PKERNFS_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sysfs.h>

/* Page frames to be inserted were a type of their own before 6.17. */
#ifdef PKERNFS_HAS_PFN_T
#include <linux/pfn_t.h>
#define pkernfs_pfn(pfn)	__pfn_to_pfn_t(pfn, PFN_DEV)
#else
#define pkernfs_pfn(pfn)	(pfn)
#endif

/*
 * The zero page, in a mapping that can't become writable, and a mapping of memory that
 * has struct pages. Before 6.15 an entry is marked as belonging to a device and has no
 * part in the page's counts. Since then it is an ordinary mapping of a folio, which is
 * one block large: there are no larger entries.
 */
#ifdef PKERNFS_HAS_INSERT_FOLIO
#define PKERNFS_VM_PAGES	0

static inline vm_fault_t
pkernfs_insert_page(struct vm_fault *vmf, unsigned long pfn, unsigned int order, bool write)
{
	if (order == 0)
		return vmf_insert_page_mkwrite(vmf, pfn_to_page(pfn), write);
	if (order == PMD_ORDER)
		return vmf_insert_folio_pmd(vmf, page_folio(pfn_to_page(pfn)), write);
	return VM_FAULT_FALLBACK;
}

static inline vm_fault_t pkernfs_insert_zero_page(struct vm_fault *vmf)
{
	return vmf_insert_page_mkwrite(vmf, ZERO_PAGE(vmf->address), false);
}
#else
#define PKERNFS_VM_PAGES	VM_MIXEDMAP

static inline vm_fault_t
pkernfs_insert_page(struct vm_fault *vmf, unsigned long pfn, unsigned int order, bool write)
{
	pfn_t page = __pfn_to_pfn_t(pfn, PFN_DEV | PFN_MAP);

	if (order == 0)
		return vmf_insert_mixed(vmf->vma, vmf->address, page);
	if (order == PMD_ORDER)
		return vmf_insert_pfn_pmd(vmf, page, write);
	if (order == PUD_ORDER)
		return vmf_insert_pfn_pud(vmf, page, write);
	return VM_FAULT_FALLBACK;
}

static inline vm_fault_t pkernfs_insert_zero_page(struct vm_fault *vmf)
{
	return vmf_insert_mixed(vmf->vma, vmf->address,
				page_to_pfn_t(ZERO_PAGE(vmf->address)));
}
#endif

static inline bool pkernfs_inode_is_new(struct inode *inode)
{
#ifdef PKERNFS_HAS_INODE_STATE_READ
	return inode_state_read_once(inode) & I_NEW;
#else
	return inode->i_state & I_NEW;
#endif
}

#ifdef PKERNFS_MKDIR_RETURNS_DENTRY
#define pkernfs_mkdir_t		struct dentry *
#define pkernfs_mkdir_result(err)	ERR_PTR(err)
#else
#define pkernfs_mkdir_t		int
#define pkernfs_mkdir_result(err)	(err)
#endif

/* The last parameter of create: there was another, which no filesystem like this looks at. */
#ifdef PKERNFS_CREATE_HAS_EXCL
#define pkernfs_create_mode(mode)	umode_t mode, bool excl
#else
#define pkernfs_create_mode(mode)	umode_t mode
#endif

#ifdef PKERNFS_BIN_ATTR_IS_CONST
#define pkernfs_bin_attr_t	const struct bin_attribute
#else
#define pkernfs_bin_attr_t	struct bin_attribute
#endif

static inline unsigned long
pkernfs_get_unmapped_area(struct file *file, unsigned long addr, unsigned long len,
			  unsigned long pgoff, unsigned long flags)
{
#ifdef PKERNFS_UNMAPPED_AREA_WITHOUT_MM
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
#else
	return mm_get_unmapped_area(current->mm, file, addr, len, pgoff, flags);
#endif
}

#endif /* PKERNFS_COMPAT_H */
