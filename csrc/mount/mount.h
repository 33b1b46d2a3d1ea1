/* The mount system calls. Everything is passed to the kernel by file descriptor through fsopen(2), fsconfig(2), fsmount(2) and
 * move_mount(2): their strings are cut at 256 bytes, and mount(2)'s option page at 4 KiB. When the kernel refuses,
 * the message carries what it wrote to the filesystem context's log, and the errors that people meet are said in
 * words (no privilege: LS_UNSUPPORTED "mounting needs CAP_SYS_ADMIN ..."). Thread-safe; no global state. */
#ifndef LS_MOUNT_H
#define LS_MOUNT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Mount the EROFS image file read-only on the directory `target`, with `device` (may be NULL) as its
 * one extra device. nosuid and nodev are NOT set: overlays on top of it decide. */
int ls_mount_erofs(const char *image, const char *device, const char *target, struct ls_error *err);

/* Of one path; `lazy` as for ls_umount_many (overlay.h), and what is not mounted is fine. */
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

#endif
