/* Starts a program in a mount namespace of its own. */
#ifndef LS_SPAWN_H
#define LS_SPAWN_H

#include <stddef.h>

#include "base/status.h"

/* Start argv[0] (a path) with the given environment and descriptors, without copying this process (vfork semantics).
 * fds[i] becomes descriptor i, -1 is none; there are at least three. All others are taken to be close-on-exec. `private_mounts`: in a mount namespace of its
 * own, none of whose changes is seen outside. There an empty tmpfs covers each directory in `hide` (NULL-terminated
 * list of paths, may be NULL) that exists: what the program writes there goes away with it. `group_fd`: the directory of
 * the control group of version 2 that it starts in (-1: the caller's), `task_fds`: the files "tasks" of those of version
 * 1. `controlling_terminal`: setsid and make descriptor 0 the controlling terminal. `read_only_program`: execute the program through a read-only
 * mount of its file, made for this once, so that whoever reaches /proc/PID/exe cannot write to the program; where that
 * is not to be had (no privilege, a script), as it is. Signal dispositions and mask are reset to the defaults.
 * *pid is the child, to be waited for by the caller. An error of exec or of the preparation is reported here, with
 * nothing left to wait for. */
#define LS_SPAWN_FDS 40
struct ls_spawn {
	const char *const *argv;
	const char *const *envp;
	const char *cwd; /* NULL: the caller's */
	const int *fds;
	size_t fd_count; /* at most LS_SPAWN_FDS */
	int private_mounts;
	const char *const *hide;
	int group_fd;
	const int *task_fds;
	size_t task_fd_count;
	int controlling_terminal;
	int read_only_program;
};
int ls_spawn(const struct ls_spawn *spawn, int *pid, struct ls_error *err);

#endif
