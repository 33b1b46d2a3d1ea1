/* Paths inside a directory that is a root. */
#ifndef LS_INSIDE_H
#define LS_INSIDE_H

#include "base/status.h"

/* Open an existing path as a process would whose root directory is `root_fd`: neither "..", nor a symbolic link of the
 * image leads out of it. `flags` as for open(2), without O_CREAT; O_CLOEXEC is added. Without `links` a symbolic link on
 * the way is ELOOP; O_PATH with O_NOFOLLOW still opens the one that the path itself is. */
int ls_open_inside(int root_fd, const char *path, int flags, int links, int *fd, struct ls_error *err);

#endif
