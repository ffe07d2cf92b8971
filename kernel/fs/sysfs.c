// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/fs/pkernfs/REGION: where a region lies, what of its store is damaged, and its
 * metadata as it is at this moment, so that a store can be checked from outside while
 * it is mounted.
 */
#include <linux/kobject.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "pkernfs.h"

static struct kset *pkernfs_kset;

static struct pkernfs_region *kobj_region(struct kobject *kobj)
{
	return container_of(kobj, struct pkernfs_region, kobj);
}

static ssize_t base_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "0x%llx\n", kobj_region(kobj)->base);
}

static ssize_t size_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", kobj_region(kobj)->size);
}

/*
 * Changes with every change of the metadata: who reads it before and after
 * reading metadata, and finds the same, has a state that really was.
 */
static ssize_t sequence_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	struct pkernfs_region *region = kobj_region(kobj);
	u64 sequence;

	down_read(&region->lock);
	sequence = region->sequence;
	up_read(&region->lock);
	return sysfs_emit(buf, "%llu\n", sequence);
}

/* Has the memory of the mounted store struct pages, so that O_DIRECT reaches it? */
static ssize_t pages_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	struct pkernfs_region *region = kobj_region(kobj);
	bool has_pages;

	down_read(&region->lock);
	has_pages = region->pagemap;
	up_read(&region->lock);
	return sysfs_emit(buf, "%d\n", has_pages);
}

/* Blocks of the mounted store that are in no file, but that a device may still reach. */
static ssize_t limbo_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	struct pkernfs_usage usage;

	pkernfs_region_usage(kobj_region(kobj), &usage);
	return sysfs_emit(buf, "%llu\n", usage.blocks_limbo);
}

static struct kobj_attribute base_attr = __ATTR_RO(base);
static struct kobj_attribute size_attr = __ATTR_RO(size);
static struct kobj_attribute sequence_attr = __ATTR_RO(sequence);
static struct kobj_attribute pages_attr = __ATTR_RO(pages);
static struct kobj_attribute limbo_attr = __ATTR_RO(limbo);

static struct attribute *pkernfs_attrs[] = {
	&base_attr.attr,
	&size_attr.attr,
	&sequence_attr.attr,
	&pages_attr.attr,
	&limbo_attr.attr,
	NULL,
};
ATTRIBUTE_GROUPS(pkernfs);

/*
 * Metadata blocks as they are, data as zeros. Reads within one slot see it whole:
 * sysfs asks for up to a page at a time, and the lock keeps changes out. Without
 * a store that could say which blocks are metadata, everything reads as it is.
 */
static int read_block(struct pkernfs_region *region, char *buf, loff_t off, size_t bytes)
{
	u32 block = off >> PKERNFS_BLOCK_SHIFT;
	u32 offset = off & (PKERNFS_BLOCK_SIZE - 1);
	void *addr;

	if (region->store) {
		if (pkernfs_store_meta_block(region->store, block, &addr))
			memcpy(buf, addr + offset, bytes);
		else
			memset(buf, 0, bytes);
		return 0;
	}

	addr = pkernfs_map(region, region->base + off, bytes);
	if (!addr)
		return -ENOMEM;
	memcpy(buf, addr, bytes);
	pkernfs_unmap(addr);
	return 0;
}

static ssize_t metadata_read(struct file *file, struct kobject *kobj, pkernfs_bin_attr_t *attr,
			     char *buf, loff_t off, size_t count)
{
	struct pkernfs_region *region = kobj_region(kobj);
	size_t done = 0;
	int err = 0;

	if (off < 0 || off >= region->size)
		return 0;
	count = min_t(u64, count, region->size - off);

	down_read(&region->lock);
	while (done < count) {
		loff_t pos = off + done;
		size_t bytes = min_t(size_t, count - done,
				     PKERNFS_BLOCK_SIZE - (pos & (PKERNFS_BLOCK_SIZE - 1)));

		err = read_block(region, buf + done, pos, bytes);
		if (err)
			break;
		done += bytes;
	}
	up_read(&region->lock);
	return err ?: count;
}

/* What the mounted store left out as damaged, a line for each; empty if nothing. */
static ssize_t damaged_read(struct file *file, struct kobject *kobj, pkernfs_bin_attr_t *attr,
			    char *buf, loff_t off, size_t count)
{
	struct pkernfs_region *region = kobj_region(kobj);
	const char *text = "";
	ssize_t done;
	u32 length = 0;

	down_read(&region->lock);
	if (region->store)
		text = pkernfs_store_damage(region->store, &length);
	done = memory_read_from_buffer(buf, count, &off, text, length);
	up_read(&region->lock);
	return done;
}

static void pkernfs_kobj_release(struct kobject *kobj)
{
	pkernfs_region_free(kobj_region(kobj));
}

static const struct kobj_type pkernfs_ktype = {
	.release	= pkernfs_kobj_release,
	.sysfs_ops	= &kobj_sysfs_ops,
	.default_groups	= pkernfs_groups,
};

/* Takes the region over: it is freed with its last reference, also on failure. */
int pkernfs_sysfs_add(struct pkernfs_region *region)
{
	int err;

	region->kobj.kset = pkernfs_kset;
	err = kobject_init_and_add(&region->kobj, &pkernfs_ktype, NULL, "%s", region->name);
	if (err)
		goto put_kobj;

	sysfs_bin_attr_init(&region->metadata);
	region->metadata.attr.name = "metadata";
	region->metadata.attr.mode = 0400;
	region->metadata.size = region->size;
	region->metadata.read = metadata_read;
	err = sysfs_create_bin_file(&region->kobj, &region->metadata);
	if (err)
		goto put_kobj;

	sysfs_bin_attr_init(&region->damaged);
	region->damaged.attr.name = "damaged";
	region->damaged.attr.mode = 0400;
	region->damaged.read = damaged_read;
	err = sysfs_create_bin_file(&region->kobj, &region->damaged);
	if (err)
		goto put_kobj;

	return 0;

put_kobj:
	kobject_put(&region->kobj);
	return err;
}

int pkernfs_sysfs_init(void)
{
	pkernfs_kset = kset_create_and_add(KBUILD_MODNAME, NULL, fs_kobj);
	return pkernfs_kset ? 0 : -ENOMEM;
}

void pkernfs_sysfs_exit(void)
{
	kset_unregister(pkernfs_kset);
}
