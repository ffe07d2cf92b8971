// SPDX-License-Identifier: GPL-2.0-only
/*
 * Damaged and hostile stores: opens them, walks what could be opened, changes it,
 * and opens it again. Nothing may crash, leak or contradict itself.
 *
 *	fuzz SEED IMAGES
 *
 * Mutations know the structure of a store and put its checksums right again most
 * of the time, else nothing behind the first checksum would ever be reached. With
 * PKERNFS_LIBFUZZER their choices are libFuzzer's input.
 */
#include <time.h>

#include "fuzz.h"

static const char *any_path(char *path)
{
	static const char *const dirs[] = { "", "d/", "d/e/", "q/" };

	sprintf(path, "%s%c", dirs[choose(4)], 'a' + (char)choose(26));
	return path;
}

static void change(struct base *base)
{
	struct pkn *n = base->n;
	char path[16], other[16];

	any_path(path);
	any_path(other);
	switch (choose(9)) {
	case 0:
		pkn_create(n, path, FILE_MODE, NULL);
		break;
	case 1:
		pkn_create(n, path, DIR_MODE, NULL);
		break;
	case 2:
		pkn_unlink(n, path, false, NULL);
		break;
	case 3:
		pkn_rename(n, path, other);
		break;
	case 4:
		pkn_chmod(n, path, choose(010000));
		break;
	case 5:
		pkn_resize(n, path, interesting());
		break;
	case 6:
		pkn_punch(n, path, choose(8), 1 + choose(4));
		break;
	case 7:
		pkn_allocate(n, path, choose(16), 1 + choose(4), 0);
		break;
	case 8:
		pkn_write(n, path, choose(8 * BLOCK), "data", 4);
		break;
	}
}

static char *dump(struct base *base)
{
	u64 size = pkn_dump(base->n, NULL, 0);
	char *text = calloc(1, size + 1);

	pkn_dump(base->n, text, size);
	return text;
}

/* What is shown must be what the next mount shows, and need no repair. */
static void reopen(struct base *base)
{
	char *before = dump(base), *after, *line;
	struct pkernfs_usage usage;
	u32 quarantined, lost;

	/* Whatever is there has a place in the tree, and a line or (its name) more. */
	pkn_usage(base->n, &usage);
	for (line = before; usage.nodes && (line = strchr(line, '\n')); line++)
		usage.nodes--;
	check(!usage.nodes);
	quarantined = pkn_store(base->n)->damage.nr_quarantined;
	lost = pkn_store(base->n)->damage.nr_lost;
	pkn_close(base->n);
	check(!shim_live);
	check(lost || quarantined || !*pkn_said(base->n));
	pkn_said(base->n);
	check(!pkn_open(base->n));
	check(lost || quarantined || !*pkn_said(base->n));
	check(pkn_store(base->n)->damage.nr_quarantined == quarantined);
	/* What had lost its place may have been given one, or the other of its name is gone. */
	check(pkn_store(base->n)->damage.nr_lost <= lost);
	after = dump(base);
	check(lost || !strcmp(before, after));
	free(before);
	free(after);
}

/* Returns whether the store could be opened. */
static bool try_image(struct base *base)
{
	struct kept kept;
	u32 changes;
	int err;

	mutate(base);
	keep_image(base, &kept);
	err = pkn_open(base->n);
	if (err) {
		check(err == -EINVAL || err == -EUCLEAN || err == -EOPNOTSUPP || err == -ENXIO);
		check(*pkn_said(base->n));
		check_untouched(base, &kept);
	} else {
		pkn_said(base->n);
		keep_owned(base, &kept);
		reopen(base);
		for (changes = choose(6); changes; changes--)
			change(base);
		check_kept(base, &kept);
		reopen(base);
		check_kept(base, &kept);
		pkn_close(base->n);
	}
	check(!shim_live);
	pkn_restore(base->n);
	return !err;
}

static struct base *bases[3];

static void make_bases(void)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(bases); i++)
		bases[i] = make_base(i);
}

#ifdef PKERNFS_LIBFUZZER
int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	if (!bases[0])
		make_bases();
	source.data = data;
	source.left = size;
	try_image(bases[choose(ARRAY_SIZE(bases))]);
	return 0;
}
#else
int main(int argc, char **argv)
{
	u64 images, opened = 0, i;
	clock_t start = clock();

	if (argc != 3) {
		fprintf(stderr, "usage: fuzz SEED IMAGES\n");
		return 2;
	}
	make_bases();
	source.state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ULL + 1;
	images = strtoull(argv[2], NULL, 0);
	for (i = 0; i < images; i++)
		opened += try_image(bases[i % ARRAY_SIZE(bases)]);
	for (i = 0; i < ARRAY_SIZE(bases); i++) {
		pkn_free(bases[i]->n);
		free(bases[i]);
	}
	printf("kernel/fs: %llu damaged images, %llu could be opened, no crash (%.0f s)\n",
	       images, opened, (double)(clock() - start) / CLOCKS_PER_SEC);
	return 0;
}
#endif
