// SPDX-License-Identifier: GPL-2.0-only
/*
 * How a symbol of the kernel is found, and a function of it diverted.
 *
 * A hooked function is diverted at its entry by ftrace, the way a live patch does it
 * (FTRACE_OPS_FL_IPMODIFY). All symbols are resolved first; if one is missing, ambiguous
 * or can't be diverted, nothing is changed and the symbol is named.
 */
#include "dma.h"
#include "touch.h"

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/static_call.h>
#include <linux/string.h>
#include <linux/unaligned.h>

static char *require;
module_param(require, charp, 0444);
MODULE_PARM_DESC(require, "further symbols, or caller>symbol, with commas: refuse a kernel without "
		 "them (for tests)");

/* Types of what is only called; there are no such functions. */
int call_each_match(int (*fn)(void *data, unsigned long addr), const char *name, void *data);
unsigned long call_lookup(const char *name);
int call_size(unsigned long addr, unsigned long *size, unsigned long *offset);

DEFINE_STATIC_CALL_NULL(each_match, call_each_match);
DEFINE_STATIC_CALL_NULL(lookup, call_lookup);
DEFINE_STATIC_CALL_NULL(lookup_size, call_size);

/* Tasks inside a hook. */
static atomic_t hooks_active;

void touch_enter(void)
{
	atomic_inc(&hooks_active);
}

void touch_leave(void)
{
	atomic_dec(&hooks_active);
}

static void notrace divert(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
			   struct ftrace_regs *fregs)
{
	struct touch_point *point = container_of(ops, struct touch_point, ops);

	ftrace_regs_set_instruction_pointer(fregs, (unsigned long)point->replacement);
}

/*
 * Where a function begins, as kprobes see it: behind an ENDBR. That is the ftrace
 * call if there is one. kallsyms_lookup_name() is not exported, this is how modules
 * find out.
 */
static int function_address(const char *symbol, unsigned long *addr, bool *traced)
{
	struct kprobe probe = { .symbol_name = symbol };
	int err;

	err = register_kprobe(&probe);
	if (err)
		return err;
	*addr = (unsigned long)probe.addr;
	*traced = probe.flags & KPROBE_FLAG_FTRACE;
	unregister_kprobe(&probe);
	return 0;
}

static int count_match(void *data, unsigned long addr)
{
	(*(unsigned int *)data)++;
	return 0;
}

static int check_unique(const char *symbol, const char *why)
{
	unsigned int matches = 0;

	static_call(each_match)(count_match, symbol, &matches);
	if (matches == 1)
		return 0;
	pr_err("refused: this kernel has %s%s: %s\n",
	       matches ? "several symbols named " : "no ", symbol, why);
	return matches ? -ENOTUNIQ : -ENOENT;
}

#define CALL_SIZE	5	/* CALL rel32: e8 and four bytes, Intel SDM volume 2A */
#define CALL_OPCODE	0xe8

/*
 * A call goes to where the symbol is, behind an ENDBR there, or to padding before it (call
 * depth tracking).
 */
static bool calls(unsigned long from, unsigned long size, unsigned long target)
{
	unsigned long at;

	for (at = from; at + CALL_SIZE <= from + size; at++) {
		if (*(u8 *)at != CALL_OPCODE)
			continue;
		if (at + CALL_SIZE + get_unaligned((s32 *)(at + 1)) - (target - 16) <= 16 + 4)
			return true;
	}
	return false;
}

/*
 * A function that was inlined into its callers still has a symbol, and diverting that is in
 * vain. Callers of other source files, and those through a pointer, can't have it inlined.
 */
static int check_called(const char *caller, const char *symbol)
{
	unsigned long from, size, offset;
	int err;

	err = check_unique(caller, symbol);
	if (err)
		return err;
	from = static_call(lookup)(caller);
	if (!from || !static_call(lookup_size)(from, &size, &offset)) {
		pr_err("refused: %s can't be found\n", caller);
		return -ENOENT;
	}
	if (calls(from, size, static_call(lookup)(symbol)))
		return 0;
	pr_err("refused: %s does not call %s, which may be inlined there\n", caller, symbol);
	return -EOPNOTSUPP;
}

static int check_one_required(char *word)
{
	char *caller = strsep(&word, ">");

	return word ? check_called(caller, word) : check_unique(caller, "required by a parameter");
}

static int check_required(void)
{
	char *list, *rest, *symbol;
	int err = 0;

	if (!require)
		return 0;
	list = rest = kstrdup(require, GFP_KERNEL);
	if (!list)
		return -ENOMEM;
	while (!err && (symbol = strsep(&rest, ",")))
		err = check_one_required(symbol);
	kfree(list);
	return err;
}

static int resolve(struct touch_point *point)
{
	unsigned long addr;
	bool traced = false;
	int err;

	err = check_unique(point->symbol, point->why);
	if (err)
		return err;
	if (point->kind == TOUCH_DATA) {
		addr = static_call(lookup)(point->symbol);
		if (!addr) {
			pr_err("refused: %s can't be found\n", point->symbol);
			return -ENOENT;
		}
		point->resolved((void *)addr);
		return 0;
	}
	err = function_address(point->symbol, &addr, &traced);
	if (err) {
		pr_err("refused: %s can't be probed (%d)\n", point->symbol, err);
		return err;
	}
	if (point->kind == TOUCH_HOOK && !traced) {
		pr_err("refused: %s can't be diverted by ftrace\n", point->symbol);
		return -EOPNOTSUPP;
	}
	if (point->caller) {
		err = check_called(point->caller, point->symbol);
		if (err)
			return err;
	}
	point->ip = addr;
	point->resolved((void *)(traced ? addr + MCOUNT_INSN_SIZE : addr));
	return 0;
}

static int install(struct touch_point *point)
{
	int err;

	point->ops.func = divert;
	/* PERMANENT: kernel.ftrace_enabled=0 is refused while we are here. */
	point->ops.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT;
	err = ftrace_set_filter_ip(&point->ops, point->ip, 0, 0);
	if (!err)
		err = register_ftrace_function(&point->ops);
	if (err) {
		pr_err("refused: %s can't be diverted (%d)%s\n", point->symbol, err,
		       err == -EBUSY ? ", a live patch has it" : "");
		ftrace_free_filter(&point->ops);
		return err;
	}
	point->installed = true;
	return 0;
}

static int resolve_helpers(void)
{
	unsigned long addr;
	bool traced;
	int err;

	err = function_address("kallsyms_on_each_match_symbol", &addr, &traced);
	if (err)
		goto refused;
	static_call_update(each_match, (typeof(&call_each_match))addr);
	err = function_address("kallsyms_lookup_name", &addr, &traced);
	if (err)
		goto refused;
	static_call_update(lookup, (typeof(&call_lookup))addr);
	err = function_address("kallsyms_lookup_size_offset", &addr, &traced);
	if (err)
		goto refused;
	static_call_update(lookup_size, (typeof(&call_size))addr);
	return 0;
refused:
	pr_err("refused: symbols can't be looked up (%d): kprobes off, or locked down\n", err);
	return err;
}

int touch_install(struct touch_point *points, unsigned int count)
{
	unsigned int i;
	int err;

	err = resolve_helpers();
	for (i = 0; !err && i < count; i++)
		err = resolve(&points[i]);
	if (!err)
		err = check_required();
	for (i = 0; !err && i < count; i++)
		if (points[i].kind == TOUCH_HOOK)
			err = install(&points[i]);
	if (err)
		touch_remove(points, count);
	return err;
}

void touch_remove(struct touch_point *points, unsigned int count)
{
	while (count--) {
		struct touch_point *point = &points[count];

		if (!point->installed)
			continue;
		unregister_ftrace_function(&point->ops);
		ftrace_free_filter(&point->ops);
		point->installed = false;
	}
	/* Whoever was diverted is now inside a hook, or before its first instruction. */
	synchronize_rcu_tasks();
	while (atomic_read(&hooks_active))
		msleep(20);
	synchronize_rcu_tasks();
}
