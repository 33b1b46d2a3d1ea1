/* Overlays by the thousand: the directories of containers, their mounts and unmounts. */
#ifndef LS_OVERLAY_H
#define LS_OVERLAY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* LS_INVALID where `name` is no name of one directory: empty, too long, "." or "..", or a path. */
int ls_container_check_name(const char *name, struct ls_error *err);

/* The lower layers that many overlays share. Directory descriptors, owned by the caller (O_PATH will do; where the
 * kernel takes no descriptors, the same directories are given as /proc/self/fd/N). */
struct ls_overlay_lowers {
	const int *lower; /* top first; given as lowerdir+ */
	size_t lower_count;
	const int *data; /* data-only layers; given as datadir+ */
	size_t data_count;
};

/* What a new upper directory takes from the image's root: the overlay shows the upper's own. */
struct ls_directory_attributes {
	uint32_t mode; /* permission bits */
	uint32_t uid, gid;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
};

/* Make the directories names[i]/{upper,work,root} below the directory `containers_fd` (mode 0700 for names[i], work
 * and root; `upper` of the attributes given). `stack`, or NULL, is a link relative to that directory of which each gets another
 * name, names[i]/lower, before it gets its upper. All or nothing: on an error what was made is removed again. */
int ls_container_make_many(int containers_fd, const char *const *names, size_t n,
                           const struct ls_directory_attributes *upper, const char *stack, struct ls_error *err);

/* Mount an overlay (metacopy=on, redirect_dir=on, xino left to the kernel; the name as its source) on names[i]/root
 * with upper and work beside it, and above the lowers given what the symbolic link names[i]/lower names, if there is one:
 * directories in "frozen" beside `containers_fd`, top first, separated by '/'; for each of `n` names, in one call. Stops at the first error; *done says how many
 * were mounted (they stay). EBUSY-safe: a name whose root is a mount point already is passed over and counted as
 * done. `volatile_upper`: nothing written is ever synced, neither by fsync nor by unmounting, which otherwise syncs the
 * upper's whole file system. */
int ls_overlay_mount_many(int containers_fd, const char *const *names, size_t n, const struct ls_overlay_lowers *lowers,
                          int volatile_upper, size_t *done, struct ls_error *err);

/* Unmount names[i]/root for each; not mounted is fine. `lazy` detaches one that is busy (MNT_DETACH), else EBUSY is an
 * error (LS_SYSTEM). Goes on after an error; the first one is reported. */
int ls_umount_many(int containers_fd, const char *const *names, size_t n, int lazy, struct ls_error *err);

/* Set mounted[i] to 1 where names[i]/root is a mount point (statx(2), STATX_ATTR_MOUNT_ROOT), else 0. */
int ls_mounted_many(int containers_fd, const char *const *names, size_t n, uint8_t *mounted, struct ls_error *err);

#endif
