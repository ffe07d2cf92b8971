/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pkernfs_dma.ko: devices that keep working while the host's kernel is replaced.
 *
 *   tables.c	page tables: walk, copy, compare; plain code
 *   roots.c	root tables and context entries; plain code
 *   keep.c	the record: made by one kernel, checked by the next; plain code
 *   vtd.c	IOMMUs: registers, by the specification
 *   live.c	tables of a driver that runs
 *   hooks.c	every touch point with the kernel, in one table
 *   hooked.c	what hooked functions do
 *   touch.c	finds symbols and diverts functions
 *   device.c	which devices, and what state each is in
 *   refuse.c	which can't be preserved
 *   area.c	memory of the store that tables are kept in
 *   files.c	memory that belongs to files
 *   guard.c	keeps in its file what a device can reach
 *   arm.c	getting ready for a kexec
 *   handover.c	the last moment of a kernel
 *   disguise.c	the next one, which takes itself for a kernel after a crash
 *   inherit.c	its first moment: what the one before left
 *   attach.c	devices of the host that are not ours
 *   adopt.c	the switch from inherited tables to those of the new owner
 *   stop.c	a kernel that ends otherwise than by a hand-over
 *   control.c	/sys/fs/pkernfs_dma
 *
 * Locks, outermost first:
 *
 *   dma_control_lock	one order of the user at a time; arming
 *   iommu_group->mutex	of the IOMMU core, held when a hook of attach runs
 *   dma_lock		state of the slots, what is held back
 *   dma_tables_lock	which tables a slot has; also taken below pkernfs' locks, so
 *			nothing of pkernfs is called with it held
 *
 * Files of the store are made and removed with dma_control_lock at most.
 */
#ifndef PKERNFS_DMA_H
#define PKERNFS_DMA_H

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bits.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/types.h>

#include "../fs/export.h"
#include "keep.h"
#include "record.h"
#include "roots.h"
#include "tables.h"

struct intel_iommu;

/* vtd.c: one IOMMU. */
struct vtd_unit {
	u64 registers;
	u16 segment;
	struct intel_iommu *driver;	/* handle for the driver's own functions */
	void __iomem *reg;
	u64 cap;
	u64 ecap;
};

extern struct vtd_unit vtd_units[PKERNFS_DMA_MAX_UNITS];
extern unsigned int vtd_nr_units;

int vtd_find_units(void);
void vtd_forget_units(void);
bool vtd_unit_coherent(const struct vtd_unit *unit);
bool vtd_unit_snoops(const struct vtd_unit *unit);
bool vtd_unit_remaps_interrupts(const struct vtd_unit *unit);
/* One line for the user, or NULL: can devices behind this unit be preserved? */
const char *vtd_unit_objection(const struct vtd_unit *unit);

/* The tables that hardware uses. */
struct vtd_roots vtd_unit_roots(const struct vtd_unit *unit);
/* The entry of a device in them; NULL: there is no table for it. */
struct vtd_context *vtd_live_context(const struct vtd_unit *unit, u8 bus, u8 devfn);
/* Replace an entry in one step, then drop what hardware cached of the old one. */
void vtd_context_replace(const struct vtd_unit *unit, struct vtd_context *entry, u8 bus,
			 u8 devfn, struct vtd_context new);

/* The last moment: interrupts off, one CPU. section: a block as record.h describes it. */
int vtd_hand_over(const struct vtd_unit *unit, void *section, u64 section_phys);
/* It failed, and nothing behind the unit does DMA any more. */
void vtd_switch_off(const struct vtd_unit *unit);
void vtd_fill_blocked_interrupts(void *irt);
void vtd_flush_cpu(const struct vtd_unit *unit, void *addr, size_t bytes);
/* A page of the driver's tables: ordinary memory, or NULL. Takes no lock. */
void *vtd_ram_page(u64 phys);

/* device.c */
enum dma_state {
	DMA_FREE,
	DMA_PRESERVED,		/* named by the user, ordinary until a kexec */
	DMA_INHERITED,		/* works on the tables of the kernel before */
	DMA_CUT_OFF,		/* was inherited, did not pass: can't reach memory */
};

/* An area of blocks in the store, mapped. Of a device: its first page is the header. */
#define DMA_FIRST_TABLE		1

struct dma_area {
	struct pkernfs_region *region;
	char name[32];
	u32 nr_blocks;
	u64 *phys;
	void **addr;
};

struct dma_slot {
	enum dma_state state;
	struct pci_dev *pdev;
	struct vtd_unit *unit;		/* known when armed or inherited */
	char reason[96];		/* why it was cut off, or the last refusal */

	/* Inherited. */
	struct pkernfs_dma_device record;
	struct dma_area inherited;
	bool checked;			/* every leaf lies inside a file of the store */
	bool opening;			/* VFIO is between clear_master and reset */
	bool open;			/* and through it */
	bool spare;			/* adopted before it was opened: spare that open */
	bool holds_power;		/* our references: enabled, in D0 */
	struct iommu_domain *held;	/* an attach that was held back */
	bool untold;			/* the core believes in one that was not made */

	/* Armed. */
	struct dma_area area;
	struct dma_counts counts;	/* as armed, then as handed over */
	u64 dropped;

	/* Result of the last adoption. */
	u64 adopted;			/* how often */
	u64 switch_ns;			/* new entry written, old caches dropped */
	u64 adopt_ns;			/* attach and compare included */
};

extern struct dma_slot dma_slots[PKERNFS_DMA_MAX_DEVICES];
extern struct mutex dma_control_lock;
extern struct mutex dma_lock;
extern struct mutex dma_tables_lock;

#define for_each_dma_slot(slot) \
	for ((slot) = dma_slots; (slot) < dma_slots + PKERNFS_DMA_MAX_DEVICES; (slot)++)

struct dma_slot *dma_slot_of(const struct device *dev);
struct dma_slot *dma_slot_take(struct pci_dev *pdev, enum dma_state state);
void dma_slot_free(struct dma_slot *slot);
bool dma_above_preserved(const struct pci_dev *bridge);
int dma_preserve(const char *name);
int dma_release(const char *name);
struct pci_dev *dma_parse_bdf(const char *name);
/* Says why something was refused: in the log, and to whoever reads "message". */
__printf(1, 2) void dma_refuse(const char *fmt, ...);
extern char dma_message[256];
const char *dma_state_name(enum dma_state state);
int dma_device_init(void);
void dma_device_exit(void);

/* refuse.c: what stands behind "it" for the user, or NULL: can this device be preserved? */
const char *dma_objection(struct pci_dev *pdev);

/* live.c: tables of a kernel that runs: read through its direct map, which may change below us. */
struct dma_live {
	struct dma_tables tables;
	u64 (*pages)[DMA_ENTRIES];	/* one per level */
};
int dma_live_init(struct dma_live *live, const struct vtd_context *context);
void dma_live_exit(struct dma_live *live);
/* What hardware uses for a device now, whoever made it, and behind which IOMMU; or NULL. */
struct vtd_context *dma_live_context(const struct pci_dev *pdev, struct vtd_unit **unit);

/* guard.c */
int dma_guard_init(void);
void dma_guard_exit(void);

/* area.c */
int dma_area_make(struct dma_area *area, struct pkernfs_region *region, const char *name,
		  u32 nr_blocks);
int dma_area_map(struct dma_area *area, struct pkernfs_region *region, const char *name,
		 const u64 *phys, u32 nr_blocks);
void dma_area_unmap(struct dma_area *area);
void *dma_area_page(const struct dma_area *area, u64 index);
u64 dma_area_phys(const struct dma_area *area, u64 index);
u64 dma_area_pages(const struct dma_area *area);
bool dma_area_holds(const struct dma_area *area, u64 phys);
u32 dma_area_checksum(const struct dma_area *area, u64 first, u64 pages);
/* Tables inside an area. */
struct dma_tables dma_area_tables(struct dma_area *area, u64 root, unsigned int levels);
/* Gives a file back, later and without locks. */
void dma_area_remove_later(struct pkernfs_region *region, const char *name);
void dma_area_check_later(void);
void dma_area_flush(void);
int dma_area_init(void);
void dma_area_exit(void);

/* arm.c */
int dma_arm(void);
int dma_disarm(void);
bool dma_armed(void);
u64 dma_record_phys(void);
bool dma_handover_reaches(u64 phys, u64 size);
void dma_arm_exit(void);

/* handover.c */
bool dma_handing_over(void);
void dma_hand_over(void);
int dma_handover_init(void);
void dma_handover_exit(void);

/* files.c: blocks of files that user space can have. */
#define DMA_MAX_STORES		16

struct dma_data {
	unsigned int nr_stores;		/* that are mounted */
	struct dma_store {
		u64 base;
		u64 nr_blocks;
		unsigned long *blocks;
	} stores[DMA_MAX_STORES];
};

int dma_data_init(struct dma_data *data);
void dma_data_exit(struct dma_data *data);
/* Is this memory of a store that was mounted? */
bool dma_data_knows(const struct dma_data *data, u64 phys);
bool dma_data_holds(const struct dma_data *data, const struct dma_leaf *leaf);

/* disguise.c */
int dma_end_disguise(void);
void dma_hide_record(void);
struct pkernfs_dma_record *dma_read_record(struct pkernfs_region **region);
void dma_fail_closed(void);

/* inherit.c */
void dma_inherit(void);
int dma_check_leaves(struct dma_slot *slot);
void dma_check_stores(void);
void dma_cut_off(struct dma_slot *slot, const char *why);
void dma_let_go(struct dma_slot *slot);

/* attach.c */
void dma_attach(struct device *dev);
void dma_attach_all(void);
/* One that was ours; untold: as in its slot. */
void dma_attach_released(struct device *dev, bool untold);

/* stop.c: in the order of what happens. */
bool dma_stopping(void);
void dma_stop(void);
void dma_stop_last(void);
void dma_stop_in_panic(void);

/* adopt.c */
int dma_adopt(struct dma_slot *slot);
int dma_adopt_by_name(const char *name);

/* hooks.c, hooked.c */
#ifdef PKERNFS_ATTACH_HAS_OLD
#define DMA_ATTACH_PROTO	struct iommu_domain *domain, struct device *dev, \
				struct iommu_domain *old
#define DMA_ATTACH_ARGS		domain, dev, old
#else
#define DMA_ATTACH_PROTO	struct iommu_domain *domain, struct device *dev
#define DMA_ATTACH_ARGS		domain, dev
#endif

int hooks_install(void);
void hooks_remove(void);
ssize_t hooks_describe(char *buf, size_t size);
/* The kernel's own functions, unhooked. */
int kernel_attach(struct iommu_domain *domain, struct device *dev);
int kernel_attach_any(struct iommu_domain *domain, struct device *dev);
int kernel_block(struct device *dev);
void kernel_clear_master(struct pci_dev *pdev);
void kernel_flush_context(struct intel_iommu *driver, u16 domain, u16 source);
void kernel_flush_iotlb(struct intel_iommu *driver, u16 domain);
int kernel_deferred_attach(struct device *dev, struct iommu_domain *domain);
bool kernel_kexec_in_progress(void);
raw_spinlock_t *kernel_config_lock(void);
/* What /proc/cmdline shows; NULL: it was not found. */
char *kernel_command_line(void);
struct list_head *kernel_drhd_units(void);
struct rw_semaphore *kernel_dmar_lock(void);

/* For this task and this device, the driver works on *entry and not on the live one. */
void hooks_redirect(u8 bus, u8 devfn, struct intel_iommu *driver, struct vtd_context *entry);
unsigned int hooks_redirect_end(void);

/* control.c */
int control_init(void);
void control_exit(void);

#endif /* PKERNFS_DMA_H */
