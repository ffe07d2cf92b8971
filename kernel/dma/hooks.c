// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every touch point with the kernel, in one table.
 *
 * A hooked function is diverted at its entry by ftrace, the way a live patch does it
 * (FTRACE_OPS_FL_IPMODIFY), to a function of this file that decides and, for a device
 * that is not ours, calls the original: its body behind the ftrace call, by a
 * direct call (static_call), so that neither recursion nor IBT is a question. The
 * functions run in the context of their caller and may sleep where it may.
 *
 * All symbols are resolved when the module loads; if one is missing, ambiguous or can't be
 * diverted, the module refuses and names it. Loading changes nothing until then.
 */
#include "dma.h"

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/static_call.h>
#include <linux/string.h>

static char *require;
module_param(require, charp, 0444);
MODULE_PARM_DESC(require, "further symbols, with commas: refuse a kernel without them (for tests)");

/*
 * Originals. The address behind the ftrace call is a valid entry: the call is the
 * first thing in a function, before its stack frame.
 */
static void hook_shutdown(void);
static void hook_clear_master(struct pci_dev *pdev);
static int hook_try_reset(struct pci_dev *pdev);
static int hook_reset_locked(struct pci_dev *pdev);
static int hook_attach(DMA_ATTACH_PROTO);
static int hook_block(DMA_ATTACH_PROTO);
static int hook_identity(DMA_ATTACH_PROTO);
static bool hook_coherency(struct iommu_domain *domain);
#ifdef PKERNFS_ATTACH_HAS_OLD
static bool hook_coherency_first(struct iommu_domain *domain);
#endif
static struct vtd_context *hook_context_addr(struct intel_iommu *driver, u8 bus, u8 devfn,
					     int alloc);

/* Types of what is only called; there are no such functions. */
void call_flush_context(struct intel_iommu *driver, u16 did, u16 sid, u8 mask, u64 type);
void call_flush_iotlb(struct intel_iommu *driver, u16 did, u64 addr, unsigned int order,
		      u64 type);
int call_each_match(int (*fn)(void *data, unsigned long addr), const char *name, void *data);
unsigned long call_lookup(const char *name);

DEFINE_STATIC_CALL_NULL(orig_shutdown, hook_shutdown);
DEFINE_STATIC_CALL_NULL(orig_clear_master, hook_clear_master);
DEFINE_STATIC_CALL_NULL(orig_try_reset, hook_try_reset);
DEFINE_STATIC_CALL_NULL(orig_reset_locked, hook_reset_locked);
DEFINE_STATIC_CALL_NULL(orig_attach, hook_attach);
DEFINE_STATIC_CALL_NULL(orig_block, hook_block);
DEFINE_STATIC_CALL_NULL(orig_identity, hook_identity);
DEFINE_STATIC_CALL_NULL(orig_coherency, hook_coherency);
#ifdef PKERNFS_ATTACH_HAS_OLD
DEFINE_STATIC_CALL_NULL(orig_coherency_first, hook_coherency_first);
#endif
DEFINE_STATIC_CALL_NULL(orig_context_addr, hook_context_addr);
DEFINE_STATIC_CALL_NULL(qi_flush_context, call_flush_context);
DEFINE_STATIC_CALL_NULL(qi_flush_iotlb, call_flush_iotlb);
DEFINE_STATIC_CALL_NULL(each_match, call_each_match);
DEFINE_STATIC_CALL_NULL(lookup, call_lookup);

static struct list_head *drhd_units;
static struct rw_semaphore *dmar_lock;
static bool *kexec_flag;

enum touch_kind { TOUCH_HOOK, TOUCH_CALL, TOUCH_DATA };

struct touch_point {
	const char *symbol;
	enum touch_kind kind;
	const char *why;
	const char *others;		/* for a device that is not ours */
	void *replacement;		/* of a hook */
	void (*resolved)(void *addr);	/* takes the original's address */
	struct ftrace_ops ops;
	unsigned long ip;		/* of the ftrace call */
	bool installed;
};

#define RESOLVE(name)							\
	static void resolved_##name(void *addr)				\
	{								\
		static_call_update(name, addr);				\
	}
RESOLVE(orig_shutdown)
RESOLVE(orig_clear_master)
RESOLVE(orig_try_reset)
RESOLVE(orig_reset_locked)
RESOLVE(orig_attach)
RESOLVE(orig_block)
RESOLVE(orig_identity)
RESOLVE(orig_coherency)
#ifdef PKERNFS_ATTACH_HAS_OLD
RESOLVE(orig_coherency_first)
#endif
RESOLVE(orig_context_addr)
RESOLVE(qi_flush_context)
RESOLVE(qi_flush_iotlb)

static void resolved_drhd_units(void *addr)
{
	drhd_units = addr;
}

static void resolved_dmar_lock(void *addr)
{
	dmar_lock = addr;
}

static void resolved_kexec_flag(void *addr)
{
	kexec_flag = addr;
}

#define NOTHING	"calls the original"

static struct touch_point touch_points[] = {
	{
		.symbol = "kexec_in_progress", .kind = TOUCH_DATA,
		.why = "tells a kexec from a reboot and a power-off",
		.others = "read only", .resolved = resolved_kexec_flag,
	}, {
		.symbol = "dmar_drhd_units", .kind = TOUCH_DATA,
		.why = "the IOMMUs, where their registers are, the driver's handle of each",
		.others = "read only", .resolved = resolved_drhd_units,
	}, {
		.symbol = "dmar_global_lock", .kind = TOUCH_DATA,
		.why = "held while that list is read",
		.others = "read lock", .resolved = resolved_dmar_lock,
	}, {
		.symbol = "qi_flush_context", .kind = TOUCH_CALL,
		.why = "drops a context entry that hardware cached, after the switch",
		.others = "not called", .resolved = resolved_qi_flush_context,
	}, {
		.symbol = "qi_flush_iotlb", .kind = TOUCH_CALL,
		.why = "drops translations that hardware cached, after the switch",
		.others = "not called", .resolved = resolved_qi_flush_iotlb,
	}, {
		.symbol = "iommu_context_addr", .kind = TOUCH_HOOK,
		.why = "while a switch is prepared, the driver works on a context entry aside",
		.others = NOTHING, .replacement = hook_context_addr,
		.resolved = resolved_orig_context_addr,
	}, {
		.symbol = "intel_iommu_attach_device", .kind = TOUCH_HOOK,
		.why = "held back until the new mappings are complete",
		.others = NOTHING, .replacement = hook_attach,
		.resolved = resolved_orig_attach,
	}, {
		.symbol = "blocking_domain_attach_dev", .kind = TOUCH_HOOK,
		.why = "VFIO takes a device over by blocking it: not an inherited one",
		.others = NOTHING, .replacement = hook_block,
		.resolved = resolved_orig_block,
	}, {
		.symbol = "identity_domain_attach_dev", .kind = TOUCH_HOOK,
		.why = "an inherited device must not get all of memory (iommu=pt)",
		.others = NOTHING, .replacement = hook_identity,
		.resolved = resolved_orig_identity,
	}, {
#ifdef PKERNFS_ATTACH_HAS_OLD
		.symbol = "intel_iommu_enforce_cache_coherency_fs", .kind = TOUCH_HOOK,
		.why = "as the next one, for first-stage tables",
		.others = NOTHING, .replacement = hook_coherency_first,
		.resolved = resolved_orig_coherency_first,
	}, {
		.symbol = "intel_iommu_enforce_cache_coherency_ss", .kind = TOUCH_HOOK,
#else
		.symbol = "intel_iommu_enforce_cache_coherency", .kind = TOUCH_HOOK,
#endif
		.why = "answers for the device that is held back, not for none",
		.others = NOTHING, .replacement = hook_coherency,
		.resolved = resolved_orig_coherency,
	}, {
		.symbol = "pci_clear_master", .kind = TOUCH_HOOK,
		.why = "bus master stays on at kexec (bridges above too) and while adopting",
		.others = NOTHING, .replacement = hook_clear_master,
		.resolved = resolved_orig_clear_master,
	}, {
		.symbol = "pci_try_reset_function", .kind = TOUCH_HOOK,
		.why = "VFIO opens a device with a reset: not an inherited one",
		.others = NOTHING, .replacement = hook_try_reset,
		.resolved = resolved_orig_try_reset,
	}, {
		.symbol = "__pci_reset_function_locked", .kind = TOUCH_HOOK,
		.why = "and closes it with one",
		.others = NOTHING, .replacement = hook_reset_locked,
		.resolved = resolved_orig_reset_locked,
	}, {
		/* Last: from here on a kexec hands over. */
		.symbol = "intel_iommu_shutdown", .kind = TOUCH_HOOK,
		.why = "hands over at kexec if that is armed, instead of switching IOMMUs off",
		.others = NOTHING, .replacement = hook_shutdown,
		.resolved = resolved_orig_shutdown,
	},
};

/* Tasks inside a hook: the module stays until they are out. */
static atomic_t hooks_active;

static void hook_enter(void)
{
	atomic_inc(&hooks_active);
}

static void hook_leave(void)
{
	atomic_dec(&hooks_active);
}

/*
 * The hooks.
 */

static void hook_shutdown(void)
{
	hook_enter();
	if (dma_handing_over())
		dma_hand_over();
	else
		static_call(orig_shutdown)();
	hook_leave();
}

static bool keep_master(struct pci_dev *pdev)
{
	struct dma_slot *slot = dma_slot_of(&pdev->dev);

	if (dma_handing_over())
		return (slot && slot->state == DMA_PRESERVED) || dma_above_preserved(pdev);
	if (!slot || (slot->state != DMA_INHERITED && !slot->spare))
		return false;
	/* vfio_pci_core_enable(): this, then pci_try_reset_function(). */
	slot->opening = true;
	return true;
}

static void hook_clear_master(struct pci_dev *pdev)
{
	hook_enter();
	if (!keep_master(pdev))
		static_call(orig_clear_master)(pdev);
	hook_leave();
}

/* VFIO opens the device. A VMM that mapped its memory before has it switched here. */
static int opened(struct dma_slot *slot)
{
	mutex_lock(&dma_lock);
	slot->opening = false;
	slot->open = true;
	if (slot->spare) {
		slot->spare = false;
		dma_let_go(slot);
	} else if (slot->state == DMA_INHERITED && slot->held) {
		/* Refused: it stays inherited, and "adopt" can be asked for later. */
		dma_adopt(slot);
	}
	mutex_unlock(&dma_lock);
	return 0;
}

static int hook_try_reset(struct pci_dev *pdev)
{
	struct dma_slot *slot;
	int ret;

	hook_enter();
	slot = dma_slot_of(&pdev->dev);
	if (slot && slot->opening)
		ret = opened(slot);
	else if (slot && slot->state == DMA_INHERITED)
		ret = -EBUSY;
	else
		ret = static_call(orig_try_reset)(pdev);
	hook_leave();
	return ret;
}

static int hook_reset_locked(struct pci_dev *pdev)
{
	struct dma_slot *slot;
	int ret = 0;

	hook_enter();
	slot = dma_slot_of(&pdev->dev);
	/* Closed without having been adopted: it works on, the next owner may come. */
	if (slot && slot->state == DMA_INHERITED)
		slot->open = slot->opening = false;
	else
		ret = static_call(orig_reset_locked)(pdev);
	hook_leave();
	return ret;
}

/* Holds an attach back; false if the device is not inherited (any more). */
static bool hold_back(struct device *dev, struct iommu_domain *domain)
{
	struct dma_slot *slot = dma_slot_of(dev);
	bool held = false;

	if (!slot || READ_ONCE(slot->state) != DMA_INHERITED)
		return false;
	mutex_lock(&dma_lock);
	if (slot->state == DMA_INHERITED) {
		WRITE_ONCE(slot->held, domain);
		held = true;
	}
	mutex_unlock(&dma_lock);
	return held;
}

static int hook_attach(DMA_ATTACH_PROTO)
{
	int ret = 0;

	hook_enter();
	if (!hold_back(dev, domain))
		ret = static_call(orig_attach)(DMA_ATTACH_ARGS);
	hook_leave();
	return ret;
}

static int hook_block(DMA_ATTACH_PROTO)
{
	int ret = 0;

	hook_enter();
	if (!hold_back(dev, NULL))
		ret = static_call(orig_block)(DMA_ATTACH_ARGS);
	hook_leave();
	return ret;
}

static int hook_identity(DMA_ATTACH_PROTO)
{
	int ret = 0;

	hook_enter();
	if (!hold_back(dev, NULL))
		ret = static_call(orig_identity)(DMA_ATTACH_ARGS);
	hook_leave();
	return ret;
}

/*
 * With no device in it, a domain claims that it can enforce snooping, and the attach
 * that was held back would then fail (-EINVAL) if the IOMMU can't. So answer for it.
 */
static bool held_by_one_that_cannot_snoop(struct iommu_domain *domain)
{
	struct dma_slot *slot;

	for_each_dma_slot(slot)
		if (READ_ONCE(slot->held) == domain && !vtd_unit_snoops(slot->unit))
			return true;
	return false;
}

static bool hook_coherency(struct iommu_domain *domain)
{
	bool ret = false;

	hook_enter();
	if (!held_by_one_that_cannot_snoop(domain))
		ret = static_call(orig_coherency)(domain);
	hook_leave();
	return ret;
}

#ifdef PKERNFS_ATTACH_HAS_OLD
static bool hook_coherency_first(struct iommu_domain *domain)
{
	bool ret = false;

	hook_enter();
	if (!held_by_one_that_cannot_snoop(domain))
		ret = static_call(orig_coherency_first)(domain);
	hook_leave();
	return ret;
}
#endif

/* One redirection at a time, under dma_lock, for one task. */
static struct {
	struct task_struct *task;
	struct intel_iommu *driver;
	u8 bus;
	u8 devfn;
	unsigned int hits;
	struct vtd_context *entry;
} redirect;

static struct vtd_context *hook_context_addr(struct intel_iommu *driver, u8 bus, u8 devfn,
					     int alloc)
{
	struct vtd_context *entry;

	hook_enter();
	if (READ_ONCE(redirect.task) == current && redirect.driver == driver &&
	    redirect.bus == bus && redirect.devfn == devfn) {
		redirect.hits++;
		entry = redirect.entry;
	} else {
		entry = static_call(orig_context_addr)(driver, bus, devfn, alloc);
	}
	hook_leave();
	return entry;
}

void hooks_redirect(u8 bus, u8 devfn, struct intel_iommu *driver, struct vtd_context *entry)
{
	lockdep_assert_held(&dma_lock);
	redirect.driver = driver;
	redirect.bus = bus;
	redirect.devfn = devfn;
	redirect.entry = entry;
	redirect.hits = 0;
	WRITE_ONCE(redirect.task, current);
}

unsigned int hooks_redirect_end(void)
{
	WRITE_ONCE(redirect.task, NULL);
	return redirect.hits;
}

/*
 * The originals, for the rest of the module.
 */

int kernel_attach(struct iommu_domain *domain, struct device *dev)
{
#ifdef PKERNFS_ATTACH_HAS_OLD
	return static_call(orig_attach)(domain, dev, NULL);
#else
	return static_call(orig_attach)(domain, dev);
#endif
}

int kernel_block(struct device *dev)
{
#ifdef PKERNFS_ATTACH_HAS_OLD
	return static_call(orig_block)(NULL, dev, NULL);
#else
	return static_call(orig_block)(NULL, dev);
#endif
}

void kernel_clear_master(struct pci_dev *pdev)
{
	static_call(orig_clear_master)(pdev);
}

#define DEVICE_SELECTIVE	(3ULL << 61)	/* DMA_CCMD_DEVICE_INVL */
#define DOMAIN_SELECTIVE	(2ULL << 60)	/* DMA_TLB_DSI_FLUSH */

void kernel_flush_context(struct intel_iommu *driver, u16 domain, u16 source)
{
	static_call(qi_flush_context)(driver, domain, source, 0, DEVICE_SELECTIVE);
}

void kernel_flush_iotlb(struct intel_iommu *driver, u16 domain)
{
	static_call(qi_flush_iotlb)(driver, domain, 0, 0, DOMAIN_SELECTIVE);
}

bool kernel_kexec_in_progress(void)
{
	return READ_ONCE(*kexec_flag);
}

struct list_head *kernel_drhd_units(void)
{
	return drhd_units;
}

struct rw_semaphore *kernel_dmar_lock(void)
{
	return dmar_lock;
}

/*
 * Resolving and diverting.
 */

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
		err = check_unique(symbol, "required by a parameter");
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
	return 0;
refused:
	pr_err("refused: symbols can't be looked up (%d): kprobes off, or locked down\n", err);
	return err;
}

int hooks_install(void)
{
	int err, i;

	err = resolve_helpers();
	if (!err)
		err = check_required();
	for (i = 0; !err && i < ARRAY_SIZE(touch_points); i++)
		err = resolve(&touch_points[i]);
	for (i = 0; !err && i < ARRAY_SIZE(touch_points); i++)
		if (touch_points[i].kind == TOUCH_HOOK)
			err = install(&touch_points[i]);
	if (err)
		hooks_remove();
	return err;
}

void hooks_remove(void)
{
	int i;

	for (i = ARRAY_SIZE(touch_points) - 1; i >= 0; i--) {
		struct touch_point *point = &touch_points[i];

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

ssize_t hooks_describe(char *buf, size_t size)
{
	static const char * const kinds[] = {
		[TOUCH_HOOK] = "hook", [TOUCH_CALL] = "call", [TOUCH_DATA] = "data",
	};
	ssize_t used = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(touch_points); i++)
		used += scnprintf(buf + used, size - used, "%s\t%s\t%s\t%s\n",
				  touch_points[i].symbol, kinds[touch_points[i].kind],
				  touch_points[i].others, touch_points[i].why);
	return used;
}
