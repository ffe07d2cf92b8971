// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is left out of a store because it is damaged, and what must stay untouched as long
 * as it is: the slot itself, extent pages that may be its own, and every block that it
 * may own. Which blocks these are nobody can tell, so it is all that no good inode owned
 * when the store was opened. A device may still write to them.
 */
#include <linux/stdarg.h>

#include "store_private.h"

#define DAMAGE_TEXT	(64U << 10)
#define DAMAGE_LINE	256U
/* So many lines go to the log, the text has the others. */
#define DAMAGE_TOLD	16U
#define SHOWN_NAME	48U

static u32 nr_lines(const struct pkernfs_damage *damage)
{
	return damage->nr_quarantined + damage->nr_lost;
}

/* What was a name, for a line of text. */
static void show_name(char shown[SHOWN_NAME + 1], const struct pkernfs_inode *inode)
{
	const u32 len = min_t(u32, le16_to_cpu(inode->name_len), SHOWN_NAME);
	u32 i;

	for (i = 0; i < len && inode->name[i]; i++)
		shown[i] = inode->name[i] > ' ' && inode->name[i] < 0x7f ? inode->name[i] : '?';
	shown[i] = 0;
}

static int add_line(struct pkernfs_store *store, const char *line)
{
	struct pkernfs_damage *damage = &store->damage;

	if (nr_lines(damage) <= DAMAGE_TOLD)
		store->backing->alarm(store->backing, "%s", line);
	if (!damage->text) {
		damage->text = kvmalloc_array(DAMAGE_TEXT, 1, PKERNFS_GFP);
		if (!damage->text)
			return -ENOMEM;
	}
	/* The rest is counted in the last line. */
	if (damage->length < DAMAGE_TEXT - 2 * DAMAGE_LINE)
		damage->length += scnprintf(damage->text + damage->length, DAMAGE_LINE, "%s\n",
					    line);
	return 0;
}

/*
 * Numbers that a damaged inode has are not given again: what lies in it names it by them.
 * Without the right checksum that is a guess, so it must not lead too far.
 */
static void keep_numbers(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const u64 seq = le64_to_cpu(inode->seq), ino = le64_to_cpu(inode->ino);
	const bool right = inode->checksum ==
			   cpu_to_le32(pkernfs_inode_checksum(store->super, inode));

	if ((right || inode->commit == inode->seq) && seq < PKERNFS_SEQ_MAX / 2)
		store->next_seq = max(store->next_seq, seq + 1);
	/* No inode was made before its number could be given. */
	if (ino < PKERNFS_LOST_INO && (right || (inode->commit == inode->seq && ino <= seq)))
		store->next_ino = max(store->next_ino, ino + 1);
}

/*
 * Leaves a committed slot out; damage.reason says why. believed: its checksum is right, so
 * that what it says of itself is what somebody wrote.
 */
int pkernfs_quarantine(struct pkernfs_store *store, const struct pkernfs_inode *inode, u32 slot,
		       bool believed)
{
	struct pkernfs_meta *meta = pkernfs_meta_find(store, slot / PKERNFS_SLOTS_PER_BLOCK);
	char line[DAMAGE_LINE], name[SHOWN_NAME + 1];

	__set_bit(slot % PKERNFS_SLOTS_PER_BLOCK, meta->damaged);
	store->damage.nr_quarantined++;
	keep_numbers(store, inode);
	show_name(name, inode);
	scnprintf(line, sizeof(line), "slot %u left out, %sinode %llu '%s': %s", slot,
		  believed ? "" : "perhaps ", le64_to_cpu(inode->ino), name,
		  store->damage.reason);
	return add_line(store, line);
}

/* A good inode that is found in lost+found. */
int pkernfs_damage_lost(struct pkernfs_store *store, const struct pkernfs_node *node,
			const char *fmt, ...)
{
	char line[DAMAGE_LINE], name[SHOWN_NAME + 1], why[96];
	va_list args;

	va_start(args, fmt);
	vscnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	store->damage.nr_lost++;
	show_name(name, node->inode);
	scnprintf(line, sizeof(line), "inode %llu '%s' is in lost+found: %s", node->ino, name,
		  why);
	return add_line(store, line);
}

/* What a damaged file names as its extent pages, as far as that can be read. */
static void keep_named(struct pkernfs_store *store, const struct pkernfs_inode *inode)
{
	const struct pkernfs_page_ref *refs = pkernfs_page_refs(inode);
	const u32 nr_pages = min_t(u32, le32_to_cpu(inode->nr_pages), PKERNFS_MAX_EXTENT_PAGES);
	u32 i;

	for (i = 0; i < nr_pages; i++)
		pkernfs_slot_claim(store, le32_to_cpu(refs[i].slot));
}

/* Is it an extent page of an inode that is not there? Of one that is, it would be in use. */
static bool may_be_page(struct pkernfs_store *store, const void *addr, u32 slot)
{
	const struct pkernfs_extent_page *page = addr;

	return le32_to_cpu(page->slot) == slot && page->ino &&
	       !pkernfs_node_find(store, le64_to_cpu(page->ino));
}

static void keep_slots(struct pkernfs_store *store)
{
	struct pkernfs_meta *meta;
	u32 i;

	list_for_each_entry(meta, &store->chain, chain) {
		for (i = 0; i < PKERNFS_HEADER_SLOT; i++) {
			const u32 slot = meta->block * PKERNFS_SLOTS_PER_BLOCK + i;
			const void *addr = meta->addr + (i << PKERNFS_SLOT_SHIFT);

			if (test_bit(i, meta->damaged))
				keep_named(store, addr);
			else if (!test_bit(i, meta->used) && may_be_page(store, addr, slot))
				pkernfs_slot_claim(store, slot);
		}
	}
}

/* All good inodes are known, and own what is theirs: nothing else may be used. */
void pkernfs_damage_settle(struct pkernfs_store *store)
{
	struct pkernfs_damage *damage = &store->damage;
	char line[DAMAGE_LINE];

	if (!nr_lines(damage))
		return;
	if (damage->nr_quarantined) {
		keep_slots(store);
		damage->withheld = store->nr_free;
		pkernfs_space_withhold(store);
	}
	scnprintf(line, sizeof(line),
		  "damage: %u slots left out, %u inodes in lost+found, %u free blocks not used for it: see pkernfs check",
		  damage->nr_quarantined, damage->nr_lost, damage->withheld);
	store->backing->alarm(store->backing, "%s", line);
	damage->length += scnprintf(damage->text + damage->length, DAMAGE_LINE, "%s\n", line);
}

/* Says once why blocks that look free can't be had. */
int pkernfs_no_space(struct pkernfs_store *store)
{
	struct pkernfs_damage *damage = &store->damage;

	if (store->nr_limbo && !store->limbo_told) {
		store->limbo_told = true;
		store->backing->say(store->backing,
				    "no space: %u blocks that were freed are not used again yet, as a device may still reach them",
				    store->nr_limbo);
	}

	if (damage->withheld && !damage->withheld_told) {
		damage->withheld_told = true;
		store->backing->alarm(store->backing,
				      "no space: %u blocks are not used, as they may belong to what is damaged; 'pkernfs check --repair' gives it up",
				      damage->withheld);
	}
	return -ENOSPC;
}

const char *pkernfs_store_damage(struct pkernfs_store *store, u32 *length)
{
	*length = store->damage.length;
	return *length ? store->damage.text : "";
}

void pkernfs_damage_drop(struct pkernfs_store *store)
{
	kvfree(store->damage.text);
}
