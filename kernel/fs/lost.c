// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tree in memory, and lost+found: a directory that is stored nowhere, for good inodes
 * whose place in the tree is damaged. Moving one from there to a directory gives it a
 * place again; until then it keeps the one that it names, and the next mount looks again.
 */
#include "store_private.h"

static const char lost_name[] = "lost+found";

/* A directory like any other, but its inode is not in the range. */
static struct pkernfs_node *lost_dir(struct pkernfs_store *store)
{
	const struct pkernfs_inode *root = store->root->inode;
	struct pkernfs_inode *inode;

	if (store->lost)
		return store->lost;
	inode = kzalloc(sizeof(*inode), PKERNFS_GFP);
	if (!inode)
		return NULL;
	inode->atime_ns = root->mtime_ns;
	inode->mtime_ns = root->mtime_ns;
	inode->ctime_ns = root->mtime_ns;
	inode->btime_ns = root->mtime_ns;
	inode->ino = cpu_to_le64(PKERNFS_LOST_INO);
	inode->parent = cpu_to_le64(PKERNFS_ROOT_INO);
	inode->mode = cpu_to_le32(S_IFDIR | 0700);
	store->lost = pkernfs_node_new(store, 0, inode);
	if (!store->lost)
		kfree(inode);
	return store->lost;
}

void pkernfs_lost_drop(struct pkernfs_store *store)
{
	if (!store->lost)
		return;
	kfree(store->lost->alias);
	kfree(store->lost->inode);
	kfree(store->lost);
}

/* No two have the same, and the number is what the log and check name. */
static char *make_alias(const struct pkernfs_node *node)
{
	char *alias = kmalloc(PKERNFS_NAME_MAX + 1, PKERNFS_GFP);
	int len;

	if (!alias)
		return NULL;
	len = scnprintf(alias, PKERNFS_NAME_MAX + 1, "%llu-", node->ino);
	scnprintf(alias + len, PKERNFS_NAME_MAX + 1 - len, "%.*s",
		  le16_to_cpu(node->inode->name_len), node->inode->name);
	return alias;
}

static int put_lost(struct pkernfs_store *store, struct pkernfs_node *node)
{
	struct pkernfs_node *dir = lost_dir(store);

	if (!dir)
		return -ENOMEM;
	node->alias = make_alias(node);
	if (!node->alias)
		return -ENOMEM;
	pkernfs_node_link(dir, node);
	return 0;
}

/* Of two with one name the one that was changed last has it. */
static int settle_name(struct pkernfs_store *store, struct pkernfs_node *dir,
		       struct pkernfs_node *node)
{
	struct pkernfs_node *other;
	int err;

	other = pkernfs_node_lookup(dir, (const char *)node->inode->name,
				    le16_to_cpu(node->inode->name_len));
	if (le64_to_cpu(other->inode->seq) < le64_to_cpu(node->inode->seq)) {
		pkernfs_node_unlink_name(other);
		pkernfs_node_link(dir, node);
		swap(node, other);
	}
	err = pkernfs_damage_lost(store, node, "inode %llu has its name", other->ino);
	return err ? err : put_lost(store, node);
}

static int link_node(struct pkernfs_store *store, struct pkernfs_node *node)
{
	const u64 parent = le64_to_cpu(node->inode->parent);
	struct pkernfs_node *dir = pkernfs_node_find(store, parent);
	int err;

	if (dir && pkernfs_is_dir(dir->inode))
		return pkernfs_node_link(dir, node) ? 0 : settle_name(store, dir, node);
	err = pkernfs_damage_lost(store, node, dir ? "inode %llu, where it lies, is no directory" :
				  "its directory, inode %llu, is missing", parent);
	return err ? err : put_lost(store, node);
}

static int link_all(struct pkernfs_store *store)
{
	struct pkernfs_node *node;
	int err = 0;

	for (node = pkernfs_node_lowest(store); node && !err; node = pkernfs_node_higher(node))
		if (node != store->root)
			err = link_node(store, node);
	return err;
}

/* The node that follows in a walk from top, directories before what is in them. */
static struct pkernfs_node *walk_next(const struct pkernfs_node *top, struct pkernfs_node *node)
{
	struct rb_node *at = rb_first(&node->children);

	while (!at && node != top) {
		at = rb_next(&node->by_child);
		node = node->parent;
	}
	return rb_entry_safe(at, struct pkernfs_node, by_child);
}

static void reach(struct pkernfs_node *top)
{
	struct pkernfs_node *node;

	for (node = top; node; node = walk_next(top, node))
		node->reached = true;
}

/* Who goes up from here comes to a cycle: the lowest number in it. */
static struct pkernfs_node *lowest_in_cycle(struct pkernfs_node *node)
{
	struct pkernfs_node *slow = node, *fast = node, *lowest, *at;

	do {
		slow = slow->parent;
		fast = fast->parent->parent;
	} while (slow != fast);
	lowest = slow;
	for (at = slow->parent; at != slow; at = at->parent)
		if (at->ino < lowest->ino)
			lowest = at;
	return lowest;
}

/* What can't be reached now is a directory in itself, or lies in one. */
static int cut_cycles(struct pkernfs_store *store)
{
	struct pkernfs_node *node, *top;
	int err = 0;

	for (node = pkernfs_node_lowest(store); node && !err; node = pkernfs_node_higher(node)) {
		if (node->reached)
			continue;
		top = lowest_in_cycle(node);
		err = pkernfs_damage_lost(store, top, "a directory that is in itself");
		pkernfs_node_unlink_name(top);
		if (!err)
			err = put_lost(store, top);
		if (!err)
			reach(top);
	}
	return err;
}

/* Under the first name that is free: somebody's own lost+found stays where it is. */
static int link_lost(struct pkernfs_store *store)
{
	struct pkernfs_node *dir = store->lost;
	u32 number = 0;

	dir->alias = kmalloc(sizeof(lost_name) + 11, PKERNFS_GFP);
	if (!dir->alias)
		return -ENOMEM;
	scnprintf(dir->alias, sizeof(lost_name), "%s", lost_name);
	while (!pkernfs_node_link(store->root, dir))
		scnprintf(dir->alias, sizeof(lost_name) + 11, "%s.%u", lost_name, ++number);
	return 0;
}

/* Links what pkernfs_load_live() found. */
int pkernfs_load_tree(struct pkernfs_store *store)
{
	int err;

	store->root->parent = store->root;
	err = link_all(store);
	if (err)
		return err;
	reach(store->root);
	if (store->lost)
		reach(store->lost);
	err = cut_cycles(store);
	if (!err && store->lost)
		err = link_lost(store);
	return err;
}
