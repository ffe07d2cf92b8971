/* SPDX-License-Identifier: GPL-2.0-only */
/* How a symbol of the kernel is found, and a function of it diverted. */
#ifndef PKERNFS_DMA_TOUCH_H
#define PKERNFS_DMA_TOUCH_H

#include <linux/ftrace.h>
#include <linux/types.h>

enum touch_kind { TOUCH_HOOK, TOUCH_CALL, TOUCH_DATA };

struct touch_point {
	const char *symbol;
	enum touch_kind kind;
	const char *why;
	const char *others;		/* for a device that is not ours */
	const char *caller;		/* of the same source file, where it could be inlined */
	void *replacement;		/* of a hook */
	void (*resolved)(void *addr);	/* takes the original's address */
	struct ftrace_ops ops;
	unsigned long ip;		/* of the ftrace call */
	bool installed;
};

/* All of them or none: resolved and checked first, then diverted in their order. */
int touch_install(struct touch_point *points, unsigned int count);
/* From here on nobody is diverted any more; somebody may still be inside a hook. */
void touch_remove(struct touch_point *points, unsigned int count);

/* Around what a hook does: the module stays until everybody is out. */
void touch_enter(void);
void touch_leave(void);

#endif /* PKERNFS_DMA_TOUCH_H */
