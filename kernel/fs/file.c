// SPDX-License-Identifier: GPL-2.0-only
/*
 * Content of files by system call. There is no page cache: read and write copy
 * between the user's memory and the blocks, which are mapped for just that long.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/splice.h>
#include <linux/uio.h>

#include "pkernfs.h"

#define PKERNFS_SPAN_MAX	SZ_32M	/* copied in one go */

/* What lies at a position of a file: bytes of memory, or of a hole. */
struct span {
	bool hole;
	u64 phys;
	size_t bytes;
};

/* Valid as long as the caller holds i_rwsem. */
static void span_at(struct inode *inode, loff_t pos, loff_t end, struct span *span)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	u32 offset = pos & (PKERNFS_BLOCK_SIZE - 1);
	u32 block = 0, count;
	u64 bytes;

	down_read(&region->lock);
	span->hole = !pkernfs_node_map(region->store, pkernfs_node(inode),
				       pos >> PKERNFS_BLOCK_SHIFT, &block, &count);
	up_read(&region->lock);

	bytes = min_t(u64, ((u64)count << PKERNFS_BLOCK_SHIFT) - offset, end - pos);
	/* From a block's start on a mapping can use large entries. */
	if (offset)
		bytes = min_t(u64, bytes, PKERNFS_BLOCK_SIZE - offset);
	span->bytes = min_t(u64, bytes, PKERNFS_SPAN_MAX);
	span->phys = region->base + ((u64)block << PKERNFS_BLOCK_SHIFT) + offset;
}

static ssize_t read_span(struct inode *inode, const struct span *span, struct iov_iter *to)
{
	size_t done;
	void *addr;

	if (span->hole)
		return iov_iter_zero(span->bytes, to);

	addr = pkernfs_map(pkernfs_region(inode), span->phys, span->bytes);
	if (!addr)
		return -ENOMEM;
	done = copy_to_iter(addr, span->bytes, to);
	pkernfs_unmap(addr);
	return done;
}

static ssize_t write_span(struct inode *inode, const struct span *span, struct iov_iter *from)
{
	size_t done;
	void *addr;

	addr = pkernfs_map(pkernfs_region(inode), span->phys, span->bytes);
	if (!addr)
		return -ENOMEM;
	done = copy_from_iter(addr, span->bytes, from);
	pkernfs_unmap(addr);
	return done;
}

/* Moves [pos, end) between a file and an iterator; what was moved, or why nothing was. */
static ssize_t move_spans(struct inode *inode, loff_t pos, loff_t end, struct iov_iter *iter,
			  ssize_t (*move)(struct inode *, const struct span *, struct iov_iter *))
{
	ssize_t total = 0, done = 0;
	struct span span;

	while (pos < end) {
		span_at(inode, pos, end, &span);
		done = move(inode, &span, iter);
		if (done > 0) {
			total += done;
			pos += done;
		}
		if (done < 0 || done < span.bytes)
			break;
		if (fatal_signal_pending(current)) {
			done = -EINTR;
			break;
		}
		cond_resched();
	}
	if (total)
		return total;
	return done < 0 ? done : -EFAULT;
}

static ssize_t pkernfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	loff_t end, size;
	ssize_t done = 0;

	inode_lock_shared(inode);
	size = i_size_read(inode);
	if (iov_iter_count(to) && iocb->ki_pos < size) {
		end = iocb->ki_pos + min_t(u64, iov_iter_count(to), size - iocb->ki_pos);
		done = move_spans(inode, iocb->ki_pos, end, to, read_span);
	}
	inode_unlock_shared(inode);

	if (done > 0)
		iocb->ki_pos += done;
	file_accessed(iocb->ki_filp);
	return done;
}

/* Is all of [pos, end) there, and within the size? */
static bool has_space(struct inode *inode, loff_t pos, loff_t end)
{
	struct span span;

	if (end > i_size_read(inode))
		return false;
	for (; pos < end; pos += span.bytes) {
		span_at(inode, pos, end, &span);
		if (span.hole)
			return false;
	}
	return true;
}

/*
 * Either way, to the byte. A fault finds its block under invalidate_lock, so once
 * the mappings are taken away none comes back before the blocks are gone.
 */
int pkernfs_set_size(struct inode *inode, loff_t size)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct address_space *mapping = inode->i_mapping;
	int err;

	filemap_invalidate_lock(mapping);
	if (size > i_size_read(inode)) {
		err = pkernfs_fill_locked(inode, 0, 0, size);
		goto unlock;
	}
	unmap_mapping_range(mapping, round_up(size, PAGE_SIZE), 0, 1);
	/* Asked when nobody can give it to a device any more; else mappings come back. */
	if (size < i_size_read(inode) &&
	    pkernfs_blocks_busy(inode, DIV_ROUND_UP_ULL(size, PKERNFS_BLOCK_SIZE), U32_MAX)) {
		err = -EBUSY;
		goto unlock;
	}
	pkernfs_lock(region);
	err = pkernfs_node_resize(region->store, pkernfs_node(inode), size, pkernfs_now());
	if (!err)
		pkernfs_inode_sync(inode);
	pkernfs_unlock(region);
unlock:
	filemap_invalidate_unlock(mapping);
	return err;
}

/*
 * Space first, all of it or none; then the size; then the data. Whoever looks in
 * between (through a mapping, or after a crash) sees zeros where data will be.
 */
static ssize_t write_locked(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	loff_t old_size, pos, end;
	ssize_t done;
	int err;

	done = generic_write_checks(iocb, from);
	if (done <= 0)
		return done;
	err = file_modified(iocb->ki_filp);
	if (err)
		return err;

	pos = iocb->ki_pos;
	end = pos + iov_iter_count(from);
	old_size = i_size_read(inode);
	if (!has_space(inode, pos, end)) {
		err = pkernfs_fill(inode, pos, end, end);
		if (err)
			return err;
	}

	done = move_spans(inode, pos, end, from, write_span);
	if (pos + max_t(ssize_t, done, 0) < end && end > old_size)
		err = pkernfs_set_size(inode, max(old_size, done > 0 ? pos + done : 0));
	if (done > 0)
		iocb->ki_pos += done;
	return err ?: done;
}

static ssize_t pkernfs_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t done;

	inode_lock(inode);
	done = write_locked(iocb, from);
	inode_unlock(inode);
	return done;
}

/*
 * Nothing to do, and that is the truth: the store is the memory itself. Whatever
 * write() or a mapping has put there is where it will be found after a kexec or a
 * panic. Against a loss of power nothing here helps.
 */
int pkernfs_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	return 0;
}

/* A step for each extent and each hole, however long they are. */
static loff_t seek_span(struct inode *inode, loff_t pos, bool hole)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	loff_t size = i_size_read(inode);

	if (pos < 0 || pos >= size)
		return -ENXIO;
	while (pos < size) {
		u64 at = pos >> PKERNFS_BLOCK_SHIFT;
		u32 block, count;
		bool mapped;

		down_read(&region->lock);
		mapped = pkernfs_node_map(region->store, pkernfs_node(inode), at, &block, &count);
		up_read(&region->lock);
		if (mapped != hole)
			return pos;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		pos = (loff_t)(at + count) << PKERNFS_BLOCK_SHIFT;
	}
	/* There is a hole at the end of every file. */
	return hole ? size : -ENXIO;
}

static loff_t pkernfs_llseek(struct file *file, loff_t offset, int whence)
{
	struct inode *inode = file_inode(file);

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_file_llseek(file, offset, whence);

	inode_lock_shared(inode);
	offset = seek_span(inode, offset, whence == SEEK_HOLE);
	inode_unlock_shared(inode);
	return offset < 0 ? offset : vfs_setpos(file, offset, inode->i_sb->s_maxbytes);
}

/* Zeros in place, where there are blocks. */
static int zero_bytes(struct inode *inode, loff_t pos, loff_t end)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct span span;
	void *addr;

	for (; pos < end; pos += span.bytes) {
		span_at(inode, pos, end, &span);
		if (span.hole)
			continue;
		addr = pkernfs_map(region, span.phys, span.bytes);
		if (!addr)
			return -ENOMEM;
		memset(addr, 0, span.bytes);
		pkernfs_unmap(addr);
		cond_resched();
	}
	return 0;
}

/* Blocks wholly within [pos, end) go, the rest becomes zero. */
static int punch_hole(struct inode *inode, loff_t pos, loff_t end)
{
	struct pkernfs_region *region = pkernfs_region(inode);
	struct address_space *mapping = inode->i_mapping;
	loff_t first = round_up(pos, PKERNFS_BLOCK_SIZE);
	loff_t last = round_down(end, PKERNFS_BLOCK_SIZE);
	int err;

	if (first >= last)
		return zero_bytes(inode, pos, end);

	filemap_invalidate_lock(mapping);
	unmap_mapping_range(mapping, first, last - first, 1);
	err = -EBUSY;
	if (pkernfs_blocks_busy(inode, first >> PKERNFS_BLOCK_SHIFT,
				(last - first) >> PKERNFS_BLOCK_SHIFT))
		goto unlock;
	err = zero_bytes(inode, pos, first);
	if (!err)
		err = zero_bytes(inode, last, end);
	if (err)
		goto unlock;
	pkernfs_lock(region);
	err = pkernfs_node_punch(region->store, pkernfs_node(inode), first >> PKERNFS_BLOCK_SHIFT,
				 (last - first) >> PKERNFS_BLOCK_SHIFT, pkernfs_now());
	if (!err)
		pkernfs_inode_sync(inode);
	pkernfs_unlock(region);
unlock:
	filemap_invalidate_unlock(mapping);
	return err;
}

static int fallocate_locked(struct file *file, int mode, loff_t pos, loff_t end)
{
	struct inode *inode = file_inode(file);
	loff_t new_size = 0;
	int err;

	if (!(mode & FALLOC_FL_KEEP_SIZE) && end > i_size_read(inode)) {
		err = inode_newsize_ok(inode, end);
		if (err)
			return err;
		new_size = end;
	}
	err = file_modified(file);
	if (err)
		return err;

	if (mode & FALLOC_FL_PUNCH_HOLE)
		return punch_hole(inode, pos, end);
	err = pkernfs_fill(inode, pos, end, new_size);
	if (!err && (mode & FALLOC_FL_ZERO_RANGE))
		err = zero_bytes(inode, pos, end);
	return err;
}

static long pkernfs_fallocate(struct file *file, int mode, loff_t pos, loff_t len)
{
	struct inode *inode = file_inode(file);
	int err;

	switch (mode) {
	case 0:
	case FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
		break;
	default:
		return -EOPNOTSUPP;
	}

	inode_lock(inode);
	err = fallocate_locked(file, mode, pos, pos + len);
	inode_unlock(inode);
	return err;
}

/* With no page cache every access is direct: O_DIRECT changes nothing and needs nothing. */
static int pkernfs_open(struct inode *inode, struct file *file)
{
	file->f_mode |= FMODE_CAN_ODIRECT;
	return generic_file_open(inode, file);
}

const struct inode_operations pkernfs_file_iops = {
	.setattr	= pkernfs_setattr,
	.getattr	= pkernfs_getattr,
	.update_time	= pkernfs_update_time,
};

const struct file_operations pkernfs_file_fops = {
	.open			= pkernfs_open,
	.llseek			= pkernfs_llseek,
	.read_iter		= pkernfs_read_iter,
	.write_iter		= pkernfs_write_iter,
	.splice_read		= copy_splice_read,
	.splice_write		= iter_file_splice_write,
	.fallocate		= pkernfs_fallocate,
	.fsync			= pkernfs_fsync,
	.mmap			= pkernfs_mmap,
	.get_unmapped_area	= pkernfs_file_area,
};
