/* Project quotas: how much the files of a project take of a file system (quotactl(2), ioctl_xfs_fsgetxattr(2)). A project
 * is a number that each file has; 0 is that of all which were given none. For XFS and ext4. Thread-safe. */
#ifndef LS_QUOTA_H
#define LS_QUOTA_H

#include <stdint.h>

#include "base/status.h"

/* *project is that of the open file or directory; 0 also where the file system knows none. */
int ls_project_of(int fd, uint32_t *project, struct ls_error *err);

/* Give it to a project. `inherits`: what is made in the directory from now on is of that, too. */
int ls_project_set(int fd, uint32_t project, int inherits, struct ls_error *err);

/* What a project may take of the file system of an open file, and takes. */
struct ls_project_usage {
	uint64_t limit_bytes; /* 0: no limit */
	uint64_t used_bytes;
	uint64_t files;
};

/* LS_UNSUPPORTED where the file system holds no project to limits. */
int ls_project_usage(int fd, uint32_t project, struct ls_project_usage *usage, struct ls_error *err);
int ls_project_limit(int fd, uint32_t project, uint64_t bytes, struct ls_error *err);

#endif
