/* What the walk (clone_tree.c), its helpers (clone_crew.c), the entries (clone_entry.c) and the contents (clone_content.c) of a cloned tree share. */
#ifndef LS_CLONE_IMPL_H
#define LS_CLONE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/status.h"
#include "xattrs.h"

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
	char *names; /* of attributes, LS_XATTRS_BYTES bytes */
	char *value; /* of one attribute, LS_XATTRS_BYTES bytes; a piece of content that is copied */
	struct ls_error *err;
};

/* What came of an entry: an enum ls_status, or that it went, or became another kind of thing, before it was cloned. */
#define LS_CLONE_CHANGED (-1)
/* Or that the file's content is on its way to the disk, for which sharing it would wait. */
#define LS_CLONE_LATER (-2)

#endif
