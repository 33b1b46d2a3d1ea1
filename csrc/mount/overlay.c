#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fscontext.h"
#include "mountpoint.h"
#include "overlay.h"

/* Where a container's directories are, relative to the directory of all containers. */
struct container_paths {
	char upper[NAME_MAX + sizeof("/upper")];
	char work[NAME_MAX + sizeof("/work")];
	char root[NAME_MAX + sizeof("/root")];
	char lower[NAME_MAX + sizeof("/lower")];
};

int ls_container_check_name(const char *name, struct ls_error *err)
{
	size_t length = strlen(name);

	if (length && length <= NAME_MAX && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, ".."))
		return LS_OK;
	return ls_fail(err, LS_INVALID, "\"%s\" cannot be the name of a container's directory", LS_SHOWN(name, length));
}

static int find_paths(struct container_paths *paths, const char *name, struct ls_error *err)
{
	int status = ls_container_check_name(name, err);

	if (status)
		return status;
	snprintf(paths->upper, sizeof(paths->upper), "%s/upper", name);
	snprintf(paths->work, sizeof(paths->work), "%s/work", name);
	snprintf(paths->root, sizeof(paths->root), "%s/root", name);
	snprintf(paths->lower, sizeof(paths->lower), "%s/lower", name);
	return LS_OK;
}

static int make_directory(int containers_fd, const char *path, struct ls_error *err)
{
	if (!mkdirat(containers_fd, path, 0700))
		return LS_OK;
	return ls_fail_errno(err, "cannot make the container directory \"%s\"", LS_SHOWN_TEXT(path));
}

/* The owner first: changing it clears set-user-ID and set-group-ID bits. The time last. */
static int set_attributes(int containers_fd, const char *path, const struct ls_directory_attributes *attributes,
                          struct ls_error *err)
{
	struct timespec times[2] = {
	    {.tv_nsec = UTIME_OMIT},
	    {.tv_sec = attributes->mtime_seconds, .tv_nsec = attributes->mtime_nanoseconds},
	};

	if (fchownat(containers_fd, path, attributes->uid, attributes->gid, AT_SYMLINK_NOFOLLOW) ||
	    fchmodat(containers_fd, path, attributes->mode & 07777, 0) || utimensat(containers_fd, path, times, 0))
		return ls_fail_errno(err,
		                     "cannot give \"%s\" the attributes of the image's root (mode %o, owner %u:%u)",
		                     LS_SHOWN_TEXT(path), attributes->mode, attributes->uid, attributes->gid);
	return LS_OK;
}

static void remove_container(int containers_fd, const char *name, const struct container_paths *paths)
{
	unlinkat(containers_fd, paths->lower, 0);
	unlinkat(containers_fd, paths->upper, AT_REMOVEDIR);
	unlinkat(containers_fd, paths->work, AT_REMOVEDIR);
	unlinkat(containers_fd, paths->root, AT_REMOVEDIR);
	unlinkat(containers_fd, name, AT_REMOVEDIR);
}

static int link_stack(int containers_fd, const char *stack, const char *path, struct ls_error *err)
{
	if (!stack || !linkat(containers_fd, stack, containers_fd, path, 0))
		return LS_OK;
	return ls_fail_errno(err, "cannot have \"%s\" name what \"%s\" does", LS_SHOWN_TEXT(path),
	                     LS_SHOWN_TEXT(stack));
}

static int make_container(int containers_fd, const char *name, const struct ls_directory_attributes *upper,
                          const char *stack, struct ls_error *err)
{
	struct container_paths paths;
	int status = find_paths(&paths, name, err);

	if (status)
		return status;
	status = make_directory(containers_fd, name, err);
	if (status)
		return status; /* one that exists already is not ours to remove */
	status = link_stack(containers_fd, stack, paths.lower, err);
	if (!status)
		status = make_directory(containers_fd, paths.upper, err);
	if (!status)
		status = make_directory(containers_fd, paths.work, err);
	if (!status)
		status = make_directory(containers_fd, paths.root, err);
	if (!status)
		status = set_attributes(containers_fd, paths.upper, upper, err);
	if (status)
		remove_container(containers_fd, name, &paths);
	return status;
}

int ls_container_make_many(int containers_fd, const char *const *names, size_t n,
                           const struct ls_directory_attributes *upper, const char *stack, struct ls_error *err)
{
	struct container_paths paths;

	for (size_t i = 0; i < n; i++) {
		int status = make_container(containers_fd, names[i], upper, stack, err);

		if (!status)
			continue;
		while (i-- > 0)
			if (!find_paths(&paths, names[i], NULL))
				remove_container(containers_fd, names[i], &paths);
		return status;
	}
	return LS_OK;
}

static int add_layers(struct ls_fscontext *context, const char *key, const int *fds, size_t count, struct ls_error *err)
{
	int status = LS_OK;

	for (size_t i = 0; i < count && !status; i++)
		status = ls_fscontext_directory(context, key, fds[i], err);
	return status;
}

static int add_own_layer(struct ls_fscontext *context, const char *key, int containers_fd, const char *path,
                         struct ls_error *err)
{
	/* For reading and not with O_PATH, which the first kernels with layers by descriptor refuse. */
	int fd = openat(containers_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), status;

	if (fd < 0)
		return ls_fail_errno(err, "cannot open the container directory \"%s\"", LS_SHOWN_TEXT(path));
	status = ls_fscontext_directory(context, key, fd, err);
	close(fd); /* the context holds the directory itself from here on */
	return status;
}

/* The container's frozen uppers, above what others share with it. */
static int add_stack(struct ls_fscontext *context, int containers_fd, const char *link, struct ls_error *err)
{
	char names[PATH_MAX], path[sizeof("../frozen/") + NAME_MAX], *rest = names, *name;
	ssize_t length = readlinkat(containers_fd, link, names, sizeof(names) - 1);
	int status = LS_OK;

	if (length < 0 && errno == ENOENT)
		return LS_OK;
	if (length < 0)
		return ls_fail_errno(err, "cannot read the link \"%s\" of a container", LS_SHOWN_TEXT(link));
	names[length] = '\0';
	while (!status && (name = strsep(&rest, "/"))) {
		status = ls_container_check_name(name, err);
		if (status)
			break;
		snprintf(path, sizeof(path), "../frozen/%s", name);
		status = add_own_layer(context, "lowerdir+", containers_fd, path, err);
	}
	return status;
}

static int configure_overlay(struct ls_fscontext *context, int containers_fd, const struct container_paths *paths,
                             const struct ls_overlay_lowers *lowers, int volatile_upper, struct ls_error *err)
{
	int status = ls_fscontext_string(context, "source", context->subject, err);

	if (!status)
		status = ls_fscontext_string(context, "metacopy", "on", err);
	if (!status)
		status = ls_fscontext_string(context, "redirect_dir", "on", err);
	if (!status && volatile_upper)
		status = ls_fscontext_flag(context, "volatile", err);
	if (!status)
		status = add_stack(context, containers_fd, paths->lower, err);
	if (!status)
		status = add_layers(context, "lowerdir+", lowers->lower, lowers->lower_count, err);
	if (!status)
		status = add_layers(context, "datadir+", lowers->data, lowers->data_count, err);
	if (!status)
		status = add_own_layer(context, "upperdir", containers_fd, paths->upper, err);
	if (!status)
		status = add_own_layer(context, "workdir", containers_fd, paths->work, err);
	return status;
}

/* A volatile mount marks its work directory so that no later mount takes it for synced. Whoever asks for a volatile
 * mount again has accepted that. */
static int clear_volatile_mark(int containers_fd, const char *work, struct ls_error *err)
{
	char path[NAME_MAX + sizeof("/work/work/incompat/volatile/dirty")];
	int length = snprintf(path, sizeof(path), "%s/work/incompat/volatile/dirty", work);

	if (unlinkat(containers_fd, path, 0) && errno == ENOENT)
		return LS_OK;
	path[length - (int)strlen("/dirty")] = '\0';
	if (!unlinkat(containers_fd, path, AT_REMOVEDIR))
		return LS_OK;
	return ls_fail_errno(err, "cannot clear the volatile mark \"%s\"", LS_SHOWN_TEXT(path));
}

static int mount_container(int containers_fd, const char *name, const struct ls_overlay_lowers *lowers,
                           int volatile_upper, struct ls_error *err)
{
	struct ls_fscontext context = {
	    .fd = -1, .type = "overlay", .what = "the overlay of container", .subject = name};
	struct container_paths paths;
	int mounted;
	int status = find_paths(&paths, name, err);

	if (!status)
		status = ls_mountpoint_test(containers_fd, paths.root, &mounted, err);
	if (status || mounted)
		return status;
	if (volatile_upper)
		status = clear_volatile_mark(containers_fd, paths.work, err);
	if (!status)
		status = ls_fscontext_open(&context, err);
	if (!status)
		status = configure_overlay(&context, containers_fd, &paths, lowers, volatile_upper, err);
	if (!status)
		status = ls_fscontext_create(&context, err);
	if (!status)
		status = ls_fscontext_attach(&context, 0, containers_fd, paths.root, err);
	ls_fscontext_close(&context);
	return status;
}

int ls_overlay_mount_many(int containers_fd, const char *const *names, size_t n, const struct ls_overlay_lowers *lowers,
                          int volatile_upper, size_t *done, struct ls_error *err)
{
	int status = LS_OK;

	for (*done = 0; *done < n; ++*done) {
		status = mount_container(containers_fd, names[*done], lowers, volatile_upper, err);
		if (status)
			break;
	}
	return status;
}

static int umount_container(int containers_fd, const char *name, int lazy, struct ls_error *err)
{
	struct container_paths paths;
	int status = find_paths(&paths, name, err);

	if (status)
		return status;
	return ls_mountpoint_umount(containers_fd, paths.root, lazy, name, err);
}

int ls_umount_many(int containers_fd, const char *const *names, size_t n, int lazy, struct ls_error *err)
{
	int first = LS_OK;

	for (size_t i = 0; i < n; i++) {
		struct ls_error later;
		int status = umount_container(containers_fd, names[i], lazy, first ? &later : err);

		first = first ? first : status;
	}
	return first;
}

int ls_mounted_many(int containers_fd, const char *const *names, size_t n, uint8_t *mounted, struct ls_error *err)
{
	for (size_t i = 0; i < n; i++) {
		struct container_paths paths;
		int is_mounted = 0;
		int status = find_paths(&paths, names[i], err);

		if (!status)
			status = ls_mountpoint_test(containers_fd, paths.root, &is_mounted, err);
		if (status)
			return status;
		mounted[i] = (uint8_t)is_mounted;
	}
	return LS_OK;
}
