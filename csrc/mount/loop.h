/* Loop devices: a file as a block device (loop(4), linux/loop.h). No other program is needed; CAP_SYS_ADMIN and the
 * device nodes in /dev are. Thread-safe; that no two processes attach one file at once is the caller's to see to. */
#ifndef LS_LOOP_H
#define LS_LOOP_H

#include "base/status.h"

/* Room for "/dev/loop<N>". */
#define LS_LOOP_PATH_SIZE 32

/* The open loop device of a file: it stays attached while this is open, or while it is mounted. */
struct ls_loop {
	int fd; /* the caller's to close; -1: none */
	char path[LS_LOOP_PATH_SIZE];
	int direct_io; /* reads and writes of the device pass over the page cache of the file */
};

/* Find the loop device that the open file is attached to, by its inode, whoever attached it and wherever the file is
 * mounted; loop->fd is -1 where there is none. LS_UNSUPPORTED where loop devices cannot be looked at. */
int ls_loop_find(int image_fd, struct ls_loop *loop, struct ls_error *err);

/* Attach the file to a free loop device: blocks of 4 KiB, direct I/O where the file's own file system can, and gone by
 * itself with its last user (LO_FLAGS_AUTOCLEAR). `image_fd` is open for reading and writing. */
int ls_loop_attach(int image_fd, struct ls_loop *loop, struct ls_error *err);

/* Have the device as long as its file is now. */
int ls_loop_resize(const struct ls_loop *loop, struct ls_error *err);

#endif
