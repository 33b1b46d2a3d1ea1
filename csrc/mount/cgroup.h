/* Control groups of version 2: reaching their hierarchy where it is not mounted, and which devices the programs of a group
 * may open (Linux: Documentation/admin-guide/cgroup-v2.rst, bpf(2), linux/bpf.h). Thread-safe. */
#ifndef LS_CGROUP_H
#define LS_CGROUP_H

#include <stdint.h>

#include "base/status.h"

enum ls_device_access {
	LS_DEVICE_MKNOD = 1,
	LS_DEVICE_READ = 2,
	LS_DEVICE_WRITE = 4,
	LS_DEVICE_ALL = 7,
};

/* A device that may be used. */
struct ls_device_rule {
	int block; /* else a character device */
	uint32_t major;
	int any_minor; /* every minor number */
	uint32_t minor;
	uint32_t access; /* of enum ls_device_access */
};

/* Mount the hierarchy where nobody sees it; *fd is its root directory, close-on-exec, and the mount goes with it. */
int ls_cgroup_open(int *fd, struct ls_error *err);

/* Have the programs of the group (its directory) use the devices of these rules, as far as the groups above allow, and
 * no others; the rules live as long as the group. Those of one major number and access cost least side by side.
 * LS_UNSUPPORTED where the kernel or the privilege for it is missing. */
int ls_cgroup_allow_devices(int group_fd, const struct ls_device_rule *rules, size_t n, struct ls_error *err);

#endif
