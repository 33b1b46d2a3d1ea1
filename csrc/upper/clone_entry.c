#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/whiteout.h"
#include "clone_content.h"
#include "clone_entry.h"

int ls_clone_fail(const struct ls_clone *clone, const char *name)
{
	return ls_fail_errno(clone->err, "cannot clone \"%s\" of \"%s\"", LS_SHOWN_TEXT(name),
	                     LS_SHOWN_TEXT(clone->shared->source));
}

/* Copy those of the attributes named in clone->names that there still are. Returns 0, or -1 with errno. */
static int copy_xattrs(struct ls_clone *clone, const struct ls_subject *source, const struct ls_subject *target,
                       ssize_t names_length)
{
	const char *end = clone->names + names_length;

	for (const char *name = clone->names; name < end; name += strlen(name) + 1) {
		ssize_t length = ls_xattrs_get(source, name, clone->value);

		if (length < 0 && errno == ENODATA)
			continue;
		if (length < 0 || ls_xattrs_set(target, name, clone->value, (size_t)length))
			return -1;
	}
	return 0;
}

static int has_name(const struct ls_clone *clone, ssize_t names_length, const char *wanted)
{
	const char *end = clone->names + names_length;

	for (const char *name = clone->names; name < end; name += strlen(name) + 1)
		if (!strcmp(name, wanted))
			return 1;
	return 0;
}

/* The owner before the mode, whose set-user-ID and set-group-ID bits it clears, and only where they differ: each change
 * is a transaction of the file system. */
static int set_owner_and_mode(int target, const struct stat *status)
{
	struct stat made;
	int chowned;

	if (fstat(target, &made))
		return -1;
	chowned = made.st_uid != status->st_uid || made.st_gid != status->st_gid;
	if (chowned && fchown(target, status->st_uid, status->st_gid))
		return -1;
	if ((chowned || made.st_mode != status->st_mode) && fchmod(target, status->st_mode & 07777))
		return -1;
	return 0;
}

static int set_attributes(struct ls_clone *clone, int source, int target, const struct stat *status,
                          ssize_t names_length)
{
	struct ls_subject from = {.fd = source}, to = {.fd = target};
	struct timespec times[2] = {status->st_atim, status->st_mtim};

	if (set_owner_and_mode(target, status) || copy_xattrs(clone, &from, &to, names_length))
		return -1;
	return futimens(target, times);
}

int ls_clone_attributes(struct ls_clone *clone, int source, int target, const struct stat *status, const char *name)
{
	struct ls_subject from = {.fd = source};
	ssize_t length = ls_xattrs_list(&from, clone->names);

	if (length < 0 || set_attributes(clone, source, target, status, length))
		return ls_clone_fail(clone, name);
	return LS_OK;
}

/* Returns 1 when the inode has a name in the clone already, and now this one too; 0 when not; -1 with errno. */
static int link_known(const struct ls_clone_shared *shared, const struct stat *status, int target_dir, const char *name)
{
	char number[24];

	if (status->st_nlink < 2 || shared->links_fd < 0)
		return 0;
	snprintf(number, sizeof(number), "%llu", (unsigned long long)status->st_ino);
	if (!linkat(shared->links_fd, number, target_dir, name, 0))
		return 1;
	return errno == ENOENT ? 0 : -1;
}

static int open_links(struct ls_clone_shared *shared)
{
	char path[PATH_MAX];

	if (shared->links_fd >= 0)
		return 0;
	snprintf(path, sizeof(path), "%s.links", shared->target);
	if (mkdirat(shared->target_fd, path, 0700))
		return -1;
	shared->links_fd = openat(shared->target_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return shared->links_fd < 0 ? -1 : 0;
}

/* Have other names of the inode find this one. */
static int remember(struct ls_clone_shared *shared, const struct stat *status, int target_dir, const char *name)
{
	char number[24];

	if (status->st_nlink < 2)
		return 0;
	if (open_links(shared))
		return -1;
	snprintf(number, sizeof(number), "%llu", (unsigned long long)status->st_ino);
	return linkat(target_dir, name, shared->links_fd, number, 0);
}

/* Returns 0; 1 when overlayfs has copied the data up meanwhile, so that the clone is neither before nor after that;
 * -1 with errno. */
static int fill_file(struct ls_clone *clone, int source, int target, struct stat *status)
{
	struct ls_subject from = {.fd = source};
	ssize_t length = ls_xattrs_list(&from, clone->names);
	int metacopy;

	if (length < 0)
		return -1;
	metacopy = has_name(clone, length, LS_OVERLAY_METACOPY);
	/* While it has that attribute, what is in the file is nothing, or the part that is copied already. */
	if (metacopy ? ftruncate(target, status->st_size) : ls_clone_content(clone, source, target, status))
		return -1;
	/* Once more, for a time that is not older than the content. */
	if (fstat(source, status) || set_attributes(clone, source, target, status, length))
		return -1;
	return metacopy && fgetxattr(source, LS_OVERLAY_METACOPY, NULL, 0) < 0 && errno == ENODATA;
}

/* Make the file and fill it. Returns an enum ls_status. */
static int make_file(struct ls_clone *clone, int source, struct stat *status, int target_dir, const char *name)
{
	int target, result = -1;

	do {
		target = openat(target_dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		                status->st_mode & 07777);
		if (target < 0)
			break;
		result = fill_file(clone, source, target, status);
		if (result < 0)
			ls_clone_fail(clone, name);
		close(target);
		if (result < 0)
			return LS_SYSTEM;
	} while (result && !unlinkat(target_dir, name, 0) && !fstat(source, status));
	if (result || remember(clone->shared, status, target_dir, name))
		return ls_clone_fail(clone, name);
	return LS_OK;
}

static int clone_opened(struct ls_clone *clone, int source, struct stat *status, int target_dir, const char *name)
{
	int linked;
	int result;

	if (status->st_nlink < 2)
		return make_file(clone, source, status, target_dir, name);
	pthread_mutex_lock(&clone->shared->links_lock);
	linked = link_known(clone->shared, status, target_dir, name);
	if (linked)
		result = linked < 0 ? ls_clone_fail(clone, name) : LS_OK;
	else
		result = make_file(clone, source, status, target_dir, name);
	pthread_mutex_unlock(&clone->shared->links_lock);
	return result;
}

int ls_clone_file(struct ls_clone *clone, int source_dir, int target_dir, const char *name, int may_defer)
{
	/* O_NONBLOCK: should it have become a fifo. */
	int source = openat(source_dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat status;
	int result;

	if (source < 0)
		return ls_has_changed(errno) ? LS_CLONE_CHANGED : ls_clone_fail(clone, name);
	if (fstat(source, &status))
		result = ls_clone_fail(clone, name);
	else if (!S_ISREG(status.st_mode))
		result = LS_CLONE_CHANGED;
	else if (may_defer && ls_clone_begin_writing(clone, source, &status))
		result = LS_CLONE_LATER;
	else
		result = clone_opened(clone, source, &status, target_dir, name);
	close(source);
	return result;
}

/* Returns 0, or -1 with errno. */
static int make_special(int source_dir, int target_dir, const char *name, const struct stat *status)
{
	char link[PATH_MAX];
	ssize_t length;

	if (!S_ISLNK(status->st_mode))
		return mknodat(target_dir, name, status->st_mode, status->st_rdev);
	length = readlinkat(source_dir, name, link, sizeof(link) - 1);
	if (length < 0)
		return -1;
	link[length] = '\0';
	return symlinkat(link, target_dir, name);
}

static int set_special_attributes(struct ls_clone *clone, int source_dir, int target_dir, const char *name,
                                  const struct stat *status)
{
	struct ls_subject from = ls_subject_at(source_dir, name), to = ls_subject_at(target_dir, name);
	struct timespec times[2] = {status->st_atim, status->st_mtim};
	ssize_t length = ls_xattrs_list(&from, clone->names);
	struct stat made;

	if (length < 0 || fstatat(target_dir, name, &made, AT_SYMLINK_NOFOLLOW))
		return -1;
	if ((made.st_uid != status->st_uid || made.st_gid != status->st_gid) &&
	    fchownat(target_dir, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW))
		return -1;
	if (made.st_mode != status->st_mode && !S_ISLNK(status->st_mode) &&
	    fchmodat(target_dir, name, status->st_mode & 07777, 0))
		return -1;
	if (copy_xattrs(clone, &from, &to, length))
		return -1;
	return utimensat(target_dir, name, times, AT_SYMLINK_NOFOLLOW);
}

int ls_clone_special_anew(struct ls_clone *clone, int source_dir, int target_dir, const char *name,
                          const struct stat *status)
{
	if (make_special(source_dir, target_dir, name, status)) {
		/* readlinkat(2) of what is no link any more, or nothing. */
		return errno == EINVAL || errno == ENOENT ? LS_CLONE_CHANGED : ls_clone_fail(clone, name);
	}
	if (!set_special_attributes(clone, source_dir, target_dir, name, status))
		return LS_OK;
	if (!ls_has_changed(errno))
		return ls_clone_fail(clone, name);
	return unlinkat(target_dir, name, 0) ? ls_clone_fail(clone, name) : LS_CLONE_CHANGED;
}

static int clone_special(struct ls_clone *clone, int source_dir, int target_dir, const char *name)
{
	struct stat status;
	int linked, result;

	if (fstatat(source_dir, name, &status, AT_SYMLINK_NOFOLLOW))
		return ls_has_changed(errno) ? LS_CLONE_CHANGED : ls_clone_fail(clone, name);
	if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))
		return LS_CLONE_CHANGED;
	linked = link_known(clone->shared, &status, target_dir, name);
	if (linked > 0)
		return LS_OK;
	if (linked < 0)
		return ls_clone_fail(clone, name);
	result = ls_clone_special_anew(clone, source_dir, target_dir, name, &status);
	if (result)
		return result;
	return remember(clone->shared, &status, target_dir, name) ? ls_clone_fail(clone, name) : LS_OK;
}

int ls_clone_special(struct ls_clone *clone, int source_dir, int target_dir, const char *name)
{
	int result;

	pthread_mutex_lock(&clone->shared->links_lock);
	result = clone_special(clone, source_dir, target_dir, name);
	pthread_mutex_unlock(&clone->shared->links_lock);
	return result;
}
