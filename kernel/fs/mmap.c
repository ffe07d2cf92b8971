// SPDX-License-Identifier: GPL-2.0-only
/*
 * Content of files by mapping: how guests get their RAM.
 *
 * A fault inserts the largest entry that file, address and memory allow: 1 GiB,
 * 2 MiB or 4 KiB. There is no struct page behind it (VM_PFNMAP).
 */
#include <asm/cpufeature.h>

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pagemap.h>

#include "pkernfs.h"

/* The piece of a file and of the address space that one fault is about. */
struct piece {
	struct vm_fault *vmf;
	struct inode *inode;
	unsigned int order;
	unsigned long bytes;
	unsigned long addr;
	loff_t pos;
};

/*
 * Entries of a writable mapping are writable from the start, also when a read
 * brings them in: KVM takes a page it may only read for read-only memory, and the
 * guest's next write there would fail (virt/kvm/kvm_main.c, hva_to_pfn_remapped()).
 * So there is no write fault on an entry, and no pfn_mkwrite.
 */
static vm_fault_t insert(const struct piece *piece, u64 phys)
{
	struct vm_fault *vmf = piece->vmf;
	bool write = vmf->vma->vm_flags & VM_WRITE;
	unsigned long pfn = PHYS_PFN(phys);

	if (pkernfs_region(piece->inode)->pagemap)
		return pkernfs_insert_page(vmf, pfn, piece->order, write);
	pkernfs_reach_mark(vmf->vma->vm_private_data, phys, piece->bytes);

	switch (piece->order) {
	case 0:
		return vmf_insert_pfn(vmf->vma, vmf->address, pfn);
	case PMD_ORDER:
		return vmf_insert_pfn_pmd(vmf, pkernfs_pfn(pfn), write);
	case PUD_ORDER:
		return vmf_insert_pfn_pud(vmf, pkernfs_pfn(pfn), write);
	default:
		return VM_FAULT_FALLBACK;
	}
}

/* Is there one run of memory, aligned like the piece, for all of it? */
static bool find_memory(const struct piece *piece, u64 *phys)
{
	struct pkernfs_region *region = pkernfs_region(piece->inode);
	u32 offset = piece->pos & (PKERNFS_BLOCK_SIZE - 1);
	u32 block, count;

	lockdep_assert_held(&region->lock);
	if (!pkernfs_node_map(region->store, pkernfs_node(piece->inode),
			      piece->pos >> PKERNFS_BLOCK_SHIFT, &block, &count))
		return false;
	*phys = region->base + ((u64)block << PKERNFS_BLOCK_SHIFT) + offset;
	return ((u64)count << PKERNFS_BLOCK_SHIFT) - offset >= piece->bytes &&
	       IS_ALIGNED(*phys, piece->bytes);
}

/* Was this mapped by somebody who may only read the file, and always will? */
static bool reads_only(const struct vm_area_struct *vma)
{
	return !(vma->vm_flags & VM_MAYWRITE);
}

/*
 * Who only reads gets the zero page for a hole: no reader fills the store. The store is
 * locked until it is in place, so it is there for pkernfs_drop_zeros() to find, or not at
 * all.
 *
 * Who may write gets a block at once, also for a read: an entry that is not writable in a
 * mapping that is would fail a later write of KVM or a map for DMA, which both don't ask
 * for the fault again (see insert()).
 */
static vm_fault_t insert_zero(const struct piece *piece)
{
	struct pkernfs_region *region = pkernfs_region(piece->inode);
	struct vm_fault *vmf = piece->vmf;
	vm_fault_t ret = VM_FAULT_NOPAGE;
	unsigned int nofs;
	u64 phys;

	if (piece->order)
		return VM_FAULT_FALLBACK;
	down_read(&region->lock);
	nofs = memalloc_nofs_save();
	if (!find_memory(piece, &phys)) {
		set_bit(PKERNFS_ZEROS_MAPPED, &pkernfs_node(piece->inode)->user);
		if (region->pagemap)
			ret = pkernfs_insert_zero_page(vmf);
		else
			ret = vmf_insert_pfn(vmf->vma, vmf->address,
					     page_to_pfn(ZERO_PAGE(vmf->address)));
	}
	memalloc_nofs_restore(nofs);
	up_read(&region->lock);
	return ret;
}

/*
 * Blocks have come where holes were. The store is still locked, so nobody has found them
 * yet when the zero page is gone from all mappings.
 */
void pkernfs_drop_zeros(struct inode *inode, loff_t pos, loff_t bytes)
{
	lockdep_assert_held_write(&pkernfs_region(inode)->lock);
	/* No bytes would mean all that follow. */
	if (bytes && test_bit(PKERNFS_ZEROS_MAPPED, &pkernfs_node(inode)->user))
		unmap_mapping_range(inode->i_mapping, pos, bytes, 1);
}

/* A hole gets one block; what a larger entry would need may not be there. */
static vm_fault_t fill_hole(const struct piece *piece, u64 *phys)
{
	struct pkernfs_region *region = pkernfs_region(piece->inode);
	int err = 0;

	if (piece->bytes > PKERNFS_BLOCK_SIZE)
		return VM_FAULT_FALLBACK;
	if (sb_rdonly(piece->inode->i_sb))
		return VM_FAULT_SIGBUS;

	pkernfs_lock(region);
	if (!find_memory(piece, phys)) {
		err = pkernfs_node_allocate(region->store, pkernfs_node(piece->inode),
					    piece->pos >> PKERNFS_BLOCK_SHIFT, 1, 0,
					    pkernfs_now());
		if (!err && !find_memory(piece, phys))
			err = -EIO;
		if (!err)
			pkernfs_drop_zeros(piece->inode,
					   round_down(piece->pos, PKERNFS_BLOCK_SIZE),
					   PKERNFS_BLOCK_SIZE);
		pkernfs_inode_sync(piece->inode);
	}
	pkernfs_unlock(region);
	if (err == -ENOMEM)
		return VM_FAULT_OOM;
	return err ? VM_FAULT_SIGBUS : 0;
}

/*
 * Past the end of a file its last page is zero, whatever a mapping has left there, or
 * a crash between a truncate and its zeroing. A write that makes the file longer has to
 * wait for the store before it may copy, so it can't be its data that goes.
 */
static vm_fault_t zero_tail(const struct piece *piece)
{
	struct pkernfs_region *region = pkernfs_region(piece->inode);
	int err;

	if (sb_rdonly(piece->inode->i_sb))
		return 0;
	pkernfs_lock(region);
	err = pkernfs_node_zero_tail(region->store, pkernfs_node(piece->inode));
	pkernfs_unlock(region);
	return err ? VM_FAULT_OOM : 0;
}

/* invalidate_lock is held shared: the file does not shrink and keeps its blocks. */
static vm_fault_t fault_locked(const struct piece *piece)
{
	struct pkernfs_region *region = pkernfs_region(piece->inode);
	loff_t size = i_size_read(piece->inode);
	vm_fault_t ret;
	bool found;
	u64 phys;

	if (piece->pos >= size)
		return VM_FAULT_SIGBUS;
	/* The last page of a file may lie across its end, a larger entry may not. */
	if (piece->order && piece->pos + piece->bytes > size)
		return VM_FAULT_FALLBACK;

	down_read(&region->lock);
	found = find_memory(piece, &phys);
	up_read(&region->lock);
	if (!found && reads_only(piece->vmf->vma))
		return insert_zero(piece);
	if (!found) {
		ret = fill_hole(piece, &phys);
		if (ret)
			return ret;
	}
	if (piece->pos + piece->bytes > size) {
		ret = zero_tail(piece);
		if (ret)
			return ret;
	}
	return insert(piece, phys);
}

static bool order_known(unsigned int order)
{
	if (order == PUD_ORDER)
		return boot_cpu_has(X86_FEATURE_GBPAGES);
	return order == 0 || order == PMD_ORDER;
}

static vm_fault_t pkernfs_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	struct inode *inode = file_inode(vma->vm_file);
	struct piece piece = {
		.vmf	= vmf,
		.inode	= inode,
		.order	= order,
		.bytes	= PAGE_SIZE << order,
	};
	vm_fault_t ret;

	if (!order_known(order))
		return VM_FAULT_FALLBACK;
	piece.addr = ALIGN_DOWN(vmf->address, piece.bytes);
	if (piece.addr < vma->vm_start || piece.addr + piece.bytes > vma->vm_end)
		return VM_FAULT_FALLBACK;
	piece.pos = (loff_t)linear_page_index(vma, piece.addr) << PAGE_SHIFT;
	if (!IS_ALIGNED(piece.pos, piece.bytes))
		return VM_FAULT_FALLBACK;

	sb_start_pagefault(inode->i_sb);
	if ((vmf->flags & FAULT_FLAG_WRITE) && (vma->vm_flags & VM_SHARED))
		file_update_time(vma->vm_file);
	filemap_invalidate_lock_shared(inode->i_mapping);
	ret = fault_locked(&piece);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	sb_end_pagefault(inode->i_sb);
	return ret;
}

static vm_fault_t pkernfs_fault(struct vm_fault *vmf)
{
	return pkernfs_huge_fault(vmf, 0);
}

/*
 * A VMA that is new, but not by mmap(). If it is to become the new place of one that
 * mremap() moves, nothing of the file's part may be mapped when that goes on to move
 * page tables: it takes an entry of 1 GiB for a bad one, and clears it without a flush
 * of the TLB (mm/mremap.c, get_old_pud()). Then the old address would reach the blocks
 * also when they are somebody else's. Nobody can fault them in again meanwhile: the old
 * VMA is locked, and faults elsewhere do no harm.
 *
 * mremap() has cleared the new place before. A VMA that is split has its other half
 * there, and one of a fork belongs to another mm; neither has anything moved.
 */
static void pkernfs_vma_open(struct vm_area_struct *vma)
{
	if (vma->vm_private_data && vma->vm_mm != current->mm)
		vma->vm_private_data = pkernfs_reach_fork(vma->vm_private_data, vma->vm_mm);
	if (vma->vm_mm != current->mm ||
	    find_vma_intersection(vma->vm_mm, vma->vm_start, vma->vm_end))
		return;
	unmap_mapping_range(vma->vm_file->f_mapping, (loff_t)vma->vm_pgoff << PAGE_SHIFT,
			    vma->vm_end - vma->vm_start, 1);
}

/*
 * Lets a debugger look. The zero page is the kernel's own memory, which must not be mapped
 * a second time for that.
 */
static int pkernfs_access(struct vm_area_struct *vma, unsigned long addr, void *buf, int len,
			  int write)
{
	struct inode *inode = file_inode(vma->vm_file);
	struct pkernfs_region *region = pkernfs_region(inode);
	loff_t pos = ((loff_t)vma->vm_pgoff << PAGE_SHIFT) + (addr - vma->vm_start);
	u32 block, count;
	bool hole;

	if (write || !reads_only(vma) || pos >= i_size_read(inode))
		return generic_access_phys(vma, addr, buf, len, write);
	down_read(&region->lock);
	hole = !pkernfs_node_map(region->store, pkernfs_node(inode),
				 pos >> PKERNFS_BLOCK_SHIFT, &block, &count);
	up_read(&region->lock);
	if (!hole)
		return generic_access_phys(vma, addr, buf, len, write);
	len = min_t(u64, len, PKERNFS_BLOCK_SIZE - (pos & (PKERNFS_BLOCK_SIZE - 1)));
	memset(buf, 0, len);
	return len;
}

static const struct vm_operations_struct pkernfs_vm_ops = {
	.open		= pkernfs_vma_open,
	.fault		= pkernfs_fault,
	.huge_fault	= pkernfs_huge_fault,
	.access		= pkernfs_access,
};

/*
 * Shared, or private but never to be written: a private copy of a page would need a
 * struct page to copy from. VM_HUGEPAGE asks for large entries also where the system
 * is set to give them only to those who ask.
 */
int pkernfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct pkernfs_region *region = pkernfs_region(file_inode(file));

	if (!(vma->vm_flags & VM_MAYSHARE)) {
		if (vma->vm_flags & VM_WRITE)
			return -EINVAL;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	if (!region->pagemap) {
		/* Pages can be pinned; without them it is noted who had what mapped. */
		vma->vm_private_data = pkernfs_reach_mapper(region, vma->vm_mm);
		if (!vma->vm_private_data)
			return -ENOMEM;
	}
	file_accessed(file);
	/* VM_DONTEXPAND also keeps khugepaged away, which would look for a page cache. */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP | VM_HUGEPAGE);
	if (region->pagemap)
		vm_flags_set(vma, PKERNFS_VM_PAGES);
	else
		vm_flags_set(vma, VM_PFNMAP);
	vma->vm_ops = &pkernfs_vm_ops;
	return 0;
}

/* An address congruent with the file offset modulo align, or an error. */
static unsigned long aligned_area(struct file *file, unsigned long len, unsigned long pgoff,
				  unsigned long flags, unsigned long align)
{
	unsigned long off = pgoff << PAGE_SHIFT;
	unsigned long addr;

	if (len < align || len + align < len)
		return -ENOMEM;
	addr = pkernfs_get_unmapped_area(file, 0, len + align, pgoff, flags);
	if (IS_ERR_VALUE(addr))
		return addr;
	return addr + ((off - addr) & (align - 1));
}

/* Where a mapping goes if its user leaves that open: so that large entries fit. */
unsigned long pkernfs_file_area(struct file *file, unsigned long addr, unsigned long len,
				unsigned long pgoff, unsigned long flags)
{
	unsigned long found;

	if (addr || (flags & MAP_FIXED))
		return pkernfs_get_unmapped_area(file, addr, len, pgoff, flags);

	found = aligned_area(file, len, pgoff, flags, PUD_SIZE);
	if (IS_ERR_VALUE(found))
		found = aligned_area(file, len, pgoff, flags, PMD_SIZE);
	if (IS_ERR_VALUE(found))
		found = pkernfs_get_unmapped_area(file, addr, len, pgoff, flags);
	return found;
}
