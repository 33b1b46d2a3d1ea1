/* What the walk (clone_tree.c), its helpers (clone_crew.c), the entries (clone_entry.c) and the contents (clone_content.c) of a cloned tree share. */
#ifndef LS_CLONE_IMPL_H
#define LS_CLONE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>

#include "status.h"

/* What all threads that clone one tree have in common. */
struct ls_clone_shared {
	const char *source; /* in messages */
	int target_fd;
	const char *target;
	pthread_mutex_t links_lock; /* held while an inode with several names is cloned */
	int links_fd;               /* of <target>.links, where such inodes are found by number; -1: none yet */
	atomic_int no_reflink;      /* the file system has said that it cannot */
	atomic_int has_copied;      /* some content was copied, which may not be on the disk before it is synced */
};

/* What each of them has. */
struct ls_clone {
	struct ls_clone_shared *shared;
	char *names; /* of attributes, LS_CLONE_XATTR_SIZE bytes */
	char *value; /* of one attribute, LS_CLONE_XATTR_SIZE bytes; a piece of content that is copied */
	struct ls_error *err;
};

/* The most that the kernel gives for the names of an inode's attributes, and for one's value. */
#define LS_CLONE_XATTR_SIZE 65536

/* What came of an entry: an enum ls_status, or that it went, or became another kind of thing, before it was cloned. */
#define LS_CLONE_CHANGED (-1)
/* Or that the file's content is on its way to the disk, for which sharing it would wait. */
#define LS_CLONE_LATER (-2)

/* Fail with the present errno over the entry `name`. */
int ls_clone_fail(const struct ls_clone *clone, const char *name);

/* Clone a regular file; anything but a regular file or directory; a directory's own attributes, once all is in it.
 * The first two return LS_CLONE_CHANGED too, and the first one LS_CLONE_LATER if `may_defer`. */
int ls_clone_file(struct ls_clone *clone, int source_dir, int target_dir, const char *name, int may_defer);
int ls_clone_special(struct ls_clone *clone, int source_dir, int target_dir, const char *name);
int ls_clone_attributes(struct ls_clone *clone, int source, int target, const struct stat *status, const char *name);

/* Has the file content that sharing would write to the disk and wait for? Then writing begins here, without waiting. */
int ls_clone_begin_writing(const struct ls_clone *clone, int source, const struct stat *status);

/* Give the empty file `target` the content of `source`, as of one moment where the file system can share it.
 * Returns 0, or -1 with errno. */
int ls_clone_content(struct ls_clone *clone, int source, int target, const struct stat *status);

#endif
