/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Ordered trees with the kernel's interface. These are treaps, balanced by a
 * priority that follows from the address.
 */
#pragma once

#include "shim.h"

struct rb_node {
	struct rb_node *rb_up, *rb_left, *rb_right;
};

struct rb_root {
	struct rb_node *rb_node;
};

#define RB_ROOT		((struct rb_root){ NULL })
#define rb_entry(ptr, type, member)	container_of(ptr, type, member)
#define rb_entry_safe(ptr, type, member) ({ \
	__typeof__(ptr) _ptr = (ptr); \
	_ptr ? rb_entry(_ptr, type, member) : NULL; })

static inline void rb_link_node(struct rb_node *node, struct rb_node *parent,
				struct rb_node **link)
{
	node->rb_up = parent;
	node->rb_left = NULL;
	node->rb_right = NULL;
	*link = node;
}

void rb_insert_color(struct rb_node *node, struct rb_root *root);
void rb_erase(struct rb_node *node, struct rb_root *root);
struct rb_node *rb_first(const struct rb_root *root);
struct rb_node *rb_last(const struct rb_root *root);
struct rb_node *rb_next(const struct rb_node *node);
struct rb_node *rb_first_postorder(const struct rb_root *root);
struct rb_node *rb_next_postorder(const struct rb_node *node);

#define rbtree_postorder_for_each_entry_safe(pos, n, root, member) \
	for (pos = rb_entry_safe(rb_first_postorder(root), __typeof__(*(pos)), member); \
	     pos && ({ n = rb_entry_safe(rb_next_postorder(&pos->member), \
					 __typeof__(*(pos)), member); 1; }); \
	     pos = n)
