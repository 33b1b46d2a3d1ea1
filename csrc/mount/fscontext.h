/* A filesystem context (fsopen(2)): the one place that calls the kernel's mount API of Linux 5.2 and that turns its
 * refusals into messages people can act on. Private to mount.c and overlay.c; mount.h is the interface.
 *
 * After a failure a context is good for closing only. Messages read "cannot mount <what> "<subject>": ..."; what the
 * kernel wrote to the context's log stands in them. Not safe for use by two threads at once. */
#ifndef LS_FSCONTEXT_H
#define LS_FSCONTEXT_H

#include "base/status.h"

struct ls_fscontext {
	int fd;              /* of fsopen(2); -1: not open */
	const char *type;    /* "erofs", "overlay" */
	const char *what;    /* "the EROFS image", "the overlay of container" */
	const char *subject; /* its path or name; borrowed */
};

/* Open the context that `type`, `what` and `subject` describe. LS_UNSUPPORTED without the privilege, the system calls,
 * or the file system. */
int ls_fscontext_open(struct ls_fscontext *context, struct ls_error *err);

/* Set an option without a value. */
int ls_fscontext_flag(struct ls_fscontext *context, const char *key, struct ls_error *err);

/* Set an option to a value of at most 255 bytes. */
int ls_fscontext_string(struct ls_fscontext *context, const char *key, const char *value, struct ls_error *err);

/* Set an option of overlayfs that names a layer to a directory descriptor. Linux takes descriptors from 6.13 on; where
 * it refuses one, the same directory is given as /proc/self/fd/N. */
int ls_fscontext_directory(struct ls_fscontext *context, const char *key, int directory_fd, struct ls_error *err);

/* Create the superblock. What the kernel refuses for want of privilege is LS_UNSUPPORTED, all else LS_SYSTEM. */
int ls_fscontext_create(struct ls_fscontext *context, struct ls_error *err);

/* Attach the created file system at `target`, relative to the directory `target_fd`, with MOUNT_ATTR_* `attributes`. */
int ls_fscontext_attach(struct ls_fscontext *context, unsigned int attributes, int target_fd, const char *target,
                        struct ls_error *err);

void ls_fscontext_close(struct ls_fscontext *context);

/* A read-only mount of the file `path` that is attached nowhere: its descriptor (close-on-exec), or -1 with errno. The
 * mount is gone once nobody has the file open through it. Only system calls: a child that shares this process's memory
 * may call it. */
int ls_mount_detached_read_only(const char *path);

/* What to say wherever the kernel answers EPERM to a mount or an unmount; follows "cannot mount ...: ". */
#define LS_NEEDS_PRIVILEGE "mounting needs CAP_SYS_ADMIN: run as root (EROFS: root of the initial user namespace)"

#endif
