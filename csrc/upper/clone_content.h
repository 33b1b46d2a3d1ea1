/* The content of a file that is cloned. Private to the clone_*.c. */
#ifndef LS_CLONE_CONTENT_H
#define LS_CLONE_CONTENT_H

#include "clone_impl.h"

/* Has the file content that sharing would write to the disk and wait for? Then writing begins here, without waiting. */
int ls_clone_begin_writing(const struct ls_clone *clone, int source, const struct stat *status);

/* Give the empty file `target` the content of `source`, as of one moment where the file system can share it.
 * Returns 0, or -1 with errno. */
int ls_clone_content(struct ls_clone *clone, int source, int target, const struct stat *status);

#endif
