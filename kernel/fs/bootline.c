// SPDX-License-Identifier: GPL-2.0-only
/*
 * Regions, sizes and ranges as they are written in the boot line, and the question
 * whether the boot line protects a range from KASLR.
 *
 * The boot stub picks a random place for the kernel before any of the kernel
 * proper runs, so memmap= alone does not protect a range: the stub has a parser
 * of its own (arch/x86/boot/compressed/kaslr.c). It avoids ranges written with
 * '$', '!' or '#', not those with '%', and no more than the first four of all
 * memmap= options together. A range that it did not avoid may be all right this
 * time and be overwritten by the next kexec, so that is refused at once.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ctype.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "pkernfs.h"

#define PKERNFS_KASLR_RANGES	4	/* MAX_MEMMAP_REGIONS of the boot stub */
#define PKERNFS_BOOTLINE_MAX	8192	/* the kernel's own limit is lower */

struct pkernfs_avoided {
	unsigned int nr;
	u64 start[PKERNFS_KASLR_RANGES];
	u64 end[PKERNFS_KASLR_RANGES];
};

/* SIZE!START and nothing else. */
static int parse_range(const char *text, u64 *size, u64 *start)
{
	char *pos;

	if (!isdigit(*text))
		return -EINVAL;
	*size = memparse(text, &pos);
	if (*pos != '!' || !isdigit(pos[1]))
		return -EINVAL;
	*start = memparse(pos + 1, &pos);
	return *pos ? -EINVAL : 0;
}

static bool name_valid(const char *name)
{
	size_t len = strlen(name);

	if (!len || len > PKERNFS_LABEL_MAX || *name == '.' || !strcmp(name, "none"))
		return false;
	for (; *name; name++)
		if (!isalnum(*name) && !strchr("-_.", *name))
			return false;
	return true;
}

/* The parameter of one region: its name, size and base; text is cut into its parts. */
int pkernfs_parse_region(struct pkernfs_region *region, char *text)
{
	char *colon = strchr(text, ':');
	const char *name = KBUILD_MODNAME;

	if (colon) {
		*colon = '\0';
		name = text;
		text = colon + 1;
	}
	if (!name_valid(name)) {
		pr_err("region=%s:%s: a name is 1 to %d letters, digits, '-', '_' or '.' and not 'none'\n",
		       name, text, PKERNFS_LABEL_MAX);
		return -EINVAL;
	}
	if (parse_range(text, &region->size, &region->base)) {
		pr_err("region=%s: not understood: write [NAME:]SIZE!START, such as region=4G!8G\n",
		       text);
		return -EINVAL;
	}
	strscpy(region->name, name, sizeof(region->name));
	return 0;
}

/* One memmap= option, taken the way the boot stub takes it. */
static void avoid_memmap(struct pkernfs_avoided *avoided, char *value)
{
	char *item;

	while ((item = strsep(&value, ",")) && avoided->nr < PKERNFS_KASLR_RANGES) {
		char *pos;
		u64 size = memparse(item, &pos);
		u64 start;

		if (pos == item || !strncmp(item, "exactmap", 8))
			return;
		if (*pos != '$' && *pos != '!' && *pos != '#')
			continue;
		start = memparse(pos + 1, &pos);
		if (!start)
			continue;
		avoided->start[avoided->nr] = start;
		avoided->end[avoided->nr] = start + size;
		avoided->nr++;
	}
}

/* Cuts off the next word of a boot line; quotes protect spaces. */
static char *next_word(char **line)
{
	char *word = skip_spaces(*line);
	bool quoted = false;
	char *pos;

	if (!*word)
		return NULL;
	for (pos = word; *pos && (quoted || !isspace(*pos)); pos++)
		if (*pos == '"')
			quoted = !quoted;
	*line = *pos ? pos + 1 : pos;
	*pos = '\0';
	return word;
}

/* True: KASLR is off altogether. */
static bool read_bootline(char *line, struct pkernfs_avoided *avoided)
{
	char *word;

	while ((word = next_word(&line))) {
		if (!strcmp(word, "--"))
			break;
		if (!strcmp(word, "nokaslr"))
			return true;
		if (!strncmp(word, "memmap=", 7))
			avoid_memmap(avoided, word + 7);
	}
	return false;
}

static bool covers(const struct pkernfs_avoided *avoided, u64 start, u64 end)
{
	bool moved = true;

	while (start < end && moved) {
		moved = false;
		for (unsigned int i = 0; i < avoided->nr; i++) {
			if (avoided->start[i] > start || avoided->end[i] <= start)
				continue;
			start = avoided->end[i];
			moved = true;
		}
	}
	return start >= end;
}

/*
 * The kernel does not export its command line, nor (to all modules) the
 * firmware's memory map; /proc/cmdline has the former.
 */
static char *get_bootline(void)
{
	struct file *file;
	loff_t pos = 0;
	ssize_t len = 0;
	char *line;

	line = kzalloc(PKERNFS_BOOTLINE_MAX, GFP_KERNEL);
	if (!line)
		return ERR_PTR(-ENOMEM);

	file = filp_open("/proc/cmdline", O_RDONLY, 0);
	if (IS_ERR(file)) {
		kfree(line);
		return ERR_CAST(file);
	}
	while (pos < PKERNFS_BOOTLINE_MAX - 1) {
		len = kernel_read(file, line + pos, PKERNFS_BOOTLINE_MAX - 1 - pos, &pos);
		if (len <= 0)
			break;
	}
	filp_close(file, NULL);
	if (len < 0) {
		kfree(line);
		return ERR_PTR(len);
	}
	return line;
}

/* 1: KASLR stays away from the range; 0: it may use it; or a negative errno. */
int pkernfs_bootline_protects(u64 base, u64 size)
{
	struct pkernfs_avoided avoided = {};
	char *line;
	bool off;

	if (!IS_ENABLED(CONFIG_RANDOMIZE_BASE))
		return 1;

	line = get_bootline();
	if (IS_ERR(line))
		return PTR_ERR(line);
	off = read_bootline(line, &avoided);
	kfree(line);
	return off || covers(&avoided, base, base + size);
}
