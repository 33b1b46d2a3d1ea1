/* One mount point: is something mounted there, and unmount it. Private to mount.c and overlay.c. */
#ifndef LS_MOUNTPOINT_H
#define LS_MOUNTPOINT_H

#include "base/status.h"

/* *mounted is 1 where `path`, relative to the directory `directory_fd`, is the root of a mount. A path that does not
 * exist is none; a symbolic link in last place is not followed. */
int ls_mountpoint_test(int directory_fd, const char *path, int *mounted, struct ls_error *err);

/* Unmount what is on top at `path`, relative to the directory `directory_fd` (which needs /proc when it is not
 * AT_FDCWD: umount2(2) takes no descriptor). Nothing there is fine. `subject` stands for the path in messages. */
int ls_mountpoint_umount(int directory_fd, const char *path, int lazy, const char *subject, struct ls_error *err);

#endif
