/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the metadata code needs of the kernel, for user space. Written for these
 * tests; only as exact as they need it.
 */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PKERNFS_SHIM_SYSTEM
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#undef PKERNFS_SHIM_SYSTEM

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;

#define U32_MAX		((u32)~0U)
#define S64_MAX		((s64)(~0ULL >> 1))

#ifndef EUCLEAN
#error "not a Linux system"
#endif

#define __printf(a, b)	__attribute__((__format__(printf, a, b)))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) \
	((type *)((char *)(ptr) - offsetof(type, member)))
#undef static_assert
#define static_assert(cond)	_Static_assert(cond, #cond)

#define READ_ONCE(x)		(*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v)	(*(volatile __typeof__(x) *)&(x) = (v))
#define smp_wmb()		__atomic_thread_fence(__ATOMIC_RELEASE)

/* The tests run on little-endian machines. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little endian");
#define cpu_to_le16(x)		((u16)(x))
#define cpu_to_le32(x)		((u32)(x))
#define cpu_to_le64(x)		((u64)(x))
#define le16_to_cpu(x)		((u16)(x))
#define le32_to_cpu(x)		((u32)(x))
#define le64_to_cpu(x)		((u64)(x))

/* As strict about types as the kernel's: both sides have the same signedness. */
#define shim_same_sign(a, b) \
	_Static_assert(((__typeof__(a))-1 < (__typeof__(a))1) == \
		       ((__typeof__(b))-1 < (__typeof__(b))1), "mixed signs")
#define min(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); \
	shim_same_sign(_a, _b); _a < _b ? _a : _b; })
#define max(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); \
	shim_same_sign(_a, _b); _a > _b ? _a : _b; })
#define min_t(type, a, b) ({ type _a = (a); type _b = (b); _a < _b ? _a : _b; })
#define max_t(type, a, b) ({ type _a = (a); type _b = (b); _a > _b ? _a : _b; })
#define max3(a, b, c)		max(max(a, b), c)
#define swap(a, b)		do { __typeof__(a) _t = (a); (a) = (b); (b) = _t; } while (0)
#define DIV_ROUND_UP(n, d)	(((n) + (d) - 1) / (d))
#define DIV_ROUND_UP_ULL(n, d)	DIV_ROUND_UP((unsigned long long)(n), (d))
#define round_up(x, y)		((((x) - 1) | ((__typeof__(x))((y) - 1))) + 1)
#define rounddown(x, y)		((x) - (x) % (y))

struct rw_semaphore {
	int unused;
};

#define lockdep_assert_held_write(lock)	do { (void)(lock); } while (0)

/*
 * Memory. shim_fail_at makes the allocation with that number fail (1: the next
 * one, 0: none); shim_live counts what was not given back.
 */
typedef unsigned int gfp_t;
#define GFP_NOFS	0U

extern long shim_fail_at;
extern long shim_allocations;
extern long shim_live;

void *shim_alloc(size_t count, size_t size, bool zero);
void shim_free(const void *p);

#define kmalloc(size, gfp)		shim_alloc(1, size, false)
#define kzalloc(size, gfp)		shim_alloc(1, size, true)
#define kvmalloc_array(n, size, gfp)	shim_alloc(n, size, false)
#define kvcalloc(n, size, gfp)		shim_alloc(n, size, true)
#define kfree(p)			shim_free(p)
#define kvfree(p)			shim_free(p)

/* What was written, not what would have been. */
__printf(3, 4) int scnprintf(char *to, size_t bytes, const char *fmt, ...);
int vscnprintf(char *to, size_t bytes, const char *fmt, va_list args);
/* As much as fits, always ended: the length, or -E2BIG. */
long strscpy(char *to, const char *from, size_t bytes);
void *memchr_inv(const void *p, int c, size_t bytes);
u32 crc32_le(u32 crc, const void *p, size_t bytes);

#define sort(base, num, size, cmp, swap)	qsort(base, num, size, cmp)

/* Every store to the range is seen by the recorder (native.c). */
void shim_stored(const void *addr, size_t bytes);
#define pkernfs_stored(addr, bytes)	shim_stored(addr, bytes)
