#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "mountpoint.h"
#include "overlay.h"
#include "removal.h"

/* Directories that are open below the container's own. */
#define NESTED_MAX 8

/* A tree of any depth is removed with few directories open: one that is nested deeper is moved up to the container's
 * own, and emptied when its turn comes there. Not each, as a move takes as long as all else that removing it does. */
struct removal {
	const char *container;
	int top_fd;
	uint64_t moved;
	struct ls_error *err;
};

static int fail(const struct removal *removal, const char *name)
{
	return ls_fail_errno(removal->err, "cannot remove \"%s\" of container \"%s\"", LS_SHOWN_TEXT(name),
	                     LS_SHOWN_TEXT(removal->container));
}

/* The directory opened for reading, NULL with errno otherwise: EBUSY where it is a mount. */
static DIR *open_directory(int parent_fd, const char *name)
{
	int fd = ls_open_resolved(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
	                          RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS, 1);

	if (fd < 0 && errno == EXDEV)
		errno = EBUSY;
	return ls_read_directory(fd);
}

/* Somebody else may be removing the same container: what is gone is none of what fails below. */

/* Returns 0 when `name` is gone, 1 when it is a directory that holds something, -1 with errno. */
static int unlink_entry(int parent_fd, const struct dirent *entry)
{
	if (entry->d_type != DT_DIR) {
		if (!unlinkat(parent_fd, entry->d_name, 0) || errno == ENOENT)
			return 0;
		if (errno != EISDIR)
			return -1;
	}
	if (!unlinkat(parent_fd, entry->d_name, AT_REMOVEDIR) || errno == ENOENT)
		return 0;
	return errno == ENOTEMPTY || errno == EEXIST ? 1 : -1;
}

static int move_up(struct removal *removal, int parent_fd, const char *name)
{
	char target[24];
	int status;

	/* A removal that was interrupted may have left directories of such names. */
	do {
		snprintf(target, sizeof(target), "%llu", (unsigned long long)removal->moved++);
		status = renameat(parent_fd, name, removal->top_fd, target);
	} while (status && (errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR));
	return status && errno == ENOENT ? 0 : status;
}

/* Remove the directory `name`, which `nested` directories are open above, and what is in it. */
static int remove_directory(struct removal *removal, int parent_fd, const char *name, int nested)
{
	DIR *directory = open_directory(parent_fd, name);
	const struct dirent *entry;
	int status = LS_OK;

	if (!directory)
		return errno == ENOENT ? LS_OK : fail(removal, name);
	while (!status && (entry = ls_next_entry(directory))) {
		int left = unlink_entry(dirfd(directory), entry);

		if (left > 0 && nested < NESTED_MAX)
			status = remove_directory(removal, dirfd(directory), entry->d_name, nested + 1);
		else if (left < 0 || (left && move_up(removal, dirfd(directory), entry->d_name)))
			status = fail(removal, entry->d_name);
	}
	if (!status && errno && errno != ENOENT)
		status = fail(removal, name);
	closedir(directory);
	if (!status && unlinkat(parent_fd, name, AT_REMOVEDIR) && errno != ENOENT)
		status = fail(removal, name);
	return status;
}

static int empty_container(struct removal *removal, DIR *top)
{
	const struct dirent *entry;
	int status = LS_OK;

	rewinddir(top);
	while (!status && (entry = ls_next_entry(top))) {
		int left = unlink_entry(removal->top_fd, entry);

		if (left < 0)
			status = fail(removal, entry->d_name);
		else if (left)
			status = remove_directory(removal, removal->top_fd, entry->d_name, 1);
	}
	return status ? status : errno && errno != ENOENT ? fail(removal, ".") : LS_OK;
}

/* What moved up while the container's directory was read may not have been seen: so until it is empty. */
static int remove_opened(struct removal *removal, int containers_fd, DIR *top)
{
	int status;

	do {
		status = empty_container(removal, top);
		if (status)
			return status;
		if (!unlinkat(containers_fd, removal->container, AT_REMOVEDIR) || errno == ENOENT)
			return LS_OK;
	} while (errno == ENOTEMPTY || errno == EEXIST);
	return fail(removal, ".");
}

static int check_unmounted(int containers_fd, const char *name, struct ls_error *err)
{
	char root[NAME_MAX + sizeof("/root")];
	int mounted;
	int status;

	snprintf(root, sizeof(root), "%s/root", name);
	status = ls_mountpoint_test(containers_fd, root, &mounted, err);
	if (status || !mounted)
		return status;
	errno = EBUSY;
	return ls_fail_errno(err, "cannot remove container \"%s\", which is mounted: unmount it first",
	                     LS_SHOWN_TEXT(name));
}

static int remove_container(int containers_fd, const char *name, struct ls_error *err)
{
	struct removal removal = {.container = name, .err = err};
	DIR *top;
	int status = ls_container_check_name(name, err);

	if (!status)
		status = check_unmounted(containers_fd, name, err);
	if (status)
		return status;
	top = open_directory(containers_fd, name);
	if (!top)
		return errno == ENOENT ? LS_OK : fail(&removal, ".");
	removal.top_fd = dirfd(top);
	status = remove_opened(&removal, containers_fd, top);
	closedir(top);
	return status;
}

int ls_container_remove_many(int containers_fd, const char *const *names, size_t n, struct ls_error *err)
{
	int first = LS_OK;

	for (size_t i = 0; i < n; i++) {
		struct ls_error later;
		int status = remove_container(containers_fd, names[i], first ? &later : err);

		first = first ? first : status;
	}
	return first;
}
