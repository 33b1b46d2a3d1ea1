/* The mount system calls: EROFS images, overlays by the thousand, and starting a program in a mount namespace of its
 * own. Everything is passed to the kernel by file descriptor through fsopen(2), fsconfig(2), fsmount(2) and
 * move_mount(2): their strings are cut at 256 bytes, and mount(2)'s option page at 4 KiB. When the kernel refuses,
 * the message carries what it wrote to the filesystem context's log, and the errors that people meet are said in
 * words (no privilege: LS_UNSUPPORTED "mounting needs CAP_SYS_ADMIN ..."). Thread-safe; no global state. */
#ifndef LS_MOUNT_H
#define LS_MOUNT_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Mount the EROFS image file read-only on the directory `target`, with `device` (may be NULL) as its
 * one extra device. nosuid and nodev are NOT set: overlays on top of it decide. */
int ls_mount_erofs(const char *image, const char *device, const char *target, struct ls_error *err);

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
 * and root; `upper` of the attributes given). All or nothing: on an error what was made is removed again. */
int ls_container_make_many(int containers_fd, const char *const *names, size_t n,
                           const struct ls_directory_attributes *upper, struct ls_error *err);

/* Mount an overlay (metacopy=on, redirect_dir=on, xino left to the kernel; the name as its source) on names[i]/root
 * with upper and work beside it, for each of `n` names, in one call. Stops at the first error; *done says how many
 * were mounted (they stay). EBUSY-safe: a name whose root is a mount point already is passed over and counted as
 * done. `volatile_upper`: nothing written is ever synced, neither by fsync nor by unmounting, which otherwise syncs the
 * upper's whole file system. */
int ls_overlay_mount_many(int containers_fd, const char *const *names, size_t n, const struct ls_overlay_lowers *lowers,
                          int volatile_upper, size_t *done, struct ls_error *err);

/* Unmount names[i]/root for each; not mounted is fine. `lazy` detaches one that is busy (MNT_DETACH), else EBUSY is an
 * error (LS_SYSTEM). Goes on after an error; the first one is reported. */
int ls_umount_many(int containers_fd, const char *const *names, size_t n, int lazy, struct ls_error *err);

/* Remove names[i] and everything below it, for each; missing is fine. Symbolic links are removed, not followed, and no
 * mount is entered: where names[i]/root is one still, that is LS_SYSTEM with EBUSY and nothing of the container is
 * touched. Depth costs neither stack nor descriptors, of which it needs ten. Goes on after an error; the first one is reported. */
int ls_container_remove_many(int containers_fd, const char *const *names, size_t n, struct ls_error *err);

/* Set mounted[i] to 1 where names[i]/root is a mount point (statx(2), STATX_ATTR_MOUNT_ROOT), else 0. */
int ls_mounted_many(int containers_fd, const char *const *names, size_t n, uint8_t *mounted, struct ls_error *err);

/* The same three for one plain path. */
int ls_umount(const char *path, int lazy, struct ls_error *err);
int ls_is_mounted(const char *path, int *mounted, struct ls_error *err);

/* What this process and kernel can do, probed for real (no version numbers): each 0 or 1. */
struct ls_mount_features {
	int may_mount;     /* CAP_SYS_ADMIN in the user namespace that owns the mount namespace */
	int new_mount_api; /* fsopen and friends */
	int overlay;       /* the overlay file system exists */
	int erofs;         /* EROFS exists */
};
void ls_mount_features(struct ls_mount_features *features);

/* syncfs(2) of the file system that holds the descriptor. */
int ls_syncfs(int fd, struct ls_error *err);

/* Open an existing path as a process would whose root directory is `root_fd`: neither "..", nor a symbolic link of the
 * image leads out of it. `flags` as for open(2), without O_CREAT; O_CLOEXEC is added. Without `links` a symbolic link on
 * the way is ELOOP; O_PATH with O_NOFOLLOW still opens the one that the path itself is. */
int ls_open_inside(int root_fd, const char *path, int flags, int links, int *fd, struct ls_error *err);

/* Start argv[0] (a path) with the given environment and descriptors 0-2, without copying this process (vfork
 * semantics). All other descriptors are taken to be close-on-exec. `private_mounts`: in a mount namespace of its
 * own, none of whose changes is seen outside. There an empty tmpfs covers each directory in `hide` (NULL-terminated
 * list of paths, may be NULL) that exists: what the program writes there goes away with it. `group_fd`: the directory of
 * the control group of version 2 that it starts in (-1: the caller's), `task_fds`: the files "tasks" of those of version
 * 1. `controlling_terminal`: setsid and make descriptor 0 the controlling terminal. `read_only_program`: execute the program through a read-only
 * mount of its file, made for this once, so that whoever reaches /proc/PID/exe cannot write to the program; where that
 * is not to be had (no privilege, a script), as it is. Signal dispositions and mask are reset to the defaults.
 * *pid is the child, to be waited for by the caller. An error of exec or of the preparation is reported here, with
 * nothing left to wait for. */
struct ls_spawn {
	const char *const *argv;
	const char *const *envp;
	const char *cwd; /* NULL: the caller's */
	int fds[3];      /* become 0, 1, 2 */
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
