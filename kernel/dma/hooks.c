// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every touch point with the kernel, in one table.
 *
 * What the hooks do is in hooked.c, how they are put in place in touch.c. All symbols are
 * resolved when the module loads; loading changes nothing until then.
 */
#include "hooks.h"
#include "touch.h"

#include <linux/module.h>

/* Types of what is only called; there are no such functions. */
void call_flush_context(struct intel_iommu *driver, u16 did, u16 sid, u8 mask, u64 type);
void call_flush_iotlb(struct intel_iommu *driver, u16 did, u64 addr, unsigned int order,
		      u64 type);
int call_deferred_attach(struct device *dev, struct iommu_domain *domain);

DEFINE_STATIC_CALL_NULL(orig_shutdown, hook_shutdown);
DEFINE_STATIC_CALL_NULL(orig_crash, hook_crash);
DEFINE_STATIC_CALL_NULL(orig_clear_master, hook_clear_master);
DEFINE_STATIC_CALL_NULL(orig_try_reset, hook_try_reset);
DEFINE_STATIC_CALL_NULL(orig_reset_locked, hook_reset_locked);
DEFINE_STATIC_CALL_NULL(orig_reset_bus, hook_reset_bus);
DEFINE_STATIC_CALL_NULL(orig_user_write_word, hook_user_write_word);
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
DEFINE_STATIC_CALL_NULL(deferred_attach, call_deferred_attach);

static struct list_head *drhd_units;
static struct rw_semaphore *dmar_lock;
static bool *kexec_flag;
static raw_spinlock_t *config_lock;
static char **command_line;

#define RESOLVE(name)							\
	static void resolved_##name(void *addr)				\
	{								\
		static_call_update(name, addr);				\
	}
RESOLVE(orig_shutdown)
RESOLVE(orig_crash)
RESOLVE(orig_clear_master)
RESOLVE(orig_try_reset)
RESOLVE(orig_reset_locked)
RESOLVE(orig_reset_bus)
RESOLVE(orig_user_write_word)
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
RESOLVE(deferred_attach)

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

static void resolved_config_lock(void *addr)
{
	config_lock = addr;
}

static void resolved_command_line(void *addr)
{
	command_line = addr;
}

#define NOTHING	"calls the original"

static struct touch_point touch_points[] = {
	{
		/* First: it is wanted even if another one is missing. */
		.symbol = "saved_command_line", .kind = TOUCH_DATA,
		.why = "a crash kernel gets this line: without the word that was the disguise",
		.others = "that word only, by spaces", .resolved = resolved_command_line,
	}, {
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
		.symbol = "iommu_deferred_attach", .kind = TOUCH_CALL,
		.why = "attaches what the disguise kept from it, where no driver will (iommu=pt)",
		.others = "called once, as at boot", .resolved = resolved_deferred_attach,
	}, {
		.symbol = "pci_config_lock", .kind = TOUCH_DATA,
		.why = "whoever holds it in a panic may never give it back",
		.others = "read only", .resolved = resolved_config_lock,
	}, {
		.symbol = "iommu_context_addr", .kind = TOUCH_HOOK,
		.why = "while a switch is prepared, the driver works on a context entry aside",
		.others = NOTHING, .caller = "domain_context_mapping_one",
		.replacement = hook_context_addr,
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
		.symbol = "pci_reset_bus", .kind = TOUCH_HOOK,
		.why = "a VMM resets the bus of devices that it starts with: not an inherited one's",
		.others = NOTHING, .replacement = hook_reset_bus,
		.resolved = resolved_orig_reset_bus,
	}, {
		.symbol = "pci_user_write_config_word", .kind = TOUCH_HOOK,
		.why = "and clears bus master before that: not an inherited one's",
		.others = NOTHING, .replacement = hook_user_write_word,
		.resolved = resolved_orig_user_write_word,
	}, {
		.symbol = "native_machine_crash_shutdown", .kind = TOUCH_HOOK,
		.why = "an inherited device stops before a crash kernel starts",
		.others = NOTHING, .replacement = hook_crash,
		.resolved = resolved_orig_crash,
	}, {
		/* Last: from here on a kexec hands over. */
		.symbol = "intel_iommu_shutdown", .kind = TOUCH_HOOK,
		.why = "hands over at kexec if that is armed; else our devices stop before it",
		.others = NOTHING, .replacement = hook_shutdown,
		.resolved = resolved_orig_shutdown,
	},
};

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

/* By the function of that domain, which lets a device pass that is not ours. */
int kernel_attach_any(struct iommu_domain *domain, struct device *dev)
{
#ifdef PKERNFS_ATTACH_HAS_OLD
	return domain->ops->attach_dev(domain, dev, NULL);
#else
	return domain->ops->attach_dev(domain, dev);
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

int kernel_deferred_attach(struct device *dev, struct iommu_domain *domain)
{
	return static_call(deferred_attach)(dev, domain);
}

raw_spinlock_t *kernel_config_lock(void)
{
	return config_lock;
}

char *kernel_command_line(void)
{
	return command_line ? *command_line : NULL;
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

int hooks_install(void)
{
	return touch_install(touch_points, ARRAY_SIZE(touch_points));
}

void hooks_remove(void)
{
	touch_remove(touch_points, ARRAY_SIZE(touch_points));
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
