// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files, directories and symlinks: the trees in memory and the steps that change
 * names and attributes.
 */
#include "store_private.h"

struct pkernfs_node *pkernfs_node_new(struct pkernfs_store *store, u32 slot,
				      const struct pkernfs_inode *inode)
{
	struct pkernfs_node *node = kzalloc(sizeof(*node), PKERNFS_GFP);

	if (!node)
		return NULL;
	node->names = RB_ROOT;
	node->children = RB_ROOT;
	node->slot = slot;
	node->inode = inode;
	if (inode)
		node->ino = le64_to_cpu(inode->ino);
	return node;
}

/* Makes a node known by its number; false if that is taken. */
bool pkernfs_node_insert(struct pkernfs_store *store, struct pkernfs_node *node)
{
	struct rb_node **at = &store->nodes.rb_node, *parent = NULL;

	while (*at) {
		struct pkernfs_node *other = rb_entry(*at, struct pkernfs_node, by_ino);

		if (node->ino == other->ino)
			return false;
		parent = *at;
		at = node->ino < other->ino ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&node->by_ino, parent, at);
	rb_insert_color(&node->by_ino, &store->nodes);
	store->nr_nodes++;
	return true;
}

void pkernfs_node_free(struct pkernfs_store *store, struct pkernfs_node *node)
{
	rb_erase(&node->by_ino, &store->nodes);
	store->nr_nodes--;
	kfree(node->alias);
	kfree(node);
}

struct pkernfs_node *pkernfs_node_lowest(struct pkernfs_store *store)
{
	return rb_entry_safe(rb_first(&store->nodes), struct pkernfs_node, by_ino);
}

struct pkernfs_node *pkernfs_node_higher(struct pkernfs_node *node)
{
	return rb_entry_safe(rb_next(&node->by_ino), struct pkernfs_node, by_ino);
}

struct pkernfs_node *pkernfs_node_find(struct pkernfs_store *store, u64 ino)
{
	struct rb_node *at = store->nodes.rb_node;

	while (at) {
		struct pkernfs_node *node = rb_entry(at, struct pkernfs_node, by_ino);

		if (ino == node->ino)
			return node;
		at = ino < node->ino ? at->rb_left : at->rb_right;
	}
	return NULL;
}

const struct pkernfs_inode *pkernfs_node_inode(struct pkernfs_store *store,
					       const struct pkernfs_node *node)
{
	return node->inode;
}

static const char *name_of(const struct pkernfs_node *node, u32 *len)
{
	if (node->alias) {
		*len = strlen(node->alias);
		return node->alias;
	}
	*len = le16_to_cpu(node->inode->name_len);
	return (const char *)node->inode->name;
}

const char *pkernfs_node_name(struct pkernfs_store *store, const struct pkernfs_node *node,
			      u32 *len)
{
	return name_of(node, len);
}

static u32 hash_name(const void *name, u32 len)
{
	return pkernfs_crc(0, name, len);
}

/* The names of a directory are ordered by hash: most comparisons need no slot. */
static int compare_name(u32 hash, const void *name, u32 len, const struct pkernfs_node *node)
{
	const char *node_name;
	u32 node_len;

	if (hash != node->name_hash)
		return hash < node->name_hash ? -1 : 1;
	node_name = name_of(node, &node_len);
	if (len != node_len)
		return len < node_len ? -1 : 1;
	return memcmp(name, node_name, len);
}

struct pkernfs_node *pkernfs_node_lookup(struct pkernfs_node *dir, const char *name, u32 len)
{
	struct rb_node *at = dir->names.rb_node;
	const u32 hash = hash_name(name, len);

	while (at) {
		struct pkernfs_node *node = rb_entry(at, struct pkernfs_node, by_name);
		int order = compare_name(hash, name, len, node);

		if (!order)
			return node;
		at = order < 0 ? at->rb_left : at->rb_right;
	}
	return NULL;
}

struct pkernfs_node *pkernfs_node_next(struct pkernfs_node *dir, u64 from)
{
	struct pkernfs_node *found = NULL;
	struct rb_node *at = dir->children.rb_node;

	while (at) {
		struct pkernfs_node *node = rb_entry(at, struct pkernfs_node, by_child);

		if (node->ino >= from) {
			found = node;
			at = at->rb_left;
		} else {
			at = at->rb_right;
		}
	}
	return found;
}

static bool link_name(struct pkernfs_node *dir, struct pkernfs_node *node)
{
	struct rb_node **at = &dir->names.rb_node, *parent = NULL;
	const char *name;
	u32 len;

	name = name_of(node, &len);
	node->name_hash = hash_name(name, len);
	while (*at) {
		struct pkernfs_node *other = rb_entry(*at, struct pkernfs_node, by_name);
		int order = compare_name(node->name_hash, name, len, other);

		if (!order)
			return false;
		parent = *at;
		at = order < 0 ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&node->by_name, parent, at);
	rb_insert_color(&node->by_name, &dir->names);
	return true;
}

static void link_child(struct pkernfs_node *dir, struct pkernfs_node *node)
{
	struct rb_node **at = &dir->children.rb_node, *parent = NULL;

	while (*at) {
		parent = *at;
		at = node->ino < rb_entry(parent, struct pkernfs_node, by_child)->ino ?
			&parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&node->by_child, parent, at);
	rb_insert_color(&node->by_child, &dir->children);
}

/* Puts a node into the trees of its directory; false: there is one of that name. */
bool pkernfs_node_link(struct pkernfs_node *dir, struct pkernfs_node *node)
{
	if (!link_name(dir, node))
		return false;
	link_child(dir, node);
	node->parent = dir;
	dir->nr_children++;
	dir->nr_subdirs += pkernfs_is_dir(node->inode);
	return true;
}

/* Takes a node out of its directory, as it is in memory. */
void pkernfs_node_unlink_name(struct pkernfs_node *node)
{
	struct pkernfs_node *dir = node->parent;

	rb_erase(&node->by_name, &dir->names);
	rb_erase(&node->by_child, &dir->children);
	node->parent = NULL;
	dir->nr_children--;
	dir->nr_subdirs -= pkernfs_is_dir(node->inode);
}

/* Each of the three is one word that is valid whatever its value, so it changes in place. */
void pkernfs_node_set_times(struct pkernfs_store *store, struct pkernfs_node *node,
			    const s64 *atime_ns, const s64 *mtime_ns, const s64 *ctime_ns)
{
	struct pkernfs_inode *inode = (struct pkernfs_inode *)node->inode;

	pkernfs_assert_locked(store);
	if (pkernfs_is_lost_dir(node))
		return;
	if (atime_ns)
		pkernfs_put64(&inode->atime_ns, *atime_ns);
	if (mtime_ns)
		pkernfs_put64(&inode->mtime_ns, *mtime_ns);
	if (ctime_ns)
		pkernfs_put64(&inode->ctime_ns, *ctime_ns);
}

static void touch_dir(struct pkernfs_store *store, struct pkernfs_node *dir, s64 now_ns)
{
	pkernfs_node_set_times(store, dir, NULL, &now_ns, &now_ns);
}

static int check_place(const struct pkernfs_node *dir, const char *name, u32 len)
{
	if (len > PKERNFS_NAME_MAX)
		return -ENAMETOOLONG;
	if (!pkernfs_name_valid((const u8 *)name, len))
		return -EINVAL;
	if (!pkernfs_is_dir(dir->inode))
		return -ENOTDIR;
	if (pkernfs_is_lost_dir(dir))
		return -EPERM;
	return dir->orphan ? -ENOENT : 0;
}

static void set_name(struct pkernfs_inode *draft, const struct pkernfs_node *dir,
		     const char *name, u32 len)
{
	draft->parent = cpu_to_le64(dir->ino);
	draft->name_len = cpu_to_le16(len);
	memset(draft->name, 0, sizeof(draft->name));
	memcpy(draft->name, name, len);
}

static int check_new(const struct pkernfs_store *store, const struct pkernfs_attr *attr,
		     const char *target, u32 target_len)
{
	if (S_ISLNK(attr->mode)) {
		if (!target || !target_len || memchr(target, 0, target_len))
			return -EINVAL;
		if (target_len > PKERNFS_SYMLINK_MAX)
			return -ENAMETOOLONG;
	} else if (target || !(S_ISREG(attr->mode) || S_ISDIR(attr->mode))) {
		return -EINVAL;
	}
	return store->next_ino >= PKERNFS_LOST_INO ? -ENOSPC : 0;
}

static void draft_new(struct pkernfs_store *store, u64 ino, const struct pkernfs_attr *attr,
		      const char *target, u32 target_len)
{
	struct pkernfs_inode *draft = store->draft;
	const __le64 now = cpu_to_le64(attr->now_ns);

	memset(draft, 0, sizeof(*draft));
	draft->atime_ns = now;
	draft->mtime_ns = now;
	draft->ctime_ns = now;
	draft->btime_ns = now;
	draft->ino = cpu_to_le64(ino);
	draft->mode = cpu_to_le32(attr->mode & (S_IFMT | 07777));
	draft->uid = cpu_to_le32(attr->uid);
	draft->gid = cpu_to_le32(attr->gid);
	if (target) {
		memcpy(draft->payload, target, target_len);
		draft->size = cpu_to_le64(target_len);
	}
}

int pkernfs_node_create(struct pkernfs_store *store, struct pkernfs_node *dir, const char *name,
			u32 len, const struct pkernfs_attr *attr, const char *target,
			u32 target_len, struct pkernfs_node **ret)
{
	struct pkernfs_step step = { };
	struct pkernfs_node *node;
	int err;

	pkernfs_assert_locked(store);
	err = check_place(dir, name, len);
	if (!err)
		err = check_new(store, attr, target, target_len);
	if (err)
		return err;
	if (pkernfs_node_lookup(dir, name, len))
		return -EEXIST;
	pkernfs_space_collect(store);
	node = pkernfs_node_new(store, 0, NULL);
	if (!node)
		return -ENOMEM;
	node->ino = store->next_ino;
	draft_new(store, node->ino, attr, target, target_len);
	set_name(store->draft, dir, name, len);
	step.node = node;
	err = pkernfs_step_commit(store, &step);
	if (err) {
		kfree(node);
		return err;
	}
	store->next_ino++;
	pkernfs_node_insert(store, node);
	pkernfs_node_link(dir, node);
	touch_dir(store, dir, attr->now_ns);
	*ret = node;
	return 0;
}

static void become_orphan(struct pkernfs_store *store, struct pkernfs_node *node, s64 now_ns)
{
	pkernfs_node_unlink_name(node);
	node->orphan = true;
	pkernfs_node_set_times(store, node, NULL, NULL, &now_ns);
}

int pkernfs_node_unlink(struct pkernfs_store *store, struct pkernfs_node *node, s64 now_ns)
{
	struct pkernfs_node *dir = node->parent;

	pkernfs_assert_locked(store);
	if (node == store->root || pkernfs_is_lost_dir(node))
		return -EBUSY;
	if (node->orphan)
		return -ENOENT;
	if (node->nr_children)
		return -ENOTEMPTY;
	pkernfs_space_collect(store);
	pkernfs_put64((__le64 *)&node->inode->commit, 0);
	become_orphan(store, node, now_ns);
	touch_dir(store, dir, now_ns);
	return 0;
}

void pkernfs_node_release(struct pkernfs_store *store, struct pkernfs_node *node)
{
	pkernfs_assert_locked(store);
	if (!node->orphan)
		return;
	if (S_ISREG(le32_to_cpu(node->inode->mode))) {
		pkernfs_extents_free_blocks(store, node->inode);
		pkernfs_extents_free_slots(store, node->inode);
	}
	pkernfs_slot_free(store, node->slot);
	pkernfs_node_free(store, node);
	pkernfs_slots_settle(store);
}

static bool is_within(const struct pkernfs_node *dir, const struct pkernfs_node *node)
{
	for (; dir != dir->parent; dir = dir->parent)
		if (dir == node)
			return true;
	return false;
}

static int check_victim(const struct pkernfs_node *node, const struct pkernfs_node *victim)
{
	const bool dir = pkernfs_is_dir(node->inode);

	if (pkernfs_is_dir(victim->inode)) {
		if (!dir)
			return -EISDIR;
		return victim->nr_children ? -ENOTEMPTY : 0;
	}
	return dir ? -ENOTDIR : 0;
}

static int check_rename(struct pkernfs_store *store, struct pkernfs_node *node,
			struct pkernfs_node *dir, const char *name, u32 len,
			struct pkernfs_node *victim)
{
	struct pkernfs_node *there;
	int err;

	err = check_place(dir, name, len);
	if (err)
		return err;
	if (node == store->root || pkernfs_is_lost_dir(node))
		return -EBUSY;
	if (node->orphan)
		return -ENOENT;
	there = pkernfs_node_lookup(dir, name, len);
	if (there != victim && there != node)
		return victim ? -ENOENT : -EEXIST;
	if (is_within(dir, node))
		return -EINVAL;
	return there && there != node ? check_victim(node, there) : 0;
}

int pkernfs_node_rename(struct pkernfs_store *store, struct pkernfs_node *node,
			struct pkernfs_node *dir, const char *name, u32 len,
			struct pkernfs_node *victim, s64 now_ns)
{
	struct pkernfs_step step = { .node = node, .victim = victim };
	struct pkernfs_node *from = node->parent;
	struct pkernfs_inode *draft;
	int err;

	pkernfs_assert_locked(store);
	err = check_rename(store, node, dir, name, len, victim);
	if (err)
		return err;
	if (pkernfs_node_lookup(dir, name, len) == node)
		return 0;
	pkernfs_space_collect(store);
	draft = pkernfs_step_begin(store, node);
	set_name(draft, dir, name, len);
	draft->ctime_ns = cpu_to_le64(now_ns);
	err = pkernfs_step_commit(store, &step);
	if (err)
		return err;
	if (victim)
		become_orphan(store, victim, now_ns);
	pkernfs_node_unlink_name(node);
	kfree(node->alias);
	node->alias = NULL;
	pkernfs_node_link(dir, node);
	touch_dir(store, dir, now_ns);
	if (from != dir)
		touch_dir(store, from, now_ns);
	return 0;
}

int pkernfs_node_set_attr(struct pkernfs_store *store, struct pkernfs_node *node,
			  const struct pkernfs_attr *attr)
{
	const struct pkernfs_step step = { .node = node };
	const u32 type = le32_to_cpu(node->inode->mode) & S_IFMT;
	struct pkernfs_inode *draft;

	pkernfs_assert_locked(store);
	if (pkernfs_is_lost_dir(node))
		return -EPERM;
	pkernfs_space_collect(store);
	draft = pkernfs_step_begin(store, node);
	draft->mode = cpu_to_le32(type | (attr->mode & 07777));
	draft->uid = cpu_to_le32(attr->uid);
	draft->gid = cpu_to_le32(attr->gid);
	draft->ctime_ns = cpu_to_le64(attr->now_ns);
	return pkernfs_step_commit(store, &step);
}
