#include "upper_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdlib.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/whiteout.h"
#include "xattrs.h"

struct counted {
	dev_t device;
	ino_t inode;
	size_t names;
};

static int compare(const void *left, const void *right)
{
	const struct counted *a = left, *b = right;

	if (a->device != b->device)
		return a->device < b->device ? -1 : 1;
	return a->inode < b->inode ? -1 : a->inode > b->inode;
}

static int count(struct upper_names *names, const struct stat *status, struct ls_error *err)
{
	struct counted key = {.device = status->st_dev, .inode = status->st_ino}, *made;
	struct counted *const *found = tfind(&key, &names->counted, compare);

	if (found) {
		(*found)->names++;
		return LS_OK;
	}
	made = malloc(sizeof(*made));
	if (!made)
		return upper_out_of_memory(err);
	*made = (struct counted){.device = status->st_dev, .inode = status->st_ino, .names = 1};
	if (tsearch(made, &names->counted, compare))
		return LS_OK;
	free(made);
	return upper_out_of_memory(err);
}

static int enter(struct upper_walk *walk, const struct upper_item *item, struct ls_error *err)
{
	struct upper_redirect redirect;
	struct upper_places places;
	uint32_t origin;
	int is_opaque, fd, status = upper_walk_open_directory(walk, item, &fd, err);

	if (status)
		return status == UPPER_CHANGED ? LS_OK : status;
	status = upper_walk_merge_own(walk, item, fd, &is_opaque, &redirect, &places, &origin, err);
	return status ? status : upper_walk_enter(walk, &places, LS_NONE, LS_NONE, err);
}

static int step(struct upper_names *names, struct upper_walk *walk, struct ls_error *err)
{
	struct upper_item *item;
	struct stat status;
	int result = upper_walk_next(walk, &item, err);

	if (result)
		return result;
	if (!item)
		return upper_walk_leave(walk, err);
	if (item->type == DT_DIR)
		return enter(walk, item, err);
	if (item->type == DT_WHT)
		return LS_OK;
	if (fstatat(upper_walk_fd(walk, item), item->name, &status, AT_SYMLINK_NOFOLLOW))
		return ls_has_changed(errno) ? LS_OK : upper_walk_fail(walk, err);
	return status.st_nlink > 1 ? count(names, &status, err) : LS_OK;
}

static int read_all(struct upper_names *names, const struct upper_walk *of, struct ls_error *err)
{
	const struct upper_places *roots = &of->frames[0].places;
	struct upper_walk walk = {0};
	int *fds = malloc(roots->count * sizeof(*fds)), status;

	if (!fds)
		return upper_out_of_memory(err);
	for (size_t i = 0; i < roots->count; i++)
		fds[i] = roots->at[i].fd;
	status = upper_walk_begin(&walk, NULL, fds, roots->count, 0, err);
	while (!status && walk.depth)
		status = step(names, &walk, err);
	upper_walk_end(&walk);
	free(fds);
	return status;
}

int upper_names_several(struct upper_names *names, const struct upper_walk *walk, const struct stat *status,
                        int *has_several, struct ls_error *err)
{
	struct counted key = {.device = status->st_dev, .inode = status->st_ino};
	struct counted *const *found;
	int result = names->is_read ? LS_OK : read_all(names, walk, err);

	names->is_read = 1;
	found = tfind(&key, &names->counted, compare);
	*has_several = found && (*found)->names > 1;
	return result;
}

void upper_names_free(struct upper_names *names)
{
	tdestroy(names->counted, free);
	*names = (struct upper_names){0};
}
