// SPDX-License-Identifier: GPL-2.0-only
/*
 * roots.c in user space, over an arena. keep.c needs no help: its functions are called as
 * they are.
 */
#include "../roots.h"
#include "arena.h"

static void *arena_any_page(void *context, u64 phys)
{
	return (void *)arena_table(context, 0, phys);
}

static struct vtd_roots roots_of(struct arena *arena, u16 segment, u64 rtaddr)
{
	return (struct vtd_roots){
		.segment = segment, .rtaddr = rtaddr, .page = arena_any_page, .context = arena,
	};
}

struct vtd_context *harness_entry(struct arena *arena, u64 rtaddr, u8 bus, u8 devfn)
{
	struct vtd_roots roots = roots_of(arena, 0, rtaddr);

	return vtd_roots_entry(&roots, bus, devfn);
}

struct vtd_context *harness_owned(struct arena *arena, u16 segment, u64 rtaddr, u16 wanted,
				  u8 bus, u8 devfn)
{
	struct vtd_roots roots = roots_of(arena, segment, rtaddr);

	return vtd_roots_owned(&roots, wanted, bus, devfn);
}

struct vtd_context *harness_next(struct arena *arena, u64 rtaddr, unsigned int *id)
{
	struct vtd_roots roots = roots_of(arena, 0, rtaddr);

	return vtd_roots_next(&roots, id);
}
