#include "mountpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "fscontext.h"

int ls_mountpoint_test(int directory_fd, const char *path, int *mounted, struct ls_error *err)
{
	struct statx found;

	*mounted = 0;
	if (statx(directory_fd, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, 0, &found)) {
		if (errno == ENOENT)
			return LS_OK;
		return ls_fail_errno(err, "cannot see whether \"%s\" is mounted", LS_SHOWN_TEXT(path));
	}
	if (!(found.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT))
		return ls_fail(err, LS_UNSUPPORTED,
		               "this kernel does not tell which directories are mount points (statx): Linux >= 5.8 is "
		               "needed");
	*mounted = (found.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
	return LS_OK;
}

static int explain_umount(int sys_errno, const char *subject, struct ls_error *err)
{
	const char *shown = LS_SHOWN_TEXT(subject);

	if (sys_errno == EPERM)
		return ls_fail(err, LS_UNSUPPORTED, "cannot unmount \"%s\": " LS_NEEDS_PRIVILEGE, shown);
	errno = sys_errno;
	if (sys_errno == EBUSY)
		return ls_fail_errno(err,
		                     "cannot unmount \"%s\", which is in use: end the programs that use it, or unmount "
		                     "it lazily",
		                     shown);
	return ls_fail_errno(err, "cannot unmount \"%s\"", shown);
}

int ls_mountpoint_umount(int directory_fd, const char *path, int lazy, const char *subject, struct ls_error *err)
{
	char below[sizeof("/proc/self/fd/-2147483648/") + PATH_MAX];
	int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0);
	int mounted, status, saved;

	if (directory_fd != AT_FDCWD)
		snprintf(below, sizeof(below), "/proc/self/fd/%d/%s", directory_fd, path);
	if (!umount2(directory_fd == AT_FDCWD ? path : below, flags))
		return LS_OK;
	saved = errno;
	/* Nothing mounted is EINVAL, or ENOENT; but so are a mount that a parent user namespace locks, and no /proc. */
	if (saved == EINVAL || saved == ENOENT) {
		status = ls_mountpoint_test(directory_fd, path, &mounted, err);
		if (status || !mounted)
			return status;
	}
	return explain_umount(saved, subject, err);
}
