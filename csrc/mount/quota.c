#include "quota.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/quota.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443 /* Linux 5.14, on every architecture */
#endif

#define BLOCK_BYTES 1024 /* of struct if_dqblk's limits */

int ls_project_of(int fd, uint32_t *project, struct ls_error *err)
{
	struct fsxattr found = {0};

	*project = 0;
	if (!ioctl(fd, FS_IOC_FSGETXATTR, &found))
		*project = found.fsx_projid;
	else if (errno != ENOTTY && errno != EOPNOTSUPP)
		return ls_fail_errno(err, "cannot ask for the project of a file");
	return LS_OK;
}

int ls_project_set(int fd, uint32_t project, int inherits, struct ls_error *err)
{
	struct fsxattr attributes = {0};

	if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes))
		return ls_fail_errno(err, "cannot ask for the project of a file");
	attributes.fsx_projid = project;
	attributes.fsx_xflags &= ~(uint32_t)FS_XFLAG_PROJINHERIT;
	if (inherits)
		attributes.fsx_xflags |= FS_XFLAG_PROJINHERIT;
	if (ioctl(fd, FS_IOC_FSSETXATTR, &attributes))
		return ls_fail_errno(err, "cannot give a file to a project");
	return LS_OK;
}

static int control(int fd, unsigned int command, uint32_t project, struct if_dqblk *block)
{
	return (int)syscall(SYS_quotactl_fd, fd, QCMD(command, PRJQUOTA), project, block);
}

static int explain(const char *what, struct ls_error *err)
{
	switch (errno) {
	case ESRCH:
	case ENOSYS:
	case EINVAL:
	case ENOTTY:
	case EOPNOTSUPP:
		return ls_fail(err, LS_UNSUPPORTED, "the file system has no project quotas");
	case EPERM:
		return ls_fail(err, LS_UNSUPPORTED, "cannot %s a project: it needs CAP_SYS_ADMIN: run as root", what);
	default:
		return ls_fail_errno(err, "cannot %s a project", what);
	}
}

int ls_project_usage(int fd, uint32_t project, struct ls_project_usage *usage, struct ls_error *err)
{
	struct if_dqblk block = {0};

	/* ENOENT: XFS has no record of it. */
	if (control(fd, Q_GETQUOTA, project, &block) && errno != ENOENT)
		return explain("ask for the limit of", err);
	usage->limit_bytes = block.dqb_bhardlimit * BLOCK_BYTES;
	usage->used_bytes = block.dqb_curspace;
	usage->files = block.dqb_curinodes;
	return LS_OK;
}

int ls_project_limit(int fd, uint32_t project, uint64_t bytes, struct ls_error *err)
{
	struct if_dqblk block = {.dqb_valid = QIF_BLIMITS};

	block.dqb_bhardlimit = (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
	block.dqb_bsoftlimit = block.dqb_bhardlimit;
	if (control(fd, Q_SETQUOTA, project, &block))
		return explain("limit", err);
	return LS_OK;
}
