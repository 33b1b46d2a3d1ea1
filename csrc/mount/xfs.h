/* What a mounted XFS is asked for by ioctl(2). Thread-safe. */
#ifndef LS_XFS_H
#define LS_XFS_H

#include <stdint.h>

#include "base/status.h"

/* Mount the XFS on a block device at the directory `target` (nodev, nosuid, noatime); with project quotas where
 * `quotas` asks for them and the kernel's XFS has them. */
int ls_xfs_mount(const char *device, const char *target, int quotas, struct ls_error *err);

/* Let the file system of the open directory grow to the size of its device, `size` bytes, while it is in use. Already
 * that large is fine; to shrink is LS_INVALID. */
int ls_xfs_grow(int fd, uint64_t size, struct ls_error *err);

/* Tell the device which blocks are free (FITRIM); *trimmed is how many bytes they are, also those told before. */
int ls_trim(int fd, uint64_t *trimmed, struct ls_error *err);

#endif
