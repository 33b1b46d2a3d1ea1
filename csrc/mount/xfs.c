#include "xfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/retry.h"
#include "fscontext.h"

/* The kernel's ABI (fs/xfs/libxfs/xfs_fs.h), which linux-libc-dev leaves to xfslibs-dev. */
struct geometry {
	uint32_t block_size, extent_size, group_blocks, group_count, log_blocks, sector_size, inode_size;
	uint32_t inode_percent;
	uint64_t data_blocks, realtime_blocks, realtime_extents, log_start;
	uint8_t uuid[16];
	uint32_t stripe_unit, stripe_width;
	int32_t version;
	uint32_t flags, log_sector_size, realtime_sector_size, directory_block_size;
};

struct growth {
	uint64_t blocks;
	uint32_t inode_percent;
};

#define GET_GEOMETRY _IOR('X', 100, struct geometry)
#define GROW_DATA _IOW('X', 110, struct growth)

static int mount_xfs(const char *device, const char *target, int quotas, struct ls_error *err)
{
	struct ls_fscontext context = {.fd = -1, .type = "xfs", .what = "the pool on", .subject = device};
	int status = ls_fscontext_open(&context, err);

	if (!status)
		status = ls_fscontext_string(&context, "source", device, err);
	if (!status && quotas)
		status = ls_fscontext_flag(&context, "prjquota", err);
	if (!status)
		status = ls_fscontext_create(&context, err);
	if (!status)
		status = ls_fscontext_attach(&context, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOATIME,
		                             AT_FDCWD, target, err);
	ls_fscontext_close(&context);
	return status;
}

int ls_xfs_mount(const char *device, const char *target, int quotas, struct ls_error *err)
{
	int status = mount_xfs(device, target, quotas, err);

	/* A kernel without CONFIG_XFS_QUOTA refuses the option. */
	if (quotas && status == LS_SYSTEM && err->sys_errno == EINVAL)
		status = mount_xfs(device, target, 0, err);
	return status;
}

int ls_xfs_grow(int fd, uint64_t size, struct ls_error *err)
{
	struct geometry now = {0};
	struct growth wanted;

	if (ioctl(fd, GET_GEOMETRY, &now))
		return ls_fail_errno(err, "cannot ask the pool's XFS for its geometry");
	wanted.blocks = size / now.block_size;
	wanted.inode_percent = now.inode_percent;
	if (wanted.blocks == now.data_blocks)
		return LS_OK;
	if (wanted.blocks < now.data_blocks)
		return ls_fail(err, LS_INVALID, "an XFS of %llu bytes does not shrink to %llu",
		               (unsigned long long)(now.data_blocks * now.block_size), (unsigned long long)size);
	if (ioctl(fd, GROW_DATA, &wanted))
		return ls_fail_errno(err, "cannot grow the pool's XFS to %llu bytes", (unsigned long long)size);
	return LS_OK;
}

int ls_trim(int fd, uint64_t *trimmed, struct ls_error *err)
{
	struct fstrim_range range = {.len = UINT64_MAX};

	*trimmed = 0;
	if (TEMP_FAILURE_RETRY(ioctl(fd, FITRIM, &range)))
		return ls_fail_errno(err, "cannot tell the pool's device which blocks are free (FITRIM)");
	*trimmed = range.len;
	return LS_OK;
}
