// SPDX-License-Identifier: GPL-2.0-only
/* Root tables and context entries of VT-d in legacy mode: find, read, make. */
#include "roots.h"

#include <linux/compiler.h>

#define CONTEXT_PRESENT		(1ULL << 0)
#define CONTEXT_TYPE		0xcULL		/* 0: second-stage tables, no device TLB */
#define CONTEXT_ADDRESS		0xfffffffffffff000ULL
#define CONTEXT_WIDTH		7ULL		/* levels - 2 */
#define CONTEXT_DOMAIN_SHIFT	8

static void *page_at(const struct vtd_roots *roots, u64 phys)
{
	return phys ? roots->page(roots->context, phys) : NULL;
}

static struct vtd_context *context_table(const struct vtd_roots *roots, u8 bus)
{
	const u64 *root;
	u64 entry;

	if (roots->rtaddr & VTD_RTADDR_MODE)
		return NULL;
	root = page_at(roots, roots->rtaddr & VTD_RTADDR_ADDRESS);
	if (!root)
		return NULL;
	entry = READ_ONCE(root[bus * 2]);
	return entry & VTD_ROOT_PRESENT ? page_at(roots, entry & CONTEXT_ADDRESS) : NULL;
}

struct vtd_context *vtd_roots_entry(const struct vtd_roots *roots, u8 bus, u8 devfn)
{
	struct vtd_context *table = context_table(roots, bus);

	return table ? table + devfn : NULL;
}

struct vtd_context *vtd_roots_owned(const struct vtd_roots *roots, u16 segment, u8 bus,
				    u8 devfn)
{
	struct vtd_context *entry;

	if (roots->segment != segment)
		return NULL;
	entry = vtd_roots_entry(roots, bus, devfn);
	return entry && vtd_context_present(entry) ? entry : NULL;
}

struct vtd_context *vtd_roots_next(const struct vtd_roots *roots, unsigned int *id)
{
	while (*id < VTD_BUSES * VTD_DEVFNS) {
		struct vtd_context *table = context_table(roots, *id / VTD_DEVFNS);

		if (!table) {
			*id = (*id / VTD_DEVFNS + 1) * VTD_DEVFNS;
			continue;
		}
		do {
			if (vtd_context_present(&table[*id % VTD_DEVFNS]))
				return &table[*id % VTD_DEVFNS];
		} while (++*id % VTD_DEVFNS);
	}
	return NULL;
}

bool vtd_context_present(const struct vtd_context *context)
{
	return READ_ONCE(context->lo) & CONTEXT_PRESENT;
}

bool vtd_context_translates(const struct vtd_context *context)
{
	return vtd_context_present(context) && !(READ_ONCE(context->lo) & CONTEXT_TYPE);
}

u64 vtd_context_root(const struct vtd_context *context)
{
	return READ_ONCE(context->lo) & CONTEXT_ADDRESS;
}

unsigned int vtd_context_levels(const struct vtd_context *context)
{
	return (READ_ONCE(context->hi) & CONTEXT_WIDTH) + 2;
}

u16 vtd_context_domain(const struct vtd_context *context)
{
	return READ_ONCE(context->hi) >> CONTEXT_DOMAIN_SHIFT;
}

struct vtd_context vtd_context_make(u64 root, unsigned int levels, u16 domain)
{
	return (struct vtd_context){
		.lo = root | CONTEXT_PRESENT,
		.hi = (levels - 2) | (u64)domain << CONTEXT_DOMAIN_SHIFT,
	};
}
